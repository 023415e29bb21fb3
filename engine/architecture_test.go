package engine_test

import (
	"encoding/json"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// TestImports pins which package may import which: see ARCHITECTURE.md.
func TestImports(t *testing.T) {
	const module = "github.com/snapctl/snapctl/"
	allowed := map[string][]string{
		"remote/disk":       {},
		"chunk/lru":         {},
		"chunk/wire":        {},
		"chunk":             {"chunk/wire"},
		"remote":            {"remote/disk"},
		"remote/diskcache":  {"remote/disk", "chunk/lru", "remote"},
		"remote/remotetest": {"remote/disk", "remote"},
		"manifest":          {"chunk", "chunk/wire"},
		"index":             {"chunk", "chunk/wire", "remote/disk"},
		"fusefs":            {"chunk", "chunk/lru", "manifest"},

		"engine/snapshot":          {"manifest"},
		"engine/internal/fsys":     {"engine/snapshot", "remote/disk", "manifest", "remote"},
		"engine/internal/local":    {},
		"engine/internal/flow":     {},
		"engine/internal/progress": {"engine/snapshot"},
		"engine/internal/ignore":   {"engine/internal/fsys", "engine/snapshot", "manifest"},
		"engine/internal/crypt":    {"chunk", "chunk/wire", "engine/internal/local", "engine/snapshot", "manifest"},
		"engine/internal/repo": {
			"chunk", "chunk/wire", "index", "manifest", "remote", "remote/diskcache", "engine/snapshot",
			"engine/internal/crypt", "engine/internal/fsys", "engine/internal/local",
		},
		"engine/internal/access": {"chunk", "chunk/wire", "manifest", "engine/internal/crypt", "engine/internal/repo"},
		"engine/internal/read": {
			"chunk", "chunk/lru", "manifest", "remote", "remote/diskcache", "engine/snapshot",
			"engine/internal/access", "engine/internal/flow", "engine/internal/repo",
		},
		"engine/internal/write": {
			"chunk", "index", "manifest", "remote", "engine/snapshot",
			"engine/internal/flow", "engine/internal/fsys", "engine/internal/progress", "engine/internal/repo",
		},
		"engine/internal/gc": {
			"chunk", "chunk/wire", "index", "manifest", "remote", "engine/snapshot", "engine/internal/access",
			"engine/internal/flow", "engine/internal/progress", "engine/internal/repo", "engine/internal/write",
		},
		"engine/internal/retain": {"manifest", "remote", "engine/snapshot", "engine/internal/repo", "engine/internal/write"},
		"engine/internal/check": {
			"chunk", "chunk/lru", "index", "manifest", "remote", "engine/snapshot", "engine/internal/access",
			"engine/internal/crypt", "engine/internal/flow", "engine/internal/gc", "engine/internal/local",
			"engine/internal/progress", "engine/internal/read", "engine/internal/repo", "engine/internal/retain",
			"engine/internal/write",
		},
		"engine/internal/transfer": {
			"chunk", "manifest", "remote", "engine/snapshot", "engine/internal/crypt", "engine/internal/gc",
			"engine/internal/progress", "engine/internal/read", "engine/internal/repo", "engine/internal/retain",
			"engine/internal/write",
		},
		"engine/view": {
			"manifest", "engine/snapshot", "engine/internal/ignore", "engine/internal/read", "engine/internal/repo",
		},
		"engine": {
			"chunk", "remote/disk", "manifest", "remote", "remote/diskcache", "fusefs", "engine/snapshot",
			"engine/internal/access", "engine/internal/check", "engine/internal/crypt", "engine/internal/flow",
			"engine/internal/fsys", "engine/internal/gc", "engine/internal/ignore", "engine/internal/local",
			"engine/internal/progress", "engine/internal/read", "engine/internal/repo", "engine/internal/retain",
			"engine/internal/transfer", "engine/internal/write", "engine/view",
		},

		"cmd/snapctl/internal/ui":         {"engine/snapshot"},
		"cmd/snapctl/internal/man":        {},
		"cmd/snapctl/internal/listing":    {"cmd/snapctl/internal/ui", "engine", "manifest"},
		"cmd/snapctl/internal/secret":     {"chunk", "cmd/snapctl/internal/ui", "engine"},
		"cmd/snapctl/internal/background": {"chunk", "cmd/snapctl/internal/secret", "cmd/snapctl/internal/ui", "engine"},
		"cmd/snapctl/internal/keeper":     {"chunk", "engine", "fusefs"},
		"cmd/snapctl/internal/doctor":     {"cmd/snapctl/internal/ui", "engine", "fusefs", "remote"},
		"cmd/snapctl": {
			"chunk", "manifest", "remote", "fusefs", "engine", "cmd/snapctl/internal/background",
			"cmd/snapctl/internal/doctor", "cmd/snapctl/internal/keeper", "cmd/snapctl/internal/listing",
			"cmd/snapctl/internal/man", "cmd/snapctl/internal/secret", "cmd/snapctl/internal/ui",
		},
	}
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", module+"...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	seen := 0
	for d := json.NewDecoder(strings.NewReader(string(out))); d.More(); {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := d.Decode(&p); err != nil {
			t.Fatal(err)
		}
		may, ok := allowed[strings.TrimPrefix(p.ImportPath, module)]
		if !ok {
			if strings.HasPrefix(p.ImportPath, module+"engine") || strings.HasPrefix(p.ImportPath, module+"cmd/") {
				t.Errorf("what may %s import?", p.ImportPath)
			}
			continue
		}
		seen++
		for _, i := range p.Imports {
			if dep, ours := strings.CutPrefix(i, module); ours && !slices.Contains(may, dep) {
				t.Errorf("%s imports %s", p.ImportPath, i)
			}
		}
	}
	if seen != len(allowed) {
		t.Errorf("go list knows %d of the %d packages", seen, len(allowed))
	}
}
