package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/snapctl/snapctl/engine"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
)

// TestLifecycleCommand: what a script cannot do, as versitygw has no lifecycle rules.
func TestLifecycleCommand(t *testing.T) {
	server := remotetest.StartLifecycleServer(t)
	rules, err := remote.OpenS3(t.Context(), server.Config(""))
	if err != nil {
		t.Fatal(err)
	}
	store := struct {
		remote.Store
		remote.Lifecycler
	}{remotetest.NewMemory(), rules}
	cache := t.TempDir()
	repo, err := engine.Init(t.Context(), "", nil, &engine.Options{CacheDir: cache, Store: store})
	if err != nil {
		t.Fatal(err)
	}
	repo.Close()
	do := func(args ...string) (string, string) {
		t.Helper()
		var out, errs bytes.Buffer
		e := processEnv()
		e.stdout, e.stderr = &out, &errs
		e.engine.Store = store
		args = append([]string{"--repo", "s3://bucket", "--cache-dir", cache, "--state-dir", t.TempDir()}, args...)
		if code := execute(t.Context(), e, args); code != exitDone {
			t.Errorf("%q: exit code %d\n%s", args, code, &errs)
		}
		return out.String(), errs.String()
	}
	n := len(manifest.Classes())
	out, said := do("lifecycle", "show")
	if strings.Count(out, " missing ") != n || said != "0 other rules in the bucket\n" {
		t.Errorf("%s%s", out, said)
	}
	out, _ = do("lifecycle", "apply")
	if strings.Count(out, " applied ") != n || !strings.Contains(out, "\nmanifests/ttl-30d/     31  applied  snapctl-") {
		t.Error(out)
	}
	out, said = do("lifecycle", "show", "--json")
	var l engine.Lifecycle
	if err := json.Unmarshal([]byte(out), &l); err != nil || len(l.Rules) != n || l.Rules[0].State != engine.LifecycleApplied || said != "" {
		t.Errorf("%v: %s%s", err, out, said)
	}
	out, _ = do("lifecycle", "remove")
	if doc, _ := server.Doc(); strings.Count(out, " missing ") != n || doc != "" {
		t.Errorf("%s%s", out, doc)
	}
}
