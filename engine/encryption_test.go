//go:build linux

package engine

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/access"
	"github.com/snapctl/snapctl/engine/internal/check"
	"github.com/snapctl/snapctl/engine/internal/crypt"
	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/internal/retain"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/engine/view"
	"github.com/snapctl/snapctl/index"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
	"github.com/zeebo/blake3"
)

// vault is an encrypted repository in memory.
type vault struct {
	*place
	mem      *remotetest.Memory
	identity *age.X25519Identity
	caches   int
}

const vaultPassphrase = "open sesame"

func newVault(t testing.TB) *vault {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	must(t, err)
	v := &vault{place: newPlace(t), mem: remotetest.NewMemory(), identity: id}
	r, err := Init(t.Context(), "", &snapshot.InitOptions{Keys: []*snapshot.NewKey{
		{Recipient: id.Recipient(), Label: "laptop"},
		{Passphrase: vaultPassphrase, WorkFactor: 4},
	}}, v.options())
	must(t, err)
	must(t, r.Close())
	return v
}

// options are those of somebody who has the identity, with an empty cache.
func (v *vault) options() *Options {
	v.caches++
	return &Options{CacheDir: v.path(fmt.Sprintf("cache-%d", v.caches)), Store: v.mem, Identities: []age.Identity{v.identity}}
}

func (v *vault) open() *Repository {
	v.Helper()
	r, err := Open(v.Context(), "", v.options())
	must(v, err)
	v.Cleanup(func() { r.Close() })
	return r
}

// only opens with nothing but what f sets.
func (v *vault) only(f func(*Options)) (*Repository, error) {
	v.caches++
	opts := &Options{CacheDir: v.path(fmt.Sprintf("cache-%d", v.caches)), Store: v.mem}
	f(opts)
	r, err := Open(v.Context(), "", opts)
	if err == nil {
		v.Cleanup(func() { r.Close() })
	}
	return r, err
}

func says(passphrase string) func(context.Context, string) (string, error) {
	return func(context.Context, string) (string, error) { return passphrase, nil }
}

// TestPassphraseTypedSlowly: what was looked up before the passphrase was there is looked
// up again, or prune would go by a list that is older than a pin.
func TestPassphraseTypedSlowly(t *testing.T) {
	v := newVault(t)
	v.files("src", map[string]string{"f": "x"})
	other := v.open()
	for name, patience := range map[string]repo.Patience{"slowly": {Ahead: 1}, "at once": calm()} {
		var made *CreateResult
		r, err := v.only(func(o *Options) {
			o.List, o.patience = true, patience
			o.Passphrase = func(ctx context.Context, _ string) (string, error) {
				made = create(t, other, v.path("src"), nil)
				return vaultPassphrase, nil
			}
		})
		must(t, err)
		lists := r.Requests().List
		all, err := r.List(t.Context(), nil)
		must(t, err)
		again := r.Requests().List > lists
		if slow := name == "slowly"; again != slow || slow && (len(all) == 0 || all[0].ID != made.ID) {
			t.Errorf("%s: listed again: %v; there are %d snapshots", name, again, len(all))
		}
	}
}

// objects gives the content of all objects.
func memObjects(t testing.TB, s remote.Store) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	must(t, s.List(t.Context(), "", func(o remote.Info) error {
		b, err := s.Get(t.Context(), o.Name)
		all[o.Name] = b
		return err
	}))
	return all
}

// put puts an object in the place of whatever there is.
func put(t testing.TB, s remote.Store, name string, b []byte) {
	t.Helper()
	must(t, s.Delete(t.Context(), name))
	must(t, s.Put(t.Context(), name, b))
}

