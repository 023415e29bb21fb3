//go:build linux

package fusefs

import (
	"strings"
	"testing"

	"github.com/snapctl/snapctl/manifest"
)

// TestViewAttributes: how attributes show, and that each is found by the name that it
// shows under, and by no other.
func TestViewAttributes(t *testing.T) {
	long := strings.Repeat("x", manifest.MaxXattrName-len("trusted.overlay."))
	names := []string{
		"trusted.overlay.opaque", "trusted.overlay.overlay.x", "trusted.overlay." + long, "user.overlay.opaque", "user.overlay.", "user.x",
		"user.fuseoverlayfs.opaque", "user.containers.override_stat", "security.capability",
	}
	for view, want := range map[View][]string{
		Plain: names,
		BelowTrusted: {
			"trusted.overlay.overlay.opaque", "trusted.overlay.overlay.overlay.x", "", "user.overlay.opaque", "user.overlay.", "user.x",
			"user.fuseoverlayfs.opaque", "user.containers.override_stat", "security.capability",
		},
		BelowUser: {
			"trusted.overlay.opaque", "trusted.overlay.overlay.x", "trusted.overlay." + long, "user.overlay.overlay.opaque", "user.overlay.overlay.", "user.x",
			"user.fuseoverlayfs.opaque", "user.containers.override_stat", "security.capability",
		},
		BelowFuse: {"", "", "", "", "", "user.x", "", "user.containers.override_stat", "security.capability"},
	} {
		for i, name := range names {
			shown := view.attr(name, false)
			if shown != want[i] {
				t.Errorf("view %d: %s shows as %q, not %q", view, name, shown, want[i])
			}
			if shown != "" && view.attrOf(shown, false) != name {
				t.Errorf("view %d: %s is taken for %q, not %s", view, shown, view.attrOf(shown, false), name)
			}
			if shown != name && view.attrOf(name, false) == name {
				t.Errorf("view %d: %s is found by its own name", view, name)
			}
		}
	}
	if shown := BelowFuse.attr("user.containers.override_stat", true); shown != "" {
		t.Errorf("of the root shows %q", shown)
	}
}
