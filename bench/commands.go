package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A commandRow is what one snapctl command asked of one bucket.
type commandRow struct {
	Command string `json:"command"`
	Cache   string `json:"cache"` // emptyCache or warmCache
	asked
	// Seen is what the server logged meanwhile. A mount goes on asking when it serves, so
	// there it is missing.
	Seen map[string]int `json:"seenByServer,omitempty"`
}

const (
	emptyCache = "empty"
	warmCache  = "warm"
)

// asked is what snapctl -vv says of its requests to one repository.
type asked struct {
	Repository string  `json:"-"`
	Put        int     `json:"put"`
	List       int     `json:"list"`
	Get        int     `json:"get"`
	Head       int     `json:"head"`
	Delete     int     `json:"delete"`
	Failed     int     `json:"failed"`
	Waits      int     `json:"waits"`
	Sent       int64   `json:"sentBytes"`
	Received   int64   `json:"receivedBytes"`
	Dollars    float64 `json:"dollars"`
}

// kinds are the counts by the words of requestKind.
func (a asked) kinds() map[string]int {
	all := map[string]int{}
	for kind, n := range map[string]int{"PUT": a.Put, "LIST": a.List, "GET": a.Get, "HEAD": a.Head, "DELETE": a.Delete} {
		if n > 0 {
			all[kind] = n
		}
	}
	return all
}

var logField = regexp.MustCompile(`(\w+)=("(?:[^"\\]|\\.)*"|\S*)`)

// parseAsked finds those lines of snapctl's log, of which there is one for each
// repository and, for a mount, one from when it served.
func parseAsked(log []byte) ([]asked, error) {
	var all []asked
	for line := range bytes.Lines(log) {
		if !bytes.Contains(line, []byte(" msg=requests ")) {
			continue
		}
		var a asked
		missing := map[string]any{
			"put": &a.Put, "list": &a.List, "get": &a.Get, "head": &a.Head, "delete": &a.Delete, "failed": &a.Failed, "waits": &a.Waits,
			"sent": &a.Sent, "received": &a.Received, "dollars": &a.Dollars, "repository": &a.Repository,
		}
		for _, f := range logField.FindAllSubmatch(line, -1) {
			key, value := string(f[1]), string(f[2])
			var err error
			switch p := missing[key].(type) {
			case *int:
				*p, err = strconv.Atoi(value)
			case *int64:
				*p, err = strconv.ParseInt(value, 10, 64)
			case *float64:
				*p, err = strconv.ParseFloat(value, 64)
			case *string:
				if *p = value; strings.HasPrefix(value, `"`) {
					*p, err = strconv.Unquote(value)
				}
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %w", bytes.TrimSpace(line), err)
			}
			delete(missing, key)
		}
		if len(missing) > 0 {
			return nil, fmt.Errorf("not all there: %s", bytes.TrimSpace(line))
		}
		all = append(all, a)
	}
	return all, nil
}

// commands is one pass through the commands, on a repository of its own.
type commands struct {
	*bench
	s3    *s3Server
	place place
	tree  string
	rows  []commandRow
}

// commandFiles is how many files the commands' tree has.
const commandFiles = 5000

// errNotTold is of a snapctl that does not count its requests.
var errNotTold = errors.New("this snapctl does not tell what it asks of a repository")

// countCommands runs each command once or twice against the far server, and keeps what
// it says of its requests.
func (b *bench) countCommands(ctx context.Context, s3 *s3Server) error {
	p, err := newPlace(b.runner, filepath.Join(b.work, "commands"))
	if err != nil {
		return err
	}
	defer removeAll(p.dir)
	defer os.RemoveAll(s3.root(bucketName, "commands"))
	c := &commands{bench: b, s3: s3, place: p, tree: filepath.Join(p.dir, "tree")}
	files := commandFiles
	if b.o.smoke {
		files /= 10
	}
	if _, err := b.generate(ctx, treeSpec{Files: files, Mean: 7_000}, c.tree); err != nil {
		return err
	}
	err = c.all(ctx)
	if errors.Is(err, errNotTold) {
		b.notef("no table of commands over S3: %v", err)
		return nil
	}
	b.commands = c.rows
	return err
}

// repo is the URL of a repository.
func (c *commands) repo(name string) string {
	return c.s3.bucket(c.s3.far, "commands/"+name).snapctlURL()
}

// A step is a command that is run once.
type step struct {
	name  string
	cache string
	args  []string
}