func TestUnlock(t *testing.T) {
	v := newVault(t)
	stranger, err := age.GenerateX25519Identity()
	must(t, err)
	var key *chunk.Key
	for name, f := range map[string]func(*Options){
		"identity":            func(o *Options) { o.Identities = []age.Identity{stranger, v.identity} },
		"passphrase":          func(o *Options) { o.Passphrase = says(vaultPassphrase) },
		"identity, then that": func(o *Options) { o.Identities, o.Passphrase = []age.Identity{stranger}, says(vaultPassphrase) },
		"passphrase not needed": func(o *Options) {
			o.Identities = []age.Identity{v.identity}
			o.Passphrase = func(context.Context, string) (string, error) { panic("asked") }
		},
	} {
		r, err := v.only(f)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if key == nil {
			key = r.Key()
		}
		if !r.Encrypted() || *r.Key() != *key {
			t.Errorf("%s: another key", name)
		}
	}
	if n := v.open().Requests().Ops; n[remote.OpList].Calls != 1 || n[remote.OpGet].Calls != 3 {
		t.Errorf("with an identity, and two keys: %v", n)
	}
	r, err := v.only(func(o *Options) { o.Key = key })
	must(t, err)
	if n := r.Requests().Ops; n[remote.OpList].Calls != 0 || n[remote.OpGet].Calls != 1 {
		t.Errorf("with the key: %v", n)
	}
	*r.Key() = chunk.Key{}
	if *r.Key() != *key {
		t.Error("the repository's key was changed from outside")
	}
	for name, c := range map[string]struct {
		f    func(*Options)
		text string
	}{
		"nothing":          {func(*Options) {}, "neither a passphrase nor an identity"},
		"wrong passphrase": {func(o *Options) { o.Passphrase = says("open") }, "wrong passphrase"},
		"no passphrase":    {func(o *Options) { o.Passphrase = says("") }, "passphrase"},
		"stranger":         {func(o *Options) { o.Identities = []age.Identity{stranger} }, "none of the identities"},
		"stranger, wrong":  {func(o *Options) { o.Identities, o.Passphrase = []age.Identity{stranger}, says("x") }, "wrong passphrase, and none"},
		"another key":      {func(o *Options) { o.Key = chunk.NewKey() }, "that of another"},
		"stranger, nobody": {func(o *Options) {
			o.Identities = []age.Identity{stranger}
			o.Passphrase = func(context.Context, string) (string, error) { return "", errAway }
		}, snapshot.ErrNoIdentity.Error() + "; passphrase: " + errAway.Error()},
		"nobody to ask":     {func(o *Options) { o.Passphrase = func(context.Context, string) (string, error) { return "", errAway } }, errAway.Error()},
		"wants it, nothing": {func(o *Options) { o.Encrypted = true }, "neither"},
	} {
		if _, err := v.only(c.f); !errors.Is(err, snapshot.ErrLocked) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestKeys(t *testing.T) {
	v := newVault(t)
	r := v.open()
	ctx := t.Context()
	keys, err := r.Keys(ctx)
	must(t, err)
	if len(keys) != 2 {
		t.Fatalf("%d keys", len(keys))
	}
	var first, pass *snapshot.KeyInfo
	for _, k := range keys {
		if k.Kind == "recipient" {
			first = k
		} else {
			pass = k
		}
	}
	if first == nil || pass == nil || first.Label != "laptop" || first.Recipient != v.identity.Recipient().String() || pass.Recipient != "" {
		t.Fatalf("%+v, %+v", first, pass)
	}
	hybrid, err := age.GenerateHybridIdentity()
	must(t, err)
	added, err := r.AddKey(ctx, &snapshot.NewKey{Recipient: hybrid.Recipient(), Label: "ci"})
	must(t, err)
	if _, err := v.only(func(o *Options) { o.Identities = []age.Identity{hybrid} }); err != nil {
		t.Error(err)
	}
	if keys, err = r.Keys(ctx); err != nil || !slices.ContainsFunc(keys, func(k *snapshot.KeyInfo) bool { return *k == *added }) {
		t.Errorf("%v: %+v is not among them", err, added)
	}
	for name, k := range map[string]*snapshot.NewKey{
		"neither":     {},
		"both":        {Passphrase: "x", Recipient: v.identity.Recipient()},
		"label":       {Passphrase: "x", Label: "a\nb"},
		"work":        {Passphrase: "x", WorkFactor: 31},
		"less work":   {Passphrase: "x", WorkFactor: -1},
		"own scrypt":  {Recipient: &age.ScryptRecipient{}},
		"long label ": {Passphrase: "x", Label: strings.Repeat("x", 257)},
	} {
		if _, err := r.AddKey(ctx, k); !errors.Is(err, snapshot.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for id, want := range map[string]error{"": snapshot.ErrInvalid, "abc": snapshot.ErrInvalid, strings.Repeat("0", 64): snapshot.ErrNoKey, "nothex": snapshot.ErrNoKey} {
		if _, err := r.RemoveKey(ctx, id); !errors.Is(err, want) {
			t.Errorf("%q: %v", id, err)
		}
	}
	if k, err := r.RemoveKey(ctx, pass.ID[:8]); err != nil || k.ID != pass.ID {
		t.Errorf("%+v, %v", k, err)
	}
	if _, err := v.only(func(o *Options) { o.Passphrase = says(vaultPassphrase) }); !errors.Is(err, snapshot.ErrLocked) {
		t.Error("with the passphrase that was removed:", err)
	}
	if _, err := r.RemoveKey(ctx, added.ID); err != nil {
		t.Error(err)
	}
	// One of another repository counts for nothing.
	other := newVault(t)
	for name, b := range memObjects(t, other.mem) {
		if strings.HasPrefix(name, crypt.KeyPrefix) {
			must(t, v.mem.Put(ctx, name, b))
		}
	}
	if _, err := r.RemoveKey(ctx, first.ID); !errors.Is(err, snapshot.ErrLastKey) {
		t.Error("the last key:", err)
	}
	if keys, err := r.Keys(ctx); len(keys) != 1 || !errors.Is(err, snapshot.ErrIntegrity) {
		t.Errorf("%d keys, %v", len(keys), err)
	}
	if _, err := v.only(func(o *Options) { o.Identities = []age.Identity{v.identity, other.identity} }); err != nil {
		t.Error("beside keys of another repository:", err)
	}
	if _, err := v.only(func(o *Options) { o.Identities = []age.Identity{other.identity} }); !errors.Is(err, snapshot.ErrIntegrity) {
		t.Error("with the key of another repository:", err)
	}

	plain := newPlace(t).init()
	if _, err := plain.Keys(ctx); !*allEncrypted && !errors.Is(err, snapshot.ErrNotEncrypted) {
		t.Error(err)
	}
}

// TestKeysRemovedAtOnce: whoever removes keys at the same time, one is left.
func TestKeysRemovedAtOnce(t *testing.T) {
	for range times(20, 500) {
		v := newVault(t)
		r := v.open()
		keys, err := r.Keys(t.Context())
		must(t, err)
		var g sync.WaitGroup
		for _, k := range keys {
			g.Go(func() {
				if _, err := r.RemoveKey(t.Context(), k.ID); err != nil && !fsys.IsAny(err, snapshot.ErrLastKey, snapshot.ErrNoKey, remote.ErrNotExist) {
					t.Error(err)
				}
			})
		}
		g.Wait()
		if left, err := r.Keys(t.Context()); err != nil || len(left) == 0 {
			t.Fatalf("%d keys are left, %v", len(left), err)
		}
	}
}

// TestInitEncrypted: whatever fails, no repository is left that nobody can open, and
// one that is there is left alone.
func TestInitEncrypted(t *testing.T) {
	v := newVault(t)
	before := memObjects(t, v.mem)
	keys := []*snapshot.NewKey{{Recipient: v.identity.Recipient()}}
	if _, err := Init(t.Context(), "", &snapshot.InitOptions{Keys: keys}, v.options()); !errors.Is(err, snapshot.ErrExists) {
		t.Error(err)
	}
	if after := memObjects(t, v.mem); len(after) != len(before) {
		t.Errorf("%d objects, %d before", len(after), len(before))
	}
	for n := 1; ; n++ {
		mem := remotetest.NewMemory()
		var count atomic.Int64
		opts := v.options()
		opts.Store = remotetest.NewFaulty(mem, func(remote.Op, string) remotetest.Fault {
			if count.Add(1) == int64(n) {
				return remotetest.Fault{Err: errAway, Done: n%2 == 0}
			}
			return remotetest.Fault{}
		})
		_, err := Init(t.Context(), "", &snapshot.InitOptions{Keys: keys}, opts)
		if count.Load() < int64(n) {
			must(t, err)
			break
		}
		if _, there := memObjects(t, mem)[repo.ConfigName]; there {
			opts := v.options()
			opts.Store = mem
			_, err = Open(t.Context(), "", opts)
			must(t, err)
		} else if err == nil {
			t.Errorf("request %d failed, and init did not", n)
		}
	}
	// Somebody else is faster: the keys are those of his config.
	mem := remotetest.NewMemory()
	fast, slow := v.options(), v.options()
	fast.Store = mem
	slow.Store = remotetest.NewFaulty(mem, func(op remote.Op, name string) remotetest.Fault {
		if op == remote.OpPut && name == repo.ConfigName {
			r, err := Init(t.Context(), "", &snapshot.InitOptions{Keys: keys}, fast)
			must(t, err)
			must(t, r.Close())
		}
		return remotetest.Fault{}
	})
	if _, err := Init(t.Context(), "", &snapshot.InitOptions{Keys: keys}, slow); !errors.Is(err, snapshot.ErrExists) {
		t.Error("the slower one:", err)
	}
	opts := v.options()
	opts.Store = mem
	r, err := Open(t.Context(), "", opts)
	must(t, err)
	if all, err := r.Keys(t.Context()); err != nil || len(all) != 1 {
		t.Errorf("%d keys, %v", len(all), err)
	}
	opts = v.options()
	opts.Store = remotetest.NewMemory()
	if _, err := Init(t.Context(), "", nil, opts); !errors.Is(err, snapshot.ErrNotEncrypted) {
		t.Error("without keys, but with an identity:", err)
	}
}

// TestNothingInClear looks for what a stranger could learn: names, contents, tags, and
// the ids of contents that he has.
func TestNothingInClear(t *testing.T) {
	secrets := [][]byte{[]byte("secret-name"), []byte("secret-file"), []byte("secret-tag"), []byte("secret-dir"), []byte("secret contents"), []byte("laptop")}
	large := random(7, 300_000)
	secrets = append(secrets, large[1000:1020])
	id := blake3.Sum256([]byte("secret contents"))
	secrets = append(secrets, id[:], []byte(hex.EncodeToString(id[:])))
	look := func(t *testing.T, where string, found map[string][]byte) (seen int) {
		for name, b := range found {
			for _, s := range secrets {
				if bytes.Contains(b, s) || strings.Contains(name, string(s)) {
					seen++
					if where != "" {
						t.Errorf("%q is in clear in %s %s", s, where, name)
					}
				}
			}
		}
		return seen
	}
	fill := func(r *Repository, p *place) {
		content := map[string]string{"secret-file": "secret contents", "large": string(large)}
		for i := range 2000 { // more than the root page holds
			content[fmt.Sprintf("%d-secret-file", i)] = ""
		}
		src := p.files("secret-dir", content)
		snap := complete(p, r, src, &CreateOptions{Name: "secret-name", Tags: map[string]string{"secret-tag": "secret-tag"}})
		_, err := r.List(p.Context(), nil)
		must(p, err)
		_, err = view.Open(p.Context(), r.repo, snap.ID.String())
		must(p, err)
		must(p, access.Put(p.Context(), r.repo, &access.Profile{Snapshot: snap.ID, Frames: []access.Frame{{Pack: chunk.PackID{1}, Offset: 16, Stored: 1}}}))
		_, err = retain.Change(p.Context(), r.repo, &snapshot.Changes{SetTags: map[string]string{"secret-more": "secret-value"}}, snap.ID.String())
		must(p, err)
		must(p, r.Close())
	}
	v := newVault(t)
	if r := v.open(); r.repo.Hasher.Sum(large) == (&chunk.Hasher{}).Sum(large) {
		t.Error("chunks have the ids that anybody can compute")
	}
	fill(v.open(), v.place)
	all := memObjects(t, v.mem)
	look(t, "object", all)
	kinds := map[string]int{}
	for name, b := range all {
		kinds[strings.Split(name, "/")[0]]++
		if strings.HasPrefix(name, repo.ProfilePrefix) && bytes.Contains(b, []byte(access.ProfileMagic)) {
			t.Error("the profile is in clear")
		}
	}
	if kinds["packs"] < 2 || kinds["index"] == 0 || kinds["manifests"] == 0 || kinds["hot"] == 0 || kinds["keys"] != 2 {
		t.Errorf("not all kinds of objects are there: %v", kinds)
	}
	cached := map[string][]byte{}
	for i := range v.caches {
		must(t, filepath.WalkDir(v.path(fmt.Sprintf("cache-%d", i+1)), func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) || err == nil && !d.Type().IsRegular() {
				return nil
			}
			if err != nil {
				return err
			}
			cached[path], err = os.ReadFile(path)
			return err
		}))
	}
	if len(cached) < 3 {
		t.Errorf("%d files are cached", len(cached))
	}
	look(t, "cached file", cached)

	// What finds nothing here would find something.
	p, mem := newPlace(t), remotetest.NewMemory()
	r, err := Init(t.Context(), "", nil, &Options{CacheDir: p.cache, Store: mem})
	must(t, err)
	fill(r, p)
	if look(t, "", memObjects(t, mem)) == 0 {
		t.Error("nothing is found without encryption either")
	}
}

// TestCachePrivate: what is cached of a repository no other user can read.
func TestCachePrivate(t *testing.T) {
	v := newVault(t)
	r := v.open()
	src := v.files("src", map[string]string{"f": string(random(1, 300_000))})
	id := complete(t, r, src, nil).ID
	restore(t, r, id.String(), v.path("out"), nil)
	must(t, r.Close())
	var files int
	for i := range v.caches {
		base := v.path(fmt.Sprintf("cache-%d", i+1))
		must(t, filepath.WalkDir(base, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			must(t, err)
			info, err := d.Info()
			must(t, err)
			if d.IsDir() {
				if info.Mode().Perm()&0o077 == 0 && path != base {
					files++
					return fs.SkipDir // nobody gets in
				}
				return nil
			}
			if files++; info.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s has mode %v", path, info.Mode())
			}
			return nil
		}))
	}
	if files == 0 {
		t.Error("nothing is cached")
	}
}

