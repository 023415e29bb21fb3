//go:build linux

package fusefs

import (
	"fmt"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/snapctl/snapctl/bench/micro"
	"github.com/snapctl/snapctl/manifest"
)

// What the server does of a request, without the kernel: a request costs about five
// microseconds more for two wake-ups and two copies.

// benchFS is a file system with a directory of so many small files, whose pages are
// decoded.
func benchFS(b *testing.B, files int) (f *snapshotFS, dir uint64) {
	w := newWorld()
	w.dir("node_modules")
	for i := range files {
		w.file(fmt.Sprintf("node_modules/module-%05d.js", i), 0, piece{data: fmt.Sprintf("exports.n = %d\n", i)})
	}
	w.build(b)
	tree, err := manifest.NewTree(w.manifest.Root, w.source())
	if err != nil {
		b.Fatal(err)
	}
	f = newFS(b.Context(), w.manifest, tree, w, &Options{})
	f.ahead = newAhead(b.Context(), f, func(uint64, int64, []byte) fuse.Status { return fuse.OK })
	b.Cleanup(f.ahead.wait)
	var e manifest.Entry
	rank, err := tree.Lookup(b.Context(), manifest.KeyOf("node_modules"), &e)
	if err != nil {
		b.Fatal(err)
	}
	return f, rank + 1
}

// answer makes an error of a status that is not OK.
func answer(s fuse.Status) error {
	if s != fuse.OK {
		return fmt.Errorf("status %v", s)
	}
	return nil
}

// listBuffer is as large as the kernel's, for a program that lists with glibc.
const listBuffer = 32 << 10

// listed fills buffer after buffer until a directory is listed.
func listed(dir uint64, fill func(*fuse.ReadIn, *fuse.DirEntryList) fuse.Status) func() error {
	buf := make([]byte, listBuffer)
	in := fuse.ReadIn{InHeader: fuse.InHeader{NodeId: dir}, Size: listBuffer}
	return func() error {
		for off, last := uint64(0), uint64(1); off != last; {
			out := fuse.NewDirEntryList(buf, off)
			in.Offset = off
			if s := fill(&in, out); s != fuse.OK {
				return answer(s)
			}
			last, off = off, out.Offset
		}
		return nil
	}
}

// The limit is to fill the same buffers from a slice that holds the answers.
func BenchmarkReadDirPlus(b *testing.B) {
	for _, n := range []int{100, 5000} {
		f, dir := benchFS(b, n)
		names := make([]fuse.DirEntry, n)
		attrs := make([]fuse.EntryOut, n)
		for i := range names {
			var e manifest.Entry
			if err := f.entry(b.Context(), dir+1+uint64(i), &e); err != nil {
				b.Fatal(err)
			}
			f.fillEntry(&attrs[i], dir+uint64(i), &e)
			names[i] = fuse.DirEntry{Mode: fuse.S_IFREG, Name: e.Name, Ino: attrs[i].NodeId, Off: uint64(i) + 1}
		}
		micro.Run(b, fmt.Sprintf("entries=%d", n), micro.Work{Entries: n}, listed(dir, func(in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
			return f.ReadDirPlus(nil, in, out)
		}), listed(dir, func(in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
			for i := in.Offset; i < uint64(n); i++ {
				o := out.AddDirLookupEntry(names[i])
				if o == nil {
					break
				}
				*o = attrs[i]
			}
			return fuse.OK
		}))
	}
}

// The limit is the same as of ReadDirPlus, without attributes.
func BenchmarkReadDir(b *testing.B) {
	for _, n := range []int{100, 5000} {
		f, dir := benchFS(b, n)
		name := fmt.Sprintf("module-%05d.js", n)
		micro.Run(b, fmt.Sprintf("entries=%d", n), micro.Work{Entries: n}, listed(dir, func(in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
			return f.ReadDir(nil, in, out)
		}), listed(dir, func(in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
			for i := in.Offset; i < uint64(n) && out.AddDirEntry(fuse.DirEntry{Mode: fuse.S_IFREG, Name: name, Ino: i + 1, Off: i + 1}); i++ {
			}
			return fuse.OK
		}))
	}
}

// The limit are the look-ups in the tree: of the directory by its number, of the name in it.
func BenchmarkLookup(b *testing.B) {
	const n = 5000
	f, dir := benchFS(b, n)
	for _, of := range []struct {
		name string
		has  string
	}{{"hit", "module-%05d.js"}, {"miss", "module-%05d.ts"}} {
		names := make([]string, n)
		for i := range names {
			names[i] = fmt.Sprintf(of.has, i)
		}
		in := fuse.InHeader{NodeId: dir}
		var out fuse.EntryOut
		var e manifest.Entry
		i := 0
		next := func() string {
			i = (i + 1009) % n
			return names[i]
		}
		micro.Run(b, "of="+of.name, micro.Work{Entries: 1}, func() error {
			return answer(f.Lookup(nil, &in, next(), &out))
		}, func() error {
			if err := f.entry(b.Context(), dir, &e); err != nil {
				return err
			}
			_, _ = f.tree.Lookup(b.Context(), manifest.Key{Dir: "node_modules", Name: next()}, &e)
			return nil
		})
	}
}

// The limit is the look-up in the tree.
func BenchmarkGetAttr(b *testing.B) {
	const n = 5000
	f, dir := benchFS(b, n)
	f.mounted.Store(true)
	var in fuse.GetAttrIn
	var out fuse.AttrOut
	var e manifest.Entry
	i := uint64(0)
	next := func() uint64 {
		i = (i + 1009) % n
		return dir + 1 + i
	}
	micro.Run(b, "entries=5000", micro.Work{Entries: 1}, func() error {
		in.NodeId = next()
		return answer(f.GetAttr(nil, &in, &out))
	}, func() error { return f.entry(b.Context(), next(), &e) })
}

// Reads of 128 KiB of a file whose chunks are at hand. The limit is the copy into the
// kernel's buffer, which we are spared where the bytes lie in one chunk.
func BenchmarkRead(b *testing.B) {
	const size, whole = 128 << 10, 1 << 20
	w := newWorld()
	w.file("large", 0, piece{data: string(make([]byte, whole))}, piece{data: string(make([]byte, whole))})
	w.build(b)
	tree, err := manifest.NewTree(w.manifest.Root, w.source())
	if err != nil {
		b.Fatal(err)
	}
	f := newFS(b.Context(), w.manifest, tree, w, &Options{})
	f.ahead = newAhead(b.Context(), f, func(uint64, int64, []byte) fuse.Status { return fuse.OK })
	b.Cleanup(f.ahead.wait)
	buf := make([]byte, size)
	for _, from := range []struct {
		name string
		off  uint64
	}{{"one", 256 << 10}, {"two", whole - size/2}} {
		in := fuse.ReadIn{InHeader: fuse.InHeader{NodeId: 2}, Offset: from.off, Size: size}
		micro.Run(b, "chunks="+from.name, micro.Work{Bytes: size}, func() error {
			_, s := f.Read(nil, &in, buf)
			return answer(s)
		}, micro.Copy(buf))
	}
}
