package main

import (
	"testing"
	"time"
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
