package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// unmountAll undoes all that is mounted in the work folder, whatever became of
// those who mounted it: a program that was interrupted may mount after that.
func (b *bench) unmountAll() error {
	var errs []error
	for len(b.mounts) > 0 {
		errs = append(errs, b.unmount(b.mounts[len(b.mounts)-1]))
	}
	for deadline := time.Now().Add(ending); ; time.Sleep(50 * time.Millisecond) {
		dirs, err := mountsBelow(b.work)
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		for _, dir := range slices.Backward(dirs) { // the last one mounted covers the others
			errs = append(errs, unmount(dir, patience))
		}
		left := processesOf(b.mountPoint())
		if len(left) == 0 && len(dirs) == 0 {
			break
		}
		if time.Now().After(deadline) {
			for _, pid := range left {
				errs = append(errs, fmt.Errorf("had to kill process %d", pid), syscall.Kill(pid, syscall.SIGKILL))
			}
			break
		}
	}
	return errors.Join(append(errs, freeLoops(b.work))...)
}

// mountsBelow lists the mount points at and below a folder.
func mountsBelow(dir string) ([]string, error) {
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return nil, fmt.Errorf("reading the table of mounts: %w", err)
	}
	var dirs []string
	for _, m := range infos {
		dirs = append(dirs, m.Mountpoint)
	}
	return dirs, nil
}

// processesOf lists the processes that were started with a path in the folder,
// this one not.
func processesOf(dir string) []int {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	var pids []int
	for _, file := range lines {
		line, err := os.ReadFile(file)
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err == nil && pid != os.Getpid() && bytes.Contains(line, []byte(dir+"/")) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// freeLoops frees the loop devices of images in the folder. Unmounting does
// that, unless something stays in use.
func freeLoops(dir string) error {
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	var errs []error
	for _, file := range files {
		image, err := os.ReadFile(file)
		if err != nil || !strings.HasPrefix(string(image), dir+"/") {
			continue
		}
		device, err := os.Open("/dev/" + strings.Split(file, "/")[3])
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if _, err := unix.IoctlRetInt(int(device.Fd()), unix.LOOP_CLR_FD); err != nil && !errors.Is(err, unix.ENXIO) {
			errs = append(errs, &os.PathError{Op: "freeing", Path: device.Name(), Err: err})
		}
		device.Close()
	}
	return errors.Join(errs...)
}
