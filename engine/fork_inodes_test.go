//go:build linux

package engine

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A numbered is a file as a program sees it that keeps inode numbers in a double.
type numbered struct {
	dev uint64
	ino float64
}

// byInode gives the names below a directory by file, as a walker finds them that goes by
// device and inode number. No number may be too large for a double.
func byInode(t testing.TB, dir string) map[numbered][]string {
	t.Helper()
	all := map[numbered][]string{}
	large := 0
	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		if err != nil {
			return err
		}
		if st.Ino >= 1<<53 {
			if large++; large == 1 {
				t.Errorf("%s has the inode number %d", path, st.Ino)
			}
		}
		at := numbered{st.Dev, float64(st.Ino)}
		all[at] = append(all[at], strings.TrimPrefix(path, dir))
		return nil
	}))
	return all
}

// sameFiles checks that a walker takes the same names for one file in a fork as in a
// directory. With fuse-overlayfs each name of a file of the snapshot is one by itself, and
// new files have several.
func sameFiles(t testing.TB, mode ForkMode, want, got string) {
	t.Helper()
	list := func(dir string, apart bool) (files []string) {
		for _, names := range byInode(t, dir) {
			if !apart || strings.HasPrefix(names[0], "/new") {
				files = append(files, fmt.Sprintf("%q", names))
				continue
			}
			for _, name := range names {
				files = append(files, fmt.Sprintf("%q", []string{name}))
			}
		}
		slices.Sort(files)
		return files
	}
	diff := lineDiff(list(want, mode == ForkFuse), list(got, false))
	for _, line := range diff[:min(len(diff), 5)] {
		t.Error(line)
	}
}

// linkedTree is a package in which many files have two names, as in a tree of pnpm's.
func linkedTree(t testing.TB, dir string, pairs int) {
	t.Helper()
	writeFile(t, dir+"/package.json", []byte(`{"name": "linked", "version": "1.0.0", "license": "MIT"}`))
	for i := range pairs {
		name := fmt.Sprintf("%s/d%02d/f%04d", dir, i%40, i)
		writeFile(t, name, fmt.Append(nil, "text ", i))
		must(t, os.Link(name, name+"-too"))
	}
}

// addPairs makes further files with two names, and gives them contents of their own.
func addPairs(t testing.TB, dir string, pairs int) {
	t.Helper()
	for i := range pairs {
		name := fmt.Sprintf("%s/new%d", dir, i)
		writeFile(t, name, fmt.Append(nil, "new ", i))
		must(t, os.Link(name, name+"-too"))
	}
}

// TestForkInodes: in every mode who goes by inode numbers sees the same files in a fork
// as in the directory that the snapshot was made of, also when these numbers are kept in
// doubles, and when files of the upper directory have the numbers of files of the snapshot
// in file systems of their own. With fuse-overlayfs no two names of the snapshot are one file.
func TestForkInodes(t *testing.T) {
	eachMode(t, func(t *testing.T, f *forked, mode ForkMode) {
		src := f.files("linked", nil)
		linkedTree(t, src, 400)
		r := f.open()
		f.id = complete(t, r, src, nil).ID
		upper := f.files("upper", nil)
		mount(t, upper, "size=64m") // it counts inodes from its own beginning
		one := f.fork(r, "one", &ForkOptions{Mode: mode, Upper: upper + "/layer"})
		sameFiles(t, mode, src, one.Dir)
		addPairs(t, src, 600)
		addPairs(t, one.Dir, 600)
		sameFiles(t, mode, src, one.Dir)
		must(t, one.Unmount(t.Context(), false))
		one, err := r.ResumeFork(t.Context(), "one", nil)
		must(t, err)
		sameFiles(t, mode, src, one.Dir)
		for _, args := range [][]string{{"find", ".", "-xdev", "-type", "f"}, {"tar", "--one-file-system", "-cf", "-", "."}, {"rsync", "-xa", "--list-only", "."}} {
			if _, err := exec.LookPath(args[0]); err == nil {
				sameOutput(t, src, one.Dir, args)
			}
		}
		f.remove(one)
	})
}

