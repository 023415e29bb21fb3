//go:build linux

package engine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"runtime/metrics"
	"testing"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/chunk/wire"
	"github.com/snapctl/snapctl/engine/internal/check"
	"github.com/snapctl/snapctl/engine/internal/retain"
	"github.com/snapctl/snapctl/engine/internal/transfer"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/engine/view"
	"github.com/snapctl/snapctl/manifest"
	"github.com/zeebo/blake3"
)

// counts are those of a manifest's info that count something, in the order of the format.
func counts(i *manifest.Info) []byte {
	var b []byte
	for _, n := range []uint64{i.Entries, i.Files, i.Bytes, i.NewBytes, i.StoredBytes, i.Skipped, i.Unreadable} {
		b = binary.AppendUvarint(b, n)
	}
	var flags byte
	if i.Xattrs {
		flags |= 1
	}
	if i.HardLinks {
		flags |= 2
	}
	return append(b, flags)
}

// putForged puts a manifest whose info was changed after it was encoded, with right
// checksums: what Encode refuses to write.
func putForged(t testing.TB, r *Repository, m *manifest.Manifest, change func(*manifest.Info)) manifest.ID {
	t.Helper()
	b, err := m.Encode(r.repo.Codec)
	must(t, err)
	stored := int(binary.LittleEndian.Uint32(b[16:]))
	info, err := r.repo.Codec.For(chunk.UseManifestInfo, nil).Decode(nil, b[32:32+stored], int(binary.LittleEndian.Uint32(b[20:])))
	must(t, err)
	rest, ok := bytes.CutSuffix(info, counts(&m.Info))
	if !ok {
		t.Fatal("an info does not end in its counts")
	}
	forged := m.Info
	change(&forged)
	info = append(bytes.Clone(rest), counts(&forged)...)
	out := bytes.Clone(b[:32])
	newInfo := r.repo.Codec.For(chunk.UseManifestInfo, nil).Encode(nil, info)
	tree, err := r.repo.Codec.For(chunk.UseManifestTree, sum(b[32:32+stored])).Decode(nil, b[64+stored:len(b)-32], int(binary.LittleEndian.Uint32(b[28:])))
	must(t, err)
	tree = r.repo.Codec.For(chunk.UseManifestTree, sum(newInfo)).Encode(nil, tree)
	for at, n := range map[int]int{16: len(newInfo), 20: len(info), 24: len(tree)} {
		binary.LittleEndian.PutUint32(out[at:], uint32(n))
	}
	out = append(out, newInfo...)
	out = append(out, sum(out)...)
	out = append(out, tree...)
	out = append(out, sum(out)...)
	must(t, r.repo.Store.Put(t.Context(), m.ID.ObjectName(), out))
	return m.ID
}

func sum(b []byte) []byte {
	s := blake3.Sum256(b)
	return s[:]
}

// allocated is how many bytes this process has allocated in all.
func allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

