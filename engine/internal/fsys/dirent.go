package fsys

import "golang.org/x/sys/unix"

// SameFile reports whether two stats of a file say that its contents and
// metadata did not change in between.
func (d *Dirent) SameFile(o *Dirent) bool {
	return d.Dev == o.Dev && d.Ino == o.Ino && d.Mode == o.Mode && d.Size == o.Size && d.Mtime == o.Mtime && d.Ctime == o.Ctime
}

// An Inode tells a file from all others of this machine, as long as it exists.
type Inode struct{ Dev, Ino uint64 }

// Dirent is an entry of a directory and its stat.
type Dirent struct {
	Name  string
	Mode  uint32 // as in stat, type included
	Uid   uint32
	Gid   uint32
	Nlink uint32
	Rdev  uint64
	Dev   uint64
	Ino   uint64
	Size  int64
	Alloc int64 // bytes allocated
	Atime unix.Timespec
	Mtime unix.Timespec
	Ctime unix.Timespec
}

// DirentOf is the Dirent of a name with that state.
func DirentOf(name string, st *unix.Stat_t) Dirent {
	return Dirent{
		Name: name, Mode: uint32(st.Mode), Uid: st.Uid, Gid: st.Gid, Nlink: uint32(st.Nlink),
		Rdev: uint64(st.Rdev), Dev: uint64(st.Dev), Ino: st.Ino, Size: st.Size, Alloc: st.Blocks * 512,
		Atime: st.Atim, Mtime: st.Mtim, Ctime: st.Ctim,
	}
}

// Kind is the type in Mode: unix.S_IFREG and the like.
func (d *Dirent) Kind() uint32 { return d.Mode & unix.S_IFMT }

// IsDir reports whether it is a directory.
func (d *Dirent) IsDir() bool { return d.Kind() == unix.S_IFDIR }
