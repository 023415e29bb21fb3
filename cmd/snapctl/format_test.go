package main

import (
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/snapctl/snapctl/engine"
)

func TestQuoting(t *testing.T) {
	for _, c := range []struct{ in, printable, quoted, cell string }{
		{"", "", `""`, "-"},
		{"plain", "plain", "plain", "plain"},
		{"-", "-", "-", `"-"`},
		{"two words", "two words", "two words", `"two words"`},
		{"größe 日本", "größe 日本", "größe 日本", `"größe 日本"`},
		{`say "x"`, `say "x"`, `"say \"x\""`, `"say \"x\""`},
		{"a\nb", `a\nb`, `"a\nb"`, `"a\nb"`},
		{"\x1b[2Jgone", `\x1b[2Jgone`, `"\x1b[2Jgone"`, `"\x1b[2Jgone"`},
		{"it's\r", `it's\r`, `"it's\r"`, `"it's\r"`},
		{"\xff\xef", `\xff\xef`, `"\xff\xef"`, `"\xff\xef"`},
		{"\u202eevil", `\u202eevil`, `"\u202eevil"`, `"\u202eevil"`},
		{"\u009b31m", `\u009b31m`, `"\u009b31m"`, `"\u009b31m"`},
		{"\uFFFD", "\uFFFD", "\uFFFD", "\uFFFD"},
	} {
		if got := printable(c.in); got != c.printable {
			t.Errorf("printable(%q) = %s; want %s", c.in, got, c.printable)
		}
		if got := quoted(c.in); got != c.quoted {
			t.Errorf("quoted(%q) = %s; want %s", c.in, got, c.quoted)
		}
		if got := cell(c.in); got != c.cell {
			t.Errorf("cell(%q) = %s; want %s", c.in, got, c.cell)
		}
	}
}

func TestShellQuote(t *testing.T) {
	for in, want := range map[string]string{
		"/srv/repo":                 "/srv/repo",
		"s3://b/p?endpoint=http://": "'s3://b/p?endpoint=http://'",
		"it's":                      `'it'\''s'`,
		"":                          "''",
		"~/x":                       "'~/x'",
	} {
		if got := shellQuote(in); got != want {
			t.Errorf("shellQuote(%q) = %s; want %s", in, got, want)
		}
	}
}

func TestTable(t *testing.T) {
	table := table{right: []bool{false, true, false}}
	table.add("ID", "SIZE", "DIR")
	table.add("größe", "1 B", "/a")
	table.add("x", "1,024 KiB", "-")
	want := "ID          SIZE  DIR\n" +
		"größe        1 B  /a\n" +
		"x      1,024 KiB  -\n"
	if got := table.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestHumanFigures(t *testing.T) {
	for want, got := range map[string]string{
		"0 files":        plural(0, "file"),
		"1 file":         plural(1, "file"),
		"12,345 files":   plural(12345, "file"),
		"2 directories":  plural(2, "directory"),
		"1 directory":    plural(1, "directory"),
		"827 MiB":        size(827 << 20),
		"0 B":            size(-1),
		"2m5s":           round(125*time.Second + 499*time.Millisecond).String(),
		"2.1s":           round(2123 * time.Millisecond).String(),
		"340ms":          round(340123 * time.Microsecond).String(),
		"a=1, b=2 and 3": tagList(map[string]string{"b": "2 and 3", "a": "1"}, ", "),
	} {
		if got != want {
			t.Errorf("%q; want %q", got, want)
		}
	}
}

func TestExitCode(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, exitDone},
		{errors.New("x"), exitFailed},
		{engine.ErrNotInitialised, exitFailed},
		{engine.ErrExists, exitFailed},
		{engine.ErrAmbiguous, exitFailed},
		{engine.ErrUnsupported, exitFailed},
		{engine.ErrInvalid, exitUsage},
		{&usageError{err: errors.New("x")}, exitUsage},
		{&hintError{err: &usageError{err: errors.New("x")}}, exitUsage},
		{errIncomplete, exitIncomplete},
		{engine.ErrNotFound, exitNotFound},
		{errNothingYet, exitNotFound},
		{engine.ErrExpired, exitExpired},
		{engine.ErrIntegrity, exitIntegrity},
		{&outputError{syscall.EPIPE}, exitPipe},
		{&outputError{syscall.ENOSPC}, exitFailed},
		{syscall.EPIPE, exitFailed}, // of a connection
	} {
		err := c.err
		if err != nil {
			err = fmt.Errorf("doing a thing: %w", err)
		}
		if got := exitCode(err); got != c.want {
			t.Errorf("exitCode(%v) = %d; want %d", err, got, c.want)
		}
	}
}

