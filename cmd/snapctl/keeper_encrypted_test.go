//go:build linux

package main

import (
	"os"
	"syscall"
	"testing"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/secret"
	"github.com/snapctl/snapctl/engine"
)

// TestKeeperEncrypted: a server that takes over has the key from its keeper, and asks
// nobody.
func TestKeeperEncrypted(t *testing.T) {
	k := newKeepTest(t)
	k.must(os.WriteFile(k.at("passphrase"), []byte("open sesame\n"), 0o600))
	k.env = append(k.env, "SNAPCTL_REPO=secret", secret.PassphraseFileEnv+"=passphrase")
	k.run("init", "--encrypt")
	k.run("create", "--name", "app", "tree")
	m := k.mount()
	k.must(os.Remove(k.at("passphrase")))
	for range 2 {
		k.kill(m.Pid, syscall.SIGKILL)
		m = k.successor(m)
	}
	for name := range k.files {
		k.must(k.read("mnt/" + name))
	}
	if m.State != engine.MountServing {
		t.Errorf("%+v", m)
	}
	k.run("umount", "mnt")
}
