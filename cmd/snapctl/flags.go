package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/pflag"
)

// flagError has an error about a flag's value say what the flag takes, where strconv
// only says what it could not parse.
func flagError(err error) error {
	var bad *pflag.InvalidValueError
	var cause *strconv.NumError
	if !errors.As(err, &bad) || !errors.As(err, &cause) {
		return err
	}
	want := "not a whole number"
	switch {
	case bad.GetFlag().Value.Type() == "bool":
		want = "neither true nor false"
	case errors.Is(cause, strconv.ErrRange):
		want = "out of range"
	}
	return errors.New(strings.TrimSuffix(err.Error(), cause.Error()) + want)
}

// A ttlFlag is a duration as parseTTL takes it.
type ttlFlag time.Duration

var _ pflag.Value = (*ttlFlag)(nil)

func (f *ttlFlag) String() string { return "" }
func (f *ttlFlag) Type() string   { return "duration" }
func (f *ttlFlag) Set(s string) error {
	d, err := parseTTL(s)
	*f = ttlFlag(d)
	return err
}

// parseTTL parses a positive duration: what time.ParseDuration takes, with d
// for days of 24 hours and w for weeks too, as in 90m, 7d, 1w2d12h.
func parseTTL(s string) (time.Duration, error) {
	invalid := errors.New("not a positive duration such as 90m, 72h, 7d or 2w")
	inNumber := func(r rune) bool { return r == '.' || '0' <= r && r <= '9' }
	var total time.Duration
	for rest := s; rest != ""; {
		number := rest[:len(rest)-len(strings.TrimLeftFunc(rest, inNumber))]
		unit := rest[len(number):]
		if end := strings.IndexFunc(unit, inNumber); end >= 0 {
			unit = unit[:end]
		}
		part, err := parseTTLPart(number, unit)
		if err != nil || part > math.MaxInt64-total {
			return 0, invalid
		}
		total += part
		rest = rest[len(number)+len(unit):]
	}
	if total <= 0 {
		return 0, invalid
	}
	return total, nil
}

func parseTTLPart(number, unit string) (time.Duration, error) {
	var each time.Duration
	switch unit {
	case "d":
		each = 24 * time.Hour
	case "w":
		each = 7 * 24 * time.Hour
	default:
		if number == "" { // ParseDuration would take a sign here
			return 0, errors.New("no number")
		}
		return time.ParseDuration(number + unit)
	}
	n, err := strconv.ParseFloat(number, 64)
	if err != nil {
		return 0, err
	}
	if n *= float64(each); n >= math.MaxInt64 {
		return 0, errors.New("out of range")
	}
	return time.Duration(n), nil
}

// A tagsFlag collects --tag key=value.
type tagsFlag map[string]string

var _ pflag.Value = (tagsFlag)(nil)

func (f tagsFlag) String() string { return "" }
func (f tagsFlag) Type() string   { return "key=value" }
func (f tagsFlag) Set(s string) error {
	key, value, ok := strings.Cut(s, "=")
	if !ok || key == "" {
		return errors.New("not KEY=VALUE")
	}
	if _, ok := f[key]; ok {
		return fmt.Errorf("tag %q is given twice", key)
	}
	f[key] = value
	return nil
}

// An excludes collects --exclude and --exclude-from in the order in which they
// were given: a later pattern overrides an earlier one.
type excludes []exclude

type exclude struct {
	pattern string
	file    string // of patterns; "" for one pattern
}

type (
	excludeFlag     struct{ all *excludes }
	excludeFromFlag struct{ all *excludes }
)

var (
	_ pflag.Value = excludeFlag{}
	_ pflag.Value = excludeFromFlag{}
)

func (f excludeFlag) String() string { return "" }
func (f excludeFlag) Type() string   { return "glob" }
func (f excludeFlag) Set(s string) error {
	if s == "" {
		return errors.New("the pattern is empty")
	}
	*f.all = append(*f.all, exclude{pattern: s})
	return nil
}

func (f excludeFromFlag) String() string { return "" }
func (f excludeFromFlag) Type() string   { return "file" }
func (f excludeFromFlag) Set(s string) error {
	if s == "" {
		return errors.New("the file name is empty")
	}
	*f.all = append(*f.all, exclude{file: s})
	return nil
}

// patterns reads the files. "-" is stdin.
func (e excludes) patterns(stdin io.Reader) ([]string, error) {
	var all []string
	for _, x := range e {
		if x.file == "" {
			all = append(all, x.pattern)
			continue
		}
		lines, err := readPatterns(x.file, stdin)
		if err != nil {
			return nil, fmt.Errorf("reading patterns: %w", err)
		}
		all = append(all, lines...)
	}
	return all, nil
}

// readPatterns reads the lines of a file like .gitignore, without comments,
// blank lines and what editors add.
func readPatterns(name string, stdin io.Reader) ([]string, error) {
	in := stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	var lines []string
	scanner := bufio.NewScanner(in)
	for first := true; scanner.Scan(); first = false {
		line := scanner.Text()
		if first {
			line = strings.TrimPrefix(line, "\uFEFF")
		}
		if strings.TrimSpace(line) != "" && !strings.HasPrefix(line, "#") {
			lines = append(lines, line)
		}
	}
	return lines, scanner.Err()
}

// A sizeFlag is a number of bytes, such as 10GiB.
type sizeFlag int64

var _ pflag.Value = (*sizeFlag)(nil)

func (f *sizeFlag) String() string { return "" }
func (f *sizeFlag) Type() string   { return "size" }
func (f *sizeFlag) Set(s string) error {
	n, err := humanize.ParseBytes(s)
	if err != nil || n == 0 || n > math.MaxInt64 {
		return errors.New("not a size such as 500MB or 10GiB")
	}
	*f = sizeFlag(n)
	return nil
}