func TestSeparate(t *testing.T) {
	a, b, c := errors.New("a"), errors.New("b\nb"), errors.New("c")
	for want, err := range map[string]error{
		"a":        a,
		"a|b\nb":   errors.Join(a, b),
		"a|b\nb|c": errors.Join(errors.Join(a, b), nil, c),
		"c":        errors.Join(c),
		"a: c":     fmt.Errorf("%w: %w", a, c),
		"a|c: a":   errors.Join(a, fmt.Errorf("%w: %w", c, a)),
		"x: a\nc":  fmt.Errorf("x: %w", errors.Join(a, c)),
	} {
		var got []string
		for _, e := range separate(err) {
			got = append(got, e.Error())
		}
		if strings.Join(got, "|") != want {
			t.Errorf("%q; want %q", got, want)
		}
	}
}

func TestParseHandles(t *testing.T) {
	const a, b = "0193a5b2-7c1e-7d43-9a55-0c8b1f6e2a00", "0193a5b2-7c1f-7d43-9a55-0c8b1f6e2a01"
	for in, want := range map[string]string{
		"app~1\n":                         "app~1",
		" latest":                         "latest",
		"two words\r\nx\n\n\ny":           "two words|x|y",
		`{"id":"` + a + `","dir":"/x"}`:   a,
		"{\n  \"id\": \"" + a + "\"\n}\n": a,
		`[{"id":"` + a + `"},{"id":"` + b + `","files":1}]`: a + "|" + b,
		`{"id":"` + a + `"}` + "\n" + `{"id":"` + b + `"}`:  a + "|" + b,
		`{"id":"` + a + `"}{"id":"` + b + `"} app`:          a + "|" + b + "|app",
		"[]": "",
	} {
		got, err := parseHandles([]byte(in))
		if strings.Join(refsOf(got), "|") != want || err != nil {
			t.Errorf("parseHandles(%q) = %q, %v; want %s", in, got, err, want)
		}
	}
	for _, in := range []string{"", " \n", "{", "{}", `{"id":null}`, `{"id":1}`, `{"id":"app"}`, `[1]`, `[{"id":"` + a + `"},{}]`, `["` + a + `"]`} {
		if got, err := parseHandles([]byte(in)); err == nil {
			t.Errorf("parseHandles(%q) = %q", in, got)
		}
	}
	for dir, want := range map[string]string{`"/x/y"`: "/x/y", `"relative"`: "", `""`: "", "1": "", "null": "", `"/\ufffd"`: ""} {
		got, err := parseHandles([]byte(`{"id":"` + a + `","dir":` + dir + `}`))
		if err != nil || len(got) != 1 || got[0] != (handle{a, want}) {
			t.Errorf("a handle with the dir %s is %v, %v", dir, got, err)
		}
	}
}

func TestVersionFrom(t *testing.T) {
	info := func(module string, settings ...debug.BuildSetting) func() (*debug.BuildInfo, bool) {
		return func() (*debug.BuildInfo, bool) {
			return &debug.BuildInfo{Main: debug.Module{Version: module}, Settings: settings}, true
		}
	}
	revision := debug.BuildSetting{Key: "vcs.revision", Value: "0123456789abcdef0123"}
	for _, c := range []struct {
		want    string
		release string
		info    func() (*debug.BuildInfo, bool)
	}{
		{"v1.2.3", "v1.2.3", info("v1.0.0", revision)},
		{"v1.0.0", "", info("v1.0.0", revision)},
		{"dev-0123456789ab", "", info("(devel)", revision)},
		{"dev-0123456789ab-modified", "", info("", revision, debug.BuildSetting{Key: "vcs.modified", Value: "true"})},
		{"dev", "", info("(devel)")},
		{"dev", "", func() (*debug.BuildInfo, bool) { return nil, false }},
	} {
		if got := versionFrom(stamp{version: c.release}, c.info); got.Version != c.want {
			t.Errorf("%s; want %s", got.Version, c.want)
		}
	}
}

// TestVersionStamp: what a release was stamped with counts more than what Go knows.
func TestVersionStamp(t *testing.T) {
	built := func() (*debug.BuildInfo, bool) {
		return &debug.BuildInfo{Settings: []debug.BuildSetting{
			{Key: "vcs.revision", Value: "built"}, {Key: "vcs.time", Value: "2026-01-02T03:04:05Z"}, {Key: "vcs.modified", Value: "true"},
		}}, true
	}
	if v := versionFrom(stamp{}, built); v.Commit != "built" || v.Time != "2026-01-02T03:04:05Z" || !v.Modified {
		t.Errorf("%+v", v)
	}
	v := versionFrom(stamp{version: "v1.2.3", commit: "released", time: "2025-01-02T03:04:05Z"}, built)
	if v.Version != "v1.2.3" || v.Commit != "released" || v.Time != "2025-01-02T03:04:05Z" || v.Modified {
		t.Errorf("%+v", v)
	}
}
