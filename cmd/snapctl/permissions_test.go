//go:build linux

package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/snapctl/snapctl/remote/remotetest"
)

// permitted runs commands as users of an S3 server.
type permitted struct {
	*testing.T
	server *remotetest.Server
	dir    string
	user   string
}

func (p *permitted) must(err error) {
	p.Helper()
	if err != nil {
		p.Fatal(err)
	}
}

// become has what follows be done by a new user with that policy; "" for the administrator.
func (p *permitted) become(name, policy string) {
	p.Helper()
	c := p.server.Credentials
	if policy != "" {
		var err error
		c, err = p.server.AddUser(p.Context(), name, policy)
		p.must(err)
	}
	p.user = name
	p.Setenv("AWS_ACCESS_KEY_ID", c.AccessKeyID)
	p.Setenv("AWS_SECRET_ACCESS_KEY", c.SecretAccessKey)
	p.Setenv("SNAPCTL_CACHE_DIR", filepath.Join(p.dir, "cache of "+name))
}

// may runs a command that has to succeed, and gives what it prints.
func (p *permitted) may(args ...string) string {
	p.Helper()
	var out, errs bytes.Buffer
	e := processEnv()
	e.stdout, e.stderr = &out, &errs
	if code := execute(p.Context(), e, args); code != exitDone {
		p.Errorf("%s: %q: exit code %d\n%s", p.user, args, code, &errs)
	}
	return strings.TrimSpace(out.String())
}

// mayNot runs a command that has to be refused.
func (p *permitted) mayNot(args ...string) {
	p.Helper()
	var errs bytes.Buffer
	e := processEnv()
	e.stdout, e.stderr = &errs, &errs
	code := execute(p.Context(), e, args)
	if said := errs.String(); code != exitFailed || !strings.Contains(said, "access denied") || !strings.HasSuffix(said, "\nsee: snapctl help permissions\n") {
		p.Errorf("%s: %q: exit code %d\n%s", p.user, args, code, said)
	}
}

// mayMount mounts a snapshot, which another process serves, and reads a file of it.
func (p *permitted) mayMount(id, file, want string) {
	p.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil || os.Geteuid() != 0 {
		return
	}
	self, err := os.Executable()
	p.must(err)
	mnt := filepath.Join(p.dir, "mnt")
	p.must(os.MkdirAll(mnt, 0o755))
	for _, args := range [][]string{{"mount", id, mnt}, {"umount", mnt}} {
		if out, err := (&exec.Cmd{Path: self, Args: append([]string{"snapctl"}, args...)}).CombinedOutput(); err != nil {
			p.Errorf("%s: %q: %v\n%s", p.user, args, err, out)
		}
		if args[0] == "mount" {
			if text, err := os.ReadFile(filepath.Join(mnt, file)); string(text) != want || err != nil {
				p.Errorf("%s: %q, %v", p.user, text, err)
			}
		}
	}
	if left, _ := filepath.Glob(filepath.Join(p.server.Dir(), "app/leases/*/*")); len(left) > 0 {
		p.Errorf("%s: %v is left", p.user, left)
	}
}

// TestPermissions: who has the policies of snapctl help permissions can do what is said
// there, and nothing else.
func TestPermissions(t *testing.T) {
	page, err := helpPages.ReadFile("help/permissions.md")
	if err != nil {
		t.Fatal(err)
	}
	policies := regexp.MustCompile(`(?m)^    \{\n(?:     .*\n)*    \}\n`).FindAllString(string(page), -1)
	if len(policies) != 2 {
		t.Fatalf("%d policies", len(policies))
	}
	p := &permitted{T: t, server: remotetest.StartVersityGW(t), dir: t.TempDir()}
	for name, value := range map[string]string{
		"SNAPCTL_REPO": p.server.URL("app"), "SNAPCTL_STATE_DIR": filepath.Join(p.dir, "state"),
		"AWS_SESSION_TOKEN": "", "AWS_PROFILE": "", "SNAPCTL_PASSPHRASE_FILE": "", "SNAPCTL_IDENTITY_FILE": "",
	} {
		t.Setenv(name, value)
	}
	src := filepath.Join(p.dir, "src")
	p.must(os.Mkdir(src, 0o755))
	p.must(os.WriteFile(filepath.Join(src, "a"), []byte("one"), 0o644))

	p.become("maintainer", "")
	p.may("init")
	id := p.may("create", "--name", "app", src)

	p.become("reader", policies[0])
	for _, args := range [][]string{
		{"list"}, {"show", "app"}, {"ls", "app"}, {"cat", "app:a"}, {"log", "app"}, {"stats"}, {"verify", "--read-data"},
		{"restore", "app", filepath.Join(p.dir, "out")}, {"gc", "--dry-run"}, {"prune", "--keep-last", "1", "--dry-run"}, {"repair"},
	} {
		p.may(args...)
	}
	p.mayMount(id, "a", "one")
	p.must(os.WriteFile(filepath.Join(src, "b"), []byte("two"), 0o644))
	for _, args := range [][]string{{"create", src}, {"rm", "app"}, {"rename", "app", "other"}, {"gc"}} {
		p.mayNot(args...)
	}

	p.become("sandbox", policies[1])
	for _, args := range [][]string{
		{"list"}, {"create", "--name", "mine", "--ttl", "7d", src}, {"rename", "mine", "yours"}, {"pin", "yours"},
		{"tag", "yours", "a=b"}, {"restore", "yours", filepath.Join(p.dir, "again")},
	} {
		p.may(args...)
	}
	p.mayMount(id, "a", "one")
	for _, args := range [][]string{{"rm", "app"}, {"rm", "yours"}, {"prune", "--keep-last", "1", "--group-by", "all", "--name", "app", "--name", "yours"}} {
		p.mayNot(args...)
	}

	p.become("maintainer", "")
	p.may("verify", "--read-data")
	p.may("rm", "app", "yours")
	p.may("gc")
}
