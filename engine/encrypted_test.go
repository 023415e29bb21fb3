//go:build linux

package engine

import (
	"flag"
	"strings"
	"sync"
	"testing"

	"filippo.io/age"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/snapshot"
)

var allEncrypted = flag.Bool("encrypted", false, "run tests on encrypted repositories, as TestEncrypted does some")

// onEncrypted reports whether the repositories of a test are to be encrypted.
func onEncrypted(t testing.TB) bool {
	return *allEncrypted || strings.HasPrefix(t.Name(), "TestEncrypted/")
}

// testIdentity opens them.
var testIdentity = sync.OnceValue(func() *age.X25519Identity {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		panic(err)
	}
	return id
})

// initOf is how such a test makes a repository, and keyed how it opens one.
func initOf(t testing.TB) *snapshot.InitOptions {
	if !onEncrypted(t) {
		return nil
	}
	return &snapshot.InitOptions{Keys: []*snapshot.NewKey{{Recipient: testIdentity().Recipient()}}}
}

// keyed completes options to open a repository of a test.
func keyed(t testing.TB, opts *Options) *Options {
	if opts.patience == (repo.Patience{}) {
		opts.patience = calm()
	}
	if onEncrypted(t) {
		opts.Identities = []age.Identity{testIdentity()}
	}
	return opts
}

// plainOnly skips a test that counts requests, or forges what is sealed.
func plainOnly(t testing.TB) {
	t.Helper()
	if onEncrypted(t) {
		t.Skip("not for an encrypted repository")
	}
}

// TestEncrypted runs what others test on encrypted repositories. All that can be runs
// with: go test ./engine -encrypted
func TestEncrypted(t *testing.T) {
	for name, f := range map[string]func(*testing.T){
		"Fidelity":           TestFidelity,
		"FailAtEveryRequest": TestFailAtEveryRequest,
		"Damage":             TestDamagedPack,
		"WrongBytes":         TestWrongBytes,
		"Segment":            TestDamagedSegment,
		"Diff":               TestDiff,
		"Files":              TestFSEverything,
		"Mount":              TestMountFidelity,
		"MountWrongBytes":    TestMountWrongBytes,
		"MountRelocated":     TestMountRelocated,
		"Profile":            TestProfile,
		"Shared":             TestSharedProcesses,
		"Fork":               TestFork,
		"ForkProcesses":      TestForkProcesses,
		"Overlay":            TestOverlayByHand,
		"Verify":             TestRestoreVerify,
		"VerifyFindsFiles":   TestVerifyFindsFiles,
		"RepairNotes":        TestRepairNotes,
		"Usage":              TestUsage,
		"Change":             TestChange,
	} {
		if raced && name != "Files" && name != "Overlay" && name != "Shared" && name != "FailAtEveryRequest" {
			continue // who runs side by side with whom is the same as without encryption
		}
		t.Run(name, f)
	}
}
