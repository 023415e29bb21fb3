package repo

import "github.com/snapctl/snapctl/manifest"

// ManifestNames are the names that a manifest may lie under.
func ManifestNames(id manifest.ID) []string {
	if name := id.ObjectName(); name != id.KeptName() {
		return []string{name, id.KeptName()}
	}
	return []string{id.ObjectName()}
}
