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
		"chunk/wire": {},
		"chunk":      {"chunk/wire"},
		"remote":     {},
		"manifest":   {"chunk", "chunk/wire"},
		"index":      {"chunk", "chunk/wire"},
		"fusefs":     {"chunk", "manifest"},
		"engine":     {"chunk", "chunk/wire", "manifest", "index", "remote", "fusefs"},
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
			continue
		}
		seen++
		for _, i := range p.Imports {
			if dep, ours := strings.CutPrefix(i, module); ours && !slices.Contains(may, dep) {
				t.Errorf("%s imports %s", p.ImportPath, i)
			}
		}
	}
	if seen < 6 {
		t.Errorf("go list knows %d of the packages", seen)
	}
}
