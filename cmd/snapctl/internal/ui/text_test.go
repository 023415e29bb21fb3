package ui

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
		if got := Printable(c.in); got != c.printable {
			t.Errorf("printable(%q) = %s; want %s", c.in, got, c.printable)
		}
		if got := Quoted(c.in); got != c.quoted {
			t.Errorf("quoted(%q) = %s; want %s", c.in, got, c.quoted)
		}
		if got := Cell(c.in); got != c.cell {
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
		if got := ShellQuote(in); got != want {
			t.Errorf("shellQuote(%q) = %s; want %s", in, got, want)
		}
	}
}

func TestHumanFigures(t *testing.T) {
	for want, got := range map[string]string{
		"0 files":        Plural(0, "file"),
		"1 file":         Plural(1, "file"),
		"12,345 files":   Plural(12345, "file"),
		"2 directories":  Plural(2, "directory"),
		"1 directory":    Plural(1, "directory"),
		"827 MiB":        Size(827 << 20),
		"0 B":            Size(-1),
		"2m5s":           Round(125*time.Second + 499*time.Millisecond).String(),
		"2.1s":           Round(2123 * time.Millisecond).String(),
		"340ms":          Round(340123 * time.Microsecond).String(),
		"a=1, b=2 and 3": TagList(map[string]string{"b": "2 and 3", "a": "1"}, ", "),
	} {
		if got != want {
			t.Errorf("%q; want %q", got, want)
		}
	}
}
