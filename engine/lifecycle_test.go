//go:build linux

package engine

import (
	"errors"
	"strings"
	"testing"

	"github.com/snapctl/snapctl/engine/internal/retain"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
)

func TestLifecycle(t *testing.T) {
	server := remotetest.StartLifecycleServer(t)
	rules, err := remote.OpenS3(t.Context(), server.Config("some/prefix"))
	must(t, err)
	bucket := struct {
		remote.Store
		remote.Lifecycler
	}{remotetest.NewMemory(), rules}
	p := newPlace(t)
	r, err := Init(t.Context(), "", nil, &Options{CacheDir: p.cache, Store: bucket})
	must(t, err)
	defer r.Close()
	const other = `<Rule><ID>snapctl-other</ID><Filter><Prefix>some/</Prefix></Filter><Status>Enabled</Status><Expiration><Days>1</Days></Expiration></Rule>`
	server.Set("<LifecycleConfiguration>"+other+"</LifecycleConfiguration>", "")
	holds := func(what string, l *snapshot.Lifecycle, err error, want snapshot.LifecycleState) {
		t.Helper()
		must(t, err)
		if l.Others != 1 || len(l.Rules) != len(manifest.Classes()) {
			t.Errorf("%s: %+v", what, l)
		}
		for i, rule := range l.Rules {
			class := manifest.Classes()[i]
			if rule.State != want || rule.Prefix != class.Prefix() || rule.Days <= class.Days() {
				t.Errorf("%s: %+v", what, rule)
			}
		}
	}
	l, err := retain.Lifecycle(t.Context(), r.repo)
	holds("at first", l, err, snapshot.LifecycleMissing)
	l, err = retain.ApplyLifecycle(t.Context(), r.repo)
	holds("applied", l, err, snapshot.LifecycleApplied)
	doc, _ := server.Doc()
	if !strings.Contains(doc, "<Prefix>some/prefix/manifests/ttl-7d/</Prefix>") || strings.Count(doc, r.ID().String()) != len(l.Rules) {
		t.Error(doc)
	}
	server.Set(strings.ReplaceAll(doc, "Enabled", "Disabled"), "")
	l, err = retain.Lifecycle(t.Context(), r.repo)
	holds("switched off", l, err, snapshot.LifecycleAltered)
	l, err = retain.ApplyLifecycle(t.Context(), r.repo)
	holds("applied again", l, err, snapshot.LifecycleApplied)

	// Another repository of the bucket has rules of its own.
	q, err := Init(t.Context(), "", nil, &Options{CacheDir: p.cache, Store: struct {
		remote.Store
		remote.Lifecycler
	}{remotetest.NewMemory(), rules}})
	must(t, err)
	defer q.Close()
	if l, err = retain.ApplyLifecycle(t.Context(), q.repo); err != nil || l.Others != 1+len(l.Rules) {
		t.Errorf("%+v, %v", l, err)
	}
	_, err = retain.RemoveLifecycle(t.Context(), q.repo)
	must(t, err)
	l, err = retain.RemoveLifecycle(t.Context(), r.repo)
	holds("removed", l, err, snapshot.LifecycleMissing)
	if doc, _ := server.Doc(); !strings.Contains(doc, "snapctl-other") || strings.Contains(doc, "ttl-") {
		t.Error(doc)
	}

	folder := newPlace(t).init()
	for what, f := range map[string]func() (*snapshot.Lifecycle, error){
		"show":   func() (*snapshot.Lifecycle, error) { return retain.Lifecycle(t.Context(), folder.repo) },
		"apply":  func() (*snapshot.Lifecycle, error) { return retain.ApplyLifecycle(t.Context(), folder.repo) },
		"remove": func() (*snapshot.Lifecycle, error) { return retain.RemoveLifecycle(t.Context(), folder.repo) },
	} {
		if l, err := f(); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s of a folder: %+v, %v", what, l, err)
		}
	}
}