// steps runs commands in order.
func (c *commands) steps(ctx context.Context, steps ...step) error {
	for _, s := range steps {
		if _, err := c.run(ctx, s.name, s.cache, s.args...); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

func (c *commands) all(ctx context.Context) error {
	changed, err := c.allCreates(ctx)
	if err != nil {
		return err
	}
	if err := c.allReads(ctx, changed); err != nil {
		return err
	}
	target := func(n int) string { return filepath.Join(c.place.dir, "target"+strconv.Itoa(n)) }
	if err := c.steps(ctx,
		step{"restore", emptyCache, []string{"restore", "app", target(1)}},
		step{"restore", warmCache, []string{"restore", "app", target(2)}},
		step{"prune --dry-run", warmCache, []string{"prune", "--dry-run", "--keep-last", "1"}},
		step{"verify", warmCache, []string{"verify"}},
		step{"stats", warmCache, []string{"stats"}},
		step{"gc", warmCache, []string{"gc"}},
		step{"rm", warmCache, []string{"rm", "app~3"}},
	); err != nil {
		return err
	}
	if _, _, err := c.snapctl(ctx, "--repo", c.repo("copy"), "init"); err != nil {
		return fmt.Errorf("init: %w", err)
	}
	return c.steps(ctx, step{"copy", emptyCache, []string{"copy", "app", "--to", c.repo("copy")}})
}

// allCreates makes the repository and four snapshots in it, and gives the path of the
// file that changed in between.
func (c *commands) allCreates(ctx context.Context) (changed string, err error) {
	create := []string{"create", "--name", "app", c.tree}
	err = c.steps(ctx,
		step{"init", emptyCache, []string{"init"}},
		step{"create", emptyCache, create},
		step{"create again", warmCache, create},
	)
	if err != nil {
		return "", err
	}
	changed, err = c.change()
	if err != nil {
		return "", err
	}
	return changed, c.steps(ctx,
		step{"create, one file changed", warmCache, create},
		step{"create again, another machine", emptyCache, create},
	)
}

// allReads looks at the snapshots in all ways but a restore.
func (c *commands) allReads(ctx context.Context, changed string) error {
	if err := c.steps(ctx,
		step{"list", emptyCache, []string{"list"}},
		step{"list", warmCache, []string{"list"}},
	); err != nil {
		return err
	}
	out, err := c.run(ctx, "show", warmCache, "show", "--json", "app")
	if err != nil {
		return fmt.Errorf("show: %w", err)
	}
	var shown struct {
		ID string `json:"id"`
	}
	if err := json.Unmarshal(out, &shown); err != nil || shown.ID == "" {
		return fmt.Errorf("snapctl show said %q: %w", out, err)
	}
	if err := c.steps(ctx,
		step{"ls", emptyCache, []string{"ls", "app"}},
		step{"ls", warmCache, []string{"ls", "app"}},
		step{"cat of a file", emptyCache, []string{"cat", "app:" + changed}},
		step{"cat of a file", warmCache, []string{"cat", "app:" + changed}},
		step{"diff", emptyCache, []string{"diff", "app~2", "app"}},
		step{"diff", warmCache, []string{"diff", "app~2", "app"}},
	); err != nil {
		return err
	}
	if err := cannotMount(); err != nil {
		c.notef("mounting is not counted: %v", err)
		return nil
	}
	for _, s := range []step{
		{"mount by id", emptyCache, []string{shown.ID}}, {"mount by id", warmCache, []string{shown.ID}},
		{"mount by name", emptyCache, []string{"app"}}, {"mount by name", warmCache, []string{"app"}},
	} {
		if err := c.mount(ctx, s.name, s.cache, s.args[0]); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// change changes a file of the tree, and gives its path there.
func (c *commands) change() (string, error) {
	files, err := filepath.Glob(filepath.Join(c.tree, "node_modules", "*", "package.json"))
	if err == nil && len(files) == 0 {
		err = errors.New("the generated tree has no package.json")
	}
	if err != nil {
		return "", err
	}
	path, err := filepath.Rel(c.tree, files[0])
	if err != nil {
		return "", err
	}
	return path, os.WriteFile(files[0], []byte("{\"changed\": true}\n"), 0o644)
}

// snapctl runs it as a user does, and gives what it said on its two outputs.
func (c *commands) snapctl(ctx context.Context, args ...string) (stdout, stderr []byte, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.o.timeout, fmt.Errorf("took longer than %v", c.o.timeout))
	defer cancel()
	cmd := exec.CommandContext(ctx, c.ours.program, args...)
	ownGroup(cmd)
	cmd.Env = slices.Concat(c.runner.env, c.s3.bucket(c.s3.far, "").credentials(),
		[]string{"SNAPCTL_REPO=" + c.repo("repo"), "SNAPCTL_CACHE_DIR=" + c.place.local("cache"), "SNAPCTL_STATE_DIR=" + c.place.local("state")})
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return nil, nil, fmt.Errorf("%w\n%s", cmp.Or(context.Cause(ctx), err), &said)
	}
	return out.Bytes(), said.Bytes(), nil
}

// run runs a command, keeps a row for each repository, and gives what it printed.
func (c *commands) run(ctx context.Context, name, cache string, args ...string) ([]byte, error) {
	logged := c.s3.logged()
	rows, out, err := c.ask(ctx, name, cache, args...)
	if err != nil {
		return nil, err
	}
	want := 0
	for _, r := range rows {
		for _, n := range r.kinds() {
			want += n
		}
	}
	seen, err := c.seen(ctx, logged, want)
	if err != nil {
		return nil, err
	}
	if len(rows) == 1 { // the log does not tell one repository from another
		rows[0].Seen = seen
	}
	c.rows = append(c.rows, rows...)
	return out, nil
}

// ask runs a command, with the caches as they should be.
func (c *commands) ask(ctx context.Context, name, cache string, args ...string) ([]commandRow, []byte, error) {
	if cache == emptyCache {
		if err := removeAll(c.place.local("cache")); err != nil {
			return nil, nil, err
		}
	}
	stdout, stderr, err := c.snapctl(ctx, append([]string{"-vv"}, args...)...)
	if err != nil {
		return nil, nil, err
	}
	all, err := parseAsked(stderr)
	if err == nil && len(all) == 0 {
		err = errNotTold
	}
	if err != nil {
		return nil, nil, err
	}
	var rows []commandRow
	for _, a := range all {
		row := commandRow{Command: name, Cache: cache, asked: a}
		if len(all) > 1 {
			row.Command += ": " + map[bool]string{true: "to", false: "from"}[strings.Contains(a.Repository, "/copy?")]
		}
		rows = append(rows, row)
	}
	c.logf("s3     %-30s  %-5s  %s", name, cache, requestsText(rows[0].kinds()))
	return rows, stdout, nil
}

// seen is what the server has logged. It does so when an answer is out, so those that
// are said to have been sent are waited for.
func (c *commands) seen(ctx context.Context, since int64, want int) (map[string]int, error) {
	for deadline := time.Now().Add(10 * time.Second); ; {
		seen, err := c.s3.requests(since)
		if err != nil {
			return nil, err
		}
		n := 0
		for _, k := range seen {
			n += k
		}
		if n >= want || time.Now().After(deadline) {
			return seen, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// mount counts what a mount asks until it serves, and unmounts it.
func (c *commands) mount(ctx context.Context, name, cache, ref string) (err error) {
	dir := filepath.Join(c.place.dir, "mount")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	served := 0
	defer func() {
		err = errors.Join(err, unmount(dir, patience))
		if served != 0 && !gone(served, ending) {
			err = errors.Join(err, fmt.Errorf("process %d serves no mount and does not end", served))
		}
	}()
	rows, out, err := c.ask(ctx, name, cache, "mount", "--json", "--prefetch", "none", ref, dir)
	if err != nil {
		return err
	}
	var made struct {
		Pid int `json:"pid"`
	}
	if err := json.Unmarshal(out, &made); err != nil {
		return fmt.Errorf("snapctl mount said %q: %w", out, err)
	}
	served = made.Pid
	c.rows = append(c.rows, rows[0])
	return nil
}

// commandTable has a row for each command.
func commandTable(rows []commandRow) [][]string {
	table := [][]string{{"command", "cache", "PUT", "LIST", "GET", "HEAD", "DELETE", "waits", "sent", "received", "$ for 1000"}}
	for _, r := range rows {
		line := []string{r.Command, r.Cache}
		for _, n := range []int{r.Put, r.List, r.Get, r.Head, r.Delete} {
			text := ""
			if n > 0 {
				text = strconv.Itoa(n)
			}
			line = append(line, text)
		}
		line = append(line, strconv.Itoa(r.Waits), bytesText(r.Sent), bytesText(r.Received), fmt.Sprintf("%.4f", 1000*r.Dollars))
		table = append(table, line)
	}
	return table
}
