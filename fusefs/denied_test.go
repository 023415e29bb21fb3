//go:build linux

package fusefs

import (
	"os"
	"testing"
)

// TestDenied: what does not show to whom, and that nothing is denied to root.
func TestDenied(t *testing.T) {
	root, user := denied{}, denied{trusted: true, security: true, capability: true}
	namespace := denied{trusted: true, security: true}
	for _, x := range []struct {
		to   denied
		in   View
		name string
		want bool
	}{
		{root, BelowTrusted, "trusted.x", false},
		{root, BelowFuse, "security.ima", false},
		{namespace, Plain, "trusted.x", true},
		{namespace, Plain, "security.ima", false},
		{namespace, BelowUser, "trusted.overlay.opaque", true},
		{namespace, BelowUser, "security.ima", true},
		{namespace, BelowUser, "security.capability", false},
		{namespace, BelowFuse, "user.overlay.x", false},
		{user, BelowFuse, "security.capability", true},
		{user, BelowFuse, "system.posix_acl_access", false},
		{user, Plain, "security.capability", false},
	} {
		if got := x.to.withholds(x.in, x.name); got != x.want {
			t.Errorf("%+v, view %d: %s is withheld: %v", x.to, x.in, x.name, got)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("only root can make another user of itself")
	}
	onThread(func() {
		if got := deniedHere(); got != root {
			t.Errorf("%+v is denied to root", got)
		}
		if err := become(1000, 1000); err != nil {
			t.Error(err)
		}
		if got := deniedHere(); got != user {
			t.Errorf("%+v is denied to a user", got)
		}
	})
}