// sameOutput checks that a program finds as much in two directories.
func sameOutput(t testing.TB, want, got string, args []string) {
	t.Helper()
	lines := map[string]int{}
	for _, dir := range []string{want, got} {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir = dir
		out, err := cmd.Output()
		must(t, err)
		if args[0] == "tar" {
			lines[dir] = len(readTar(t, out))
			continue
		}
		lines[dir] = strings.Count(string(out), "\n")
	}
	if lines[want] != lines[got] || lines[got] == 0 {
		t.Errorf("%s: %d of %d entries", args[0], lines[got], lines[want])
	}
}

// readTar gives the contents of the files of an archive, by name. What is stored as a
// hard link has those of the file that it names.
func readTar(t testing.TB, archive []byte) map[string]string {
	t.Helper()
	all := map[string]string{}
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return all
		}
		must(t, err)
		name := filepath.Clean(h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
			b, err := io.ReadAll(r)
			must(t, err)
			all[name] = string(b)
		case tar.TypeLink:
			text, ok := all[filepath.Clean(h.Linkname)]
			if !ok {
				t.Fatalf("%s is a link to %s, which comes later or not at all", h.Name, h.Linkname)
			}
			all[name] = text
		}
	}
}

// TestForkNode: what JavaScript's archiver makes of a fork holds what is in the fork. It
// finds hard links by device and inode number, which it keeps in doubles.
func TestForkNode(t *testing.T) {
	npm, err := exec.LookPath("npm")
	if err == nil {
		npm, err = filepath.EvalSymlinks(npm)
	}
	if err != nil {
		t.Skip(err)
	}
	// npm comes with it.
	found, err := exec.Command("node", "-p", `require.resolve("tar", {paths: [process.argv[1]]})`, filepath.Dir(npm)).Output()
	if err != nil {
		t.Skipf("npm's archiver: %v", err)
	}
	archiver := strings.TrimSpace(string(found))
	eachMode(t, func(t *testing.T, f *forked, mode ForkMode) {
		src := f.files("linked", nil)
		linkedTree(t, src, 600)
		r := f.open()
		f.id = complete(t, r, src, nil).ID
		one := f.fork(r, "one", &ForkOptions{Mode: mode})
		addPairs(t, one.Dir, 30)
		want := map[string]string{}
		for path, n := range scan(t, one.Dir) {
			if n.Mode&unix.S_IFMT == unix.S_IFREG {
				b, err := os.ReadFile(filepath.Join(one.Dir, path))
				must(t, err)
				want[path] = string(b)
			}
		}
		program := `require(process.argv[1]).c({file: process.argv[2], cwd: process.argv[3], sync: true}, ["."])`
		run(t, one.Dir, "node", "-e", program, archiver, f.path("node.tar"), one.Dir)
		archive, err := os.ReadFile(f.path("node.tar"))
		must(t, err)
		sameTexts(t, "node-tar", want, readTar(t, archive))

		run(t, one.Dir, "npm", "pack", "--offline", "--ignore-scripts", "--no-update-notifier", "--cache="+f.path("npm"), "--pack-destination="+f.path("."))
		sameTexts(t, "npm pack", want, readPackage(t, f.path("linked-1.0.0.tgz")))
		f.remove(one)
	})
}

// readPackage reads what npm packs, below package/.
func readPackage(t testing.TB, path string) map[string]string {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	must(t, err)
	archive, err := io.ReadAll(z)
	must(t, err)
	all := map[string]string{}
	for name, text := range readTar(t, archive) {
		all[strings.TrimPrefix(name, "package/")] = text
	}
	return all
}

func sameTexts(t testing.TB, what string, want, got map[string]string) {
	t.Helper()
	wrong := 0
	for name, text := range want {
		if got[name] != text {
			if wrong++; wrong < 5 {
				t.Errorf("%s: %s holds %q, not %q", what, name, got[name], text)
			}
		}
	}
	if wrong > 0 || len(got) != len(want) {
		t.Errorf("%s: %d of %d files are wrong, and %d are there", what, wrong, len(want), len(got))
	}
}
