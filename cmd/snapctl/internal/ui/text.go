package ui

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/dustin/go-humanize"
)

// JSONLine is v as one line of JSON.
func JSONLine(v any) (string, error) {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return b.String(), err
}

// Printable escapes what a terminal or a line of a log would not take as text:
// names and paths hold any bytes, those that move the cursor too.
func Printable(s string) string {
	if IsPrintable(s) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case unicode.IsPrint(r):
			b.WriteRune(r)
		default:
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
		i += n
	}
	return b.String()
}

// IsPrintable reports whether Printable has nothing to escape.
func IsPrintable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// Quoted is s, as a Go string literal unless it is plain to see.
func Quoted(s string) string {
	if s != "" && IsPrintable(s) && !strings.ContainsAny(s, `"`) {
		return s
	}
	return strconv.Quote(s)
}

// Cell is s as a field of a table: never empty, and without spaces outside
// quotes.
func Cell(s string) string {
	switch {
	case s == "":
		return "-"
	case s == "-", strings.Contains(s, " "):
		return strconv.Quote(s)
	}
	return Quoted(s)
}

// ShellQuote is s as a word of a command that a person can copy.
func ShellQuote(s string) string {
	plain := func(r rune) bool {
		return r < utf8.RuneSelf && (unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune("/._-+:@%", r))
	}
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool { return !plain(r) }) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// TagList is tags in the order of their keys: k=v,k2=v2.
func TagList(tags map[string]string, sep string) string {
	var words []string
	for _, key := range slices.Sorted(maps.Keys(tags)) {
		words = append(words, key+"="+tags[key])
	}
	return strings.Join(words, sep)
}

// Size is a number of bytes: 827 MiB.
func Size(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

// Plural counts things: 1 file, 2,000 files.
func Plural(n int64, thing string) string {
	if n != 1 {
		if strings.HasSuffix(thing, "y") {
			thing = strings.TrimSuffix(thing, "y") + "ie"
		}
		thing += "s"
	}
	return humanize.Comma(n) + " " + thing
}

// Round gives a duration the digits that a person reads.
func Round(d time.Duration) time.Duration {
	switch {
	case d >= 10*time.Second:
		return d.Round(time.Second)
	case d >= time.Second:
		return d.Round(100 * time.Millisecond)
	}
	return d.Round(time.Millisecond)
}

// LocalTime is a time for a person.
func LocalTime(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05 MST") }