// TestTampered does to every object what whoever keeps it could do. What is read then
// is right, or nothing.
func TestTampered(t *testing.T) {
	v := newVault(t)
	r := v.open()
	content := map[string]string{"a": string(random(1, 40_000)), "d/b": "some text", "d/c": string(random(2, 300_000))}
	src := v.files("src", content)
	complete(t, r, src, &CreateOptions{Name: "one"})
	writeFile(t, src+"/a", random(3, 40_000))
	id := complete(t, r, src, &CreateOptions{Name: "two"}).ID
	must(t, r.Close())
	want := scan(t, src)
	good := memObjects(t, v.mem)

	kind := func(name string) string { return strings.Split(name, "/")[0] }
	changes := map[string]func(name string, b []byte) []byte{
		"a bit at the beginning": func(_ string, b []byte) []byte { b[0] ^= 1; return b },
		"a bit in the middle":    func(_ string, b []byte) []byte { b[len(b)/2] ^= 0x10; return b },
		"a bit at the end":       func(_ string, b []byte) []byte { b[len(b)-1] ^= 0x80; return b },
		"cut":                    func(_ string, b []byte) []byte { return b[:len(b)/2] },
		"longer":                 func(_ string, b []byte) []byte { return append(b, 0) },
		"zeros":                  func(_ string, b []byte) []byte { clear(b); return b },
		"another":                func(name string, b []byte) []byte { return another(good, name, kind) },
	}
	found := map[string]int{}
	for name := range good {
		for what, change := range changes {
			b := change(name, slices.Clone(good[name]))
			if b == nil || bytes.Equal(b, good[name]) {
				continue
			}
			put(t, v.mem, name, b)
			out := v.path("out")
			err := v.useAll(id, out)
			switch {
			case err == nil:
				compare(t, want, scan(t, out))
			case !fsys.IsAny(err, snapshot.ErrIntegrity):
				t.Errorf("%s, %s: %v", name, what, err)
			default:
				found[kind(name)]++
			}
			must(t, os.RemoveAll(out))
			put(t, v.mem, name, good[name])
		}
	}
	for _, k := range []string{"packs", "manifests", "config"} {
		if found[k] == 0 {
			t.Errorf("nothing was found out about %s", k)
		}
	}
}

