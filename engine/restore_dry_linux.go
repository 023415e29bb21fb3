package engine

import "golang.org/x/sys/unix"

func attributesOf(dir int, name string) (a fileAttributes, err error) {
	var st unix.Statx_t
	if err := unix.Statx(dir, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID, &st); err != nil {
		return a, err
	}
	return fileAttributes{
		mount:     st.Mnt_id,
		mounted:   name != "." && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0,
		immutable: st.Attributes&(unix.STATX_ATTR_IMMUTABLE|unix.STATX_ATTR_APPEND) != 0,
	}, nil
}