// TestHostileManifestCounts: no number of a manifest is believed before it was held against the
// others, and none makes anybody take memory for it. Each is met in every command that
// reads the snapshot.
func TestHostileManifestCounts(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := p.files("src", map[string]string{"f": "contents of a file", "g": "of another", "d/h": "of a third"})
	good := complete(t, r, src, nil)
	honest, err := r.repo.Manifest(t.Context(), good.ID)
	must(t, err)
	tr, err := manifest.NewTree(honest.Root, r.repo)
	must(t, err)
	var f manifest.Entry
	_, err = tr.Lookup(t.Context(), manifest.Key{Name: "f"}, &f)
	must(t, err)

	// A root page above one leaf, which is a chunk of the repository, and says that it
	// holds so many entries.
	inner := func(entries uint64, raw uint32) []byte {
		b := []byte{2, 1, 1}
		b = append(b, f.Extents[0].Pack[:]...)
		b = append(b, 1, 0)
		for _, n := range []uint32{16, raw, raw} {
			b = binary.AppendUvarint(b, uint64(n))
		}
		b = append(append(b, 1, 0), f.Extents[0].ID[:]...)
		b = append(binary.AppendUvarint(b, entries), 0)
		return wire.AppendBytes(wire.AppendBytes(b, ""), "")
	}
	for name, c := range map[string]struct {
		root []byte // nil for the honest one
		info func(*manifest.Info)
		fine bool // nothing but what a listing shows depends on it
	}{
		"as many files as entries":    {nil, func(i *manifest.Info) { i.Files = i.Entries }, false},
		"more files than entries":     {nil, func(i *manifest.Info) { i.Files = i.Entries + 1 }, false},
		"2^62 files":                  {nil, func(i *manifest.Info) { i.Files = 1 << 62 }, false},
		"2^40 files, 2^41 entries":    {nil, func(i *manifest.Info) { i.Files, i.Entries = 1<<40, 1<<41 }, false},
		"2^62 entries":                {nil, func(i *manifest.Info) { i.Entries = 1 << 62 }, false},
		"one entry more":              {nil, func(i *manifest.Info) { i.Entries++ }, false},
		"one entry less":              {nil, func(i *manifest.Info) { i.Entries-- }, false},
		"no entries":                  {nil, func(i *manifest.Info) { i.Entries, i.Files, i.Bytes = 0, 0, 0 }, false},
		"bytes of no files":           {nil, func(i *manifest.Info) { i.Files = 0 }, false},
		"attributes of none":          {nil, func(i *manifest.Info) { i.Xattrs = true }, false},
		"hard links of none":          {nil, func(i *manifest.Info) { i.HardLinks = true }, false},
		"hard links of one file":      {nil, func(i *manifest.Info) { i.Files, i.HardLinks = 1, true }, false},
		"2^62 bytes":                  {nil, func(i *manifest.Info) { i.Bytes = 1 << 62 }, true},
		"2^62 new bytes":              {nil, func(i *manifest.Info) { i.NewBytes, i.StoredBytes = 1<<62, 1<<62 }, true},
		"2^62 skipped, unreadable":    {nil, func(i *manifest.Info) { i.Skipped, i.Unreadable = 1<<62, 1<<62 }, true},
		"a file less":                 {nil, func(i *manifest.Info) { i.Files-- }, true},
		"a root of 2^47 entries":      {inner(1<<47, 100), func(i *manifest.Info) { i.Entries, i.Files = 1<<47, 1<<46 }, false},
		"a root of 2^47, long leaf":   {inner(1<<47, chunk.MaxFrame), func(i *manifest.Info) { i.Entries, i.Files = 1<<47, 1<<46 }, false},
		"a root as full as can be":    {inner(600_000, chunk.MaxFrame), func(i *manifest.Info) { i.Entries, i.Files = 600_000, 599_999 }, false},
		"a root of one entry too few": {inner(1, 100), func(i *manifest.Info) { i.Entries, i.Files, i.Bytes = 1, 0, 0 }, false},
	} {
		t.Run(name, func(t *testing.T) {
			m := &manifest.Manifest{Info: honest.Info, Root: honest.Root, Packs: honest.Packs}
			m.ID, m.Created = manifest.NewID(0), r.repo.Now()
			if c.root != nil {
				m.Root = c.root
			}
			id := putForged(t, r, m, c.info).String()
			before := allocated()
			for _, o := range []RestoreOptions{{}, {Into: true}, {Into: true, Delete: true}, {Delete: true}, {Include: []string{"*"}}, {Verify: true}} {
				dst := p.path("dst")
				must(t, os.RemoveAll(dst))
				if o.Into || o.Delete {
					p.files("dst", map[string]string{"old": "1"})
				}
				_, err := r.Restore(t.Context(), id, dst, &o)
				if c.fine {
					must(t, err)
				} else if !errors.Is(err, snapshot.ErrIntegrity) {
					t.Errorf("%+v: %v", o, err)
				}
			}
			if os.Geteuid() == 0 {
				for what, err := range readHostile(t, p, r, id, good.ID.String()) {
					if (err == nil) != c.fine {
						t.Errorf("%s: %v", what, err)
					}
				}
			}
			if _, err := r.VerifyDir(t.Context(), id, src, nil, func(*view.Change) error { return nil }); (err == nil) != c.fine {
				t.Errorf("verify with a directory: %v", err)
			}
			to := (&place{t, t.TempDir(), t.TempDir(), p.cache}).init()
			if _, err := transfer.Run(t.Context(), r.repo, to.repo, []string{id}, nil); (err == nil) != c.fine {
				t.Errorf("copy: %v", err)
			}
			if report, err := check.Verify(t.Context(), r.repo, nil, nil); !c.fine && err == nil && len(report.Findings) == 0 {
				t.Error("verify finds nothing")
			}
			// As a parent it does no harm.
			res, err := p.open("parent").Create(t.Context(), src, &CreateOptions{Parent: id})
			if err == nil {
				p.check(res.ID, scan(t, src))
				_, err = retain.Remove(t.Context(), r.repo, res.ID.String())
			}
			if err != nil && (c.fine || !errors.Is(err, snapshot.ErrIntegrity)) {
				t.Errorf("create with it as parent: %v", err)
			}
			if n := allocated() - before; n > 1<<30 {
				t.Errorf("%d MiB were allocated", n>>20)
			}
			must(t, r.repo.Store.Delete(t.Context(), m.ID.ObjectName()))
		})
	}
}
