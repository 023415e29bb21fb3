package ignore

import "strings"

// A Glob is one pattern of '*', '?', '[a-z]', '**' and '\', that means to a byte what it
// means to git (its wildmatch, with WM_PATHNAME). Of the libraries none is both equal to
// git and quick on every pattern, and patterns come from strangers.
type Glob struct {
	Text    string
	literal bool // it has none of those
	suffix  bool // it is '*' and behind that a literal without a slash
}

// GlobSpecial are the bytes that mean something else than themselves.
const GlobSpecial = `*?[\`

// MaxGlob bounds a glob in bytes: no path is as long as the shortest that it can match.
const MaxGlob = 8 << 10

// NewGlob makes a glob, false if it is malformed or too long: then it matches nothing.
func NewGlob(text string) (Glob, bool) {
	for strings.Contains(text, "***") {
		text = strings.ReplaceAll(text, "***", "**") // which says the same
	}
	if len(text) > MaxGlob {
		return Glob{}, false
	}
	g := Glob{Text: text, literal: !strings.ContainsAny(text, GlobSpecial)}
	rest, star := strings.CutPrefix(text, "*")
	g.suffix = star && !strings.ContainsAny(rest, GlobSpecial+"/")
	for i := 0; i < len(text); {
		_, next := GlobUnit(text, i, 0)
		if next < 0 {
			return g, false
		}
		i = next
	}
	return g, true
}

// GlobUnit matches a byte with the unit of a pattern at i that is no '*', and tells where
// the next unit begins: a negative place if the pattern is malformed.
func GlobUnit(p string, i int, c byte) (ok bool, next int) {
	switch p[i] {
	case '?':
		return c != '/', i + 1
	case '[':
		return globClass(p, i+1, c)
	case '\\':
		if i++; i == len(p) {
			return false, -1
		}
	}
	return p[i] == c, i + 1
}

// globClass matches a byte with a class whose members begin at i.
func globClass(p string, i int, c byte) (ok bool, next int) {
	negated := i < len(p) && (p[i] == '!' || p[i] == '^')
	if negated {
		i++
	}
	ranged := -1 // the byte that a '-' may make the first of a range
	for first := true; first || i < len(p) && p[i] != ']'; first = false {
		if i >= len(p) {
			return false, -1
		}
		if name, end, found := globClassName(p, i); found {
			in, known := inClass(name, c)
			if !known {
				return false, -1
			}
			ok, ranged, i = ok || in, -1, end
			continue
		}
		from := -1
		if p[i] == '-' && ranged >= 0 && i+1 < len(p) && p[i+1] != ']' {
			from = ranged
			i++
		}
		if p[i] == '\\' {
			if i++; i == len(p) {
				return false, -1
			}
		}
		to := p[i]
		if from >= 0 {
			ok, ranged = ok || byte(from) <= c && c <= to, -1
		} else {
			ok, ranged = ok || c == to, int(to)
		}
		i++
	}
	if i >= len(p) {
		return false, -1
	}
	return ok != negated && c != '/', i + 1
}

// globClassName finds a name such as [:alpha:] at i of a class, and where it ends.
func globClassName(p string, i int) (name string, end int, ok bool) {
	if !strings.HasPrefix(p[i:], "[:") {
		return "", 0, false
	}
	n := strings.IndexByte(p[i+2:], ']')
	if n < 0 {
		return "?", len(p), true // malformed, as the class has no end
	}
	name, ok = strings.CutSuffix(p[i+2:i+2+n], ":")
	return name, i + n + 3, ok
}

// inClass reports whether a byte is of the class of that name, in ASCII and as git has
// them, and whether there is such a class.
func inClass(name string, c byte) (in, known bool) {
	upper, lower, digit := 'A' <= c && c <= 'Z', 'a' <= c && c <= 'z', '0' <= c && c <= '9'
	graph := '!' <= c && c <= '~'
	switch name {
	case "alnum":
		in = upper || lower || digit
	case "alpha":
		in = upper || lower
	case "blank":
		in = c == ' ' || c == '\t'
	case "cntrl":
		in = c < ' ' || c == 0x7f
	case "digit":
		in = digit
	case "graph":
		in = graph
	case "lower":
		in = lower
	case "print":
		in = graph || c == ' '
	case "punct":
		in = graph && !upper && !lower && !digit
	case "space":
		in = c == ' ' || c == '\t' || c == '\n' || c == '\r'
	case "upper":
		in = upper
	case "xdigit":
		in = digit || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
	default:
		return false, false
	}
	return in, true
}

// Match reports whether the glob matches all of a path. '*' and '?' match no slash, and
// "**" between slashes, or a slash and an end, any number of directories.
//
// It never goes back further than to the last '*' and the last "**": what comes before is
// matched as early as it can be, and a later match would leave less to choose from. So its
// time is bounded by the product of the lengths, times the slashes if there is a "**".
func (g Glob) Match(path string) bool {
	switch {
	case g.literal:
		return path == g.Text
	case g.suffix && strings.HasSuffix(path, g.Text[1:]):
		return strings.IndexByte(path, '/') < 0
	case g.suffix:
		return false
	}
	// To git a pattern begins behind its literal bytes, so that "a**/b" is "a/c/b" too.
	first := strings.IndexAny(g.Text, GlobSpecial)
	if !strings.HasPrefix(path, g.Text[:first]) {
		return false
	}
	p, path := g.Text[first:], path[first:]
	i, j := 0, 0
	star, starAt := -1, 0 // behind the last '*', and where it ends in the path
	deep, deepAt := -1, 0 // the same of the last "**/"
	for {
		switch {
		case i == len(p) && j == len(path):
			return true
		case i < len(p) && p[i] == '*':
			n := i + 1
			for n < len(p) && p[n] == '*' {
				n++
			}
			rest := p[n:]
			if n-i < 2 || i > 0 && p[i-1] != '/' || rest != "" && rest[0] != '/' && !strings.HasPrefix(rest, `\/`) {
				i, star, starAt = n, n, j
				continue
			}
			if rest == "" {
				return true
			}
			star, deepAt = -1, j
			if rest[0] == '/' {
				deep = n + 1
				i = deep
				continue
			}
			deep = n + 2 // an escaped slash: there must be a directory
		case i < len(p) && j < len(path):
			if ok, next := GlobUnit(p, i, path[j]); ok {
				i, j = next, j+1
				continue
			}
		}
		switch {
		case star >= 0 && starAt < len(path) && path[starAt] != '/':
			starAt++
			i, j = star, starAt
		case deep >= 0:
			n := strings.IndexByte(path[deepAt:], '/')
			if n < 0 {
				return false
			}
			star, deepAt = -1, deepAt+n+1
			i, j = deep, deepAt
		default:
			return false
		}
	}
}