// another gives an object of the same kind in the place of one.
func another(all map[string][]byte, name string, kind func(string) string) []byte {
	for other, b := range all {
		if other != name && kind(other) == kind(name) && !bytes.Equal(b, all[name]) {
			return slices.Clone(b)
		}
	}
	return nil
}

// useAll lists, restores and makes a snapshot.
func (v *vault) useAll(id manifest.ID, out string) error {
	r, err := v.only(func(o *Options) { o.Identities = []age.Identity{v.identity} })
	if err != nil {
		return err
	}
	defer r.Close()
	if _, err := r.List(v.Context(), nil); err != nil {
		return err
	}
	if _, err := r.Restore(v.Context(), id.String(), out, nil); err != nil {
		return err
	}
	_, err = r.Keys(v.Context())
	return err
}

// TestReplayed puts parts of valid objects together, with right checksums: what only
// the seals find out.
func TestReplayed(t *testing.T) {
	v := newVault(t)
	r := v.open()
	src := v.files("src", map[string]string{"a": "1"})
	old := complete(t, r, src, nil).ID
	writeFile(t, src+"/a", []byte("2"))
	id := complete(t, r, src, nil).ID
	good := memObjects(t, v.mem)

	// An old manifest under another id.
	fails := func(what string) {
		t.Helper()
		for _, r := range []*Repository{r, v.open()} {
			if _, err := r.Restore(t.Context(), id.String(), v.path("out"), nil); !errors.Is(err, snapshot.ErrIntegrity) {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
	put(t, v.mem, id.ObjectName(), good[old.ObjectName()])
	fails("an old manifest")
	put(t, v.mem, id.ObjectName(), good[id.ObjectName()])

	// A profile of another snapshot.
	b := (&access.Profile{Snapshot: old, Frames: []access.Frame{{Pack: chunk.PackID{1}, Offset: 16, Stored: 1}}, Bundle: nil}).EncodeHead()
	sealed := r.repo.SealObject(crypt.UseProfile, old.String(), b)
	if got, err := r.repo.OpenObject(crypt.UseProfile, old.String(), sealed); err != nil || !bytes.Equal(got, b) {
		t.Error(err)
	}
	if _, err := r.repo.OpenObject(crypt.UseProfile, id.String(), sealed); !errors.Is(err, snapshot.ErrIntegrity) {
		t.Error("a profile of another snapshot:", err)
	}
	if _, err := r.repo.OpenObject(crypt.UseKeyDetails, old.String(), sealed); !errors.Is(err, snapshot.ErrIntegrity) {
		t.Error("of another use:", err)
	}

	// The index of a pack in a segment as that of another.
	var segment *index.Segment
	for name, b := range good {
		if strings.HasPrefix(name, repo.SegmentPrefix) {
			s, err := index.DecodeSegment(r.repo.Codec, b)
			must(t, err)
			segment = s
		}
	}
	plain, err := chunk.NewCodec(1)
	must(t, err)
	if b, err := segment.Encode(r.repo.Codec); err != nil {
		t.Error(err)
	} else if _, err := index.DecodeSegment(plain, b); !errors.Is(err, index.ErrBadSegment) {
		t.Error("a sealed segment without the key:", err)
	}
	if b, err := segment.Encode(plain); err != nil {
		t.Error(err)
	} else if _, err := index.DecodeSegment(r.repo.Codec, b); !errors.Is(err, index.ErrBadSegment) {
		t.Error("a segment that somebody without the key made:", err)
	}
}

// TestConfigReplaced: nobody without the key can change the config, and a machine that
// has used a repository takes no other one in its place.
func TestConfigReplaced(t *testing.T) {
	p := newPlace(t)
	id, err := age.GenerateX25519Identity()
	must(t, err)
	keys := []*snapshot.NewKey{{Recipient: id.Recipient()}, {Passphrase: vaultPassphrase, WorkFactor: 4}}
	make := func(repo, cache string, keys []*snapshot.NewKey) {
		r, err := Init(t.Context(), p.path(repo), &snapshot.InitOptions{Keys: keys}, &Options{CacheDir: p.path(cache)})
		must(t, err)
		must(t, r.Close())
	}
	make("repo", "cache", keys)
	open := func(cache string, opts *Options) error {
		opts.CacheDir = p.path(cache)
		r, err := Open(t.Context(), p.repo, opts)
		if err == nil {
			must(t, r.Close())
		}
		return err
	}
	both := func() map[string]*Options {
		return map[string]*Options{
			"identity":   {Identities: []age.Identity{id}},
			"passphrase": {Passphrase: says(vaultPassphrase)},
		}
	}
	for name, opts := range both() {
		if err := open("used", opts); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}

	// Changed, with a right checksum.
	good, err := os.ReadFile(p.repo + "/" + repo.ConfigName)
	must(t, err)
	for name, change := range map[string]func(*repo.Config){
		"grace":   func(c *repo.Config) { c.GCGrace++ },
		"chunker": func(c *repo.Config) { c.Chunker.Min++ },
		"id":      func(c *repo.Config) { c.ID[0] ^= 1 },
		"mac":     func(c *repo.Config) { c.Encryption.MAC = strings.Repeat("0", 64) },
		"check":   func(c *repo.Config) { c.Encryption.KeyCheck = strings.Repeat("0", 32) },
	} {
		c, err := repo.DecodeConfig(good)
		must(t, err)
		change(c)
		rewrite(t, p.repo+"/"+repo.ConfigName, c.Encode())
		for with, opts := range both() {
			if err := open("new", opts); !errors.Is(err, snapshot.ErrIntegrity) {
				t.Errorf("%s, by %s: %v", name, with, err)
			}
		}
	}
	for name, change := range map[string]func(*repo.Config){
		"no hex":    func(c *repo.Config) { c.Encryption.MAC = strings.Repeat("g", 64) },
		"uppercase": func(c *repo.Config) { c.Encryption.MAC = strings.ToUpper(c.Encryption.MAC + "ab")[2:] },
		"short":     func(c *repo.Config) { c.Encryption.KeyCheck = "00" },
	} {
		c, err := repo.DecodeConfig(good)
		must(t, err)
		change(c)
		if _, err := repo.DecodeConfig(c.Encode()); !errors.Is(err, snapshot.ErrIntegrity) {
			t.Errorf("%s: %v", name, err)
		}
	}
	newer := bytes.Replace(good, []byte(crypt.SealAlgorithm), []byte("AES-512"), 1)
	if _, err := repo.DecodeConfig(newer); !errors.Is(err, snapshot.ErrUnsupported) {
		t.Errorf("another algorithm: %v", err)
	}
	rewrite(t, p.repo+"/"+repo.ConfigName, good)

	// Another repository in its place, which the same identity opens.
	must(t, os.Rename(p.repo, p.path("own")))
	make("forged", "elsewhere", keys)
	must(t, os.Rename(p.path("forged"), p.repo))
	for name, opts := range both() {
		if err := open("used", opts); !errors.Is(err, snapshot.ErrIntegrity) || !strings.Contains(err.Error(), p.path("used/encrypted")) {
			t.Errorf("another repository, by %s: %v", name, err)
		}
		if err := open("new-"+name, opts); err != nil {
			t.Errorf("on another machine, by %s: %v", name, err)
		}
	}
	// One without encryption.
	must(t, os.RemoveAll(p.repo))
	make("repo", "elsewhere-2", nil)
	if err := open("used", &Options{Passphrase: says(vaultPassphrase)}); !errors.Is(err, snapshot.ErrIntegrity) {
		t.Error("without encryption:", err)
	}
	for name, opts := range map[string]*Options{
		"identity": {Identities: []age.Identity{id}}, "wanted": {Encrypted: true}, "key": {Key: chunk.NewKey()},
	} {
		if err := open("new-2", opts); !errors.Is(err, snapshot.ErrNotEncrypted) {
			t.Errorf("without encryption, %s: %v", name, err)
		}
	}
	// Made anew by who uses it.
	must(t, os.RemoveAll(p.repo))
	make("repo", "used", nil)
	if err := open("used", &Options{}); err != nil {
		t.Error("made anew:", err)
	}
}

func rewrite(t testing.TB, path string, b []byte) {
	t.Helper()
	must(t, os.Chmod(path, 0o600))
	must(t, os.WriteFile(path, b, 0o600))
}

func TestKeyObject(t *testing.T) {
	id, err := age.GenerateX25519Identity()
	must(t, err)
	master := chunk.NewKey()
	d := &crypt.Details{Created: someTime(), Label: "label", Recipient: "age1"}
	k, err := crypt.WrapKey(master, crypt.RecipientKey, id.Recipient(), d)
	must(t, err)
	b := k.Encode()
	back, err := crypt.Decode(b)
	must(t, err)
	if back.Id != k.Id || !bytes.Equal(back.Encode(), b) {
		t.Error("it does not come back as it was")
	}
	got, err := back.Details(master)
	must(t, err)
	if *got != *d {
		t.Errorf("%+v, want %+v", got, d)
	}
	// Every byte counts.
	for i := range b {
		changed := slices.Clone(b)
		changed[i] ^= 1
		k, err := crypt.Decode(changed)
		if err != nil {
			continue
		}
		if _, err := k.Details(master); err == nil {
			t.Errorf("byte %d can be changed", i)
		}
	}
	if _, err := back.Details(chunk.NewKey()); !errors.Is(err, snapshot.ErrIntegrity) {
		t.Error("with another key:", err)
	}
}

func FuzzKeyObject(f *testing.F) {
	id, err := age.GenerateX25519Identity()
	must(f, err)
	k, err := crypt.WrapKey(&chunk.Key{1}, crypt.RecipientKey, id.Recipient(), &crypt.Details{Created: someTime(), Label: "x"})
	must(f, err)
	f.Add(k.Encode())
	f.Add([]byte(crypt.KeyMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := crypt.Decode(b)
		if err != nil {
			return
		}
		if !bytes.Equal(k.Encode(), b) {
			t.Error("it re-encodes to other bytes")
		}
		_, _ = k.Unwrap([]age.Identity{id})
	})
}

func FuzzKeyDetails(f *testing.F) {
	f.Add((&crypt.Details{Created: someTime(), Label: "x", Recipient: "age1"}).Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if d, err := crypt.DecodeKeyDetails(b); err == nil && !bytes.Equal(d.Append(nil), b) {
			t.Error("it re-encodes to other bytes")
		}
	})
}

// FuzzEncryptedConfig: what decodes re-encodes to the same bytes.
func FuzzEncryptedConfig(f *testing.F) {
	c, err := repo.NewConfig(nil)
	must(f, err)
	c.Encrypt(&chunk.Key{1})
	f.Add(c.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := repo.DecodeConfig(b); err == nil && !bytes.Equal(c.Encode(), b) {
			t.Error("it re-encodes to other bytes")
		}
	})
}

// TestKeyPassed: a key goes through JSON, as keepers pass it.
func TestKeyPassed(t *testing.T) {
	k := chunk.NewKey()
	b, err := json.Marshal(k)
	must(t, err)
	var back chunk.Key
	must(t, json.Unmarshal(b, &back))
	if back != *k {
		t.Error("another key comes back")
	}
}

// TestKeysVerified: key objects are part of the repository, and damaged ones are found.
func TestKeysVerified(t *testing.T) {
	v := newVault(t)
	r := v.open()
	complete(t, r, v.files("src", map[string]string{"a": "1"}), nil)
	clean(t, r, &snapshot.VerifyOptions{ReadData: 1})
	u, err := check.Usage(t.Context(), r.repo)
	must(t, err)
	if !slices.ContainsFunc(u.Objects, func(o snapshot.ObjectUsage) bool { return o.Kind == "keys" && o.Count == 2 }) {
		t.Errorf("%+v", u.Objects)
	}
	keys, err := r.Keys(t.Context())
	must(t, err)
	name := crypt.KeyPrefix + keys[0].ID
	alien := newVault(t)
	for other, b := range memObjects(t, alien.mem) {
		if strings.HasPrefix(other, crypt.KeyPrefix) { // valid, but of another repository
			put(t, v.mem, other, b)
		}
	}
	put(t, v.mem, name, append(memObjects(t, v.mem)[name], 0))
	put(t, v.mem, crypt.KeyPrefix+"note", nil)
	rep := verify(t, r, nil)
	if rep.Damaged() != 3 || len(rep.Findings) != 4 || !errors.Is(rep.Err(), snapshot.ErrIntegrity) {
		t.Errorf("%+v", rep.Findings)
	}
	for _, f := range rep.Findings {
		if f.Note != (f.Object == crypt.KeyPrefix+"note") {
			t.Errorf("%+v", f)
		}
	}
	// Without encryption they are nobody's.
	plain, err := Init(t.Context(), "", nil, &Options{CacheDir: v.path("plain"), Store: remotetest.NewMemory()})
	must(t, err)
	defer plain.Close()
	must(t, plain.repo.Store.Put(t.Context(), name, nil))
	if rep := verify(t, plain, nil); rep.Damaged() != 0 || len(rep.Findings) != 1 {
		t.Errorf("%+v", rep.Findings)
	}
}

func someTime() time.Time { return time.Unix(1_764_000_000, 0).UTC() }
