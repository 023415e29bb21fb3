package manifest

import (
	"cmp"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// somePath draws paths in which the order of strings and of paths differ.
func somePath(least int) *rapid.Generator[string] {
	name := rapid.StringOfN(rapid.RuneFrom([]rune("ab.-0\x01")), 1, 3, -1)
	return rapid.Custom(func(t *rapid.T) string {
		return strings.Join(rapid.SliceOfN(name, least, 4).Draw(t, "names"), "/")
	})
}

// components is the model: a path is a list of names.
func components(path string) []string {
	if path == "" {
		return nil
	}
	return strings.Split(path, "/")
}

func TestOrderIsThatOfComponents(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := somePath(0).Draw(t, "a"), somePath(0).Draw(t, "b")
		want := slices.Compare(components(a), components(b))
		if got := cmp.Compare(ComparePaths(a, b), 0); got != want {
			t.Fatalf("%q %q: %d, expected %d", a, b, got, want)
		}
		n, m := somePath(1).Draw(t, "n"), somePath(1).Draw(t, "m")
		x, y := KeyOf(Join(a, n)), KeyOf(Join(b, m))
		if x.Path() != Join(a, n) || Join(x.Dir, x.Name) != x.Path() || strings.Contains(x.Name, "/") {
			t.Fatalf("key of %q is %q", Join(a, n), x)
		}
		want = cmp.Or(slices.Compare(components(x.Dir), components(y.Dir)), strings.Compare(x.Name, y.Name))
		if got := cmp.Compare(x.Compare(y), 0); got != want || cmp.Compare(y.Compare(x), 0) != -want {
			t.Fatalf("%q %q: %d, expected %d", x, y, got, want)
		}
		c, d := components(a), components(b)
		within := len(c) >= len(d) && slices.Equal(c[:len(d)], d)
		if Within(a, b) != within {
			t.Fatalf("%q within %q: %v", a, b, !within)
		}
	})
	if ComparePaths("a", "a/b") >= 0 || ComparePaths("a/b", "a.b") >= 0 || (Key{"a", ""}).Compare(Key{"a", "b"}) >= 0 {
		t.Fatal("a < a/b < a.b does not hold")
	}
}

func TestCheckPath(t *testing.T) {
	name := strings.Repeat("n", MaxName)
	for path, ok := range map[string]bool{
		"": true, "a": true, "a/b": true, "...": true, ".a/..b": true, "\xff\n/ ": true, name + "/" + name: true,
		"/": false, "/a": false, "a/": false, "a//b": false, ".": false, "..": false, "a/..": false, "../a": false, "a/./b": false,
		"a\x00": false, "a/\x00": false, name + "n": false,
		strings.Repeat("a/", MaxPath/2) + "aa": false, strings.Repeat("a/", MaxPath/2-1) + "aa": true,
	} {
		if err := CheckPath(path); (err == nil) != ok {
			t.Errorf("%.40q: %v", path, err)
		}
		if err := CheckName(path); (err == nil) != (ok && path != "" && !strings.Contains(path, "/")) {
			t.Errorf("name %.40q: %v", path, err)
		}
	}
}

func TestTypes(t *testing.T) {
	for typ, want := range map[Type]string{File: "file", Link: "hard link", 0: "type 0", 8: "type 8"} {
		if typ.String() != want {
			t.Errorf("%d is %q", typ, typ)
		}
	}
	for _, at := range []time.Time{time.Unix(0, 0), time.Unix(-1, 999_999_999), time.Unix(1<<40, 1)} {
		if got := TimeOf(at).Time(); !got.Equal(at) {
			t.Errorf("%v is %v", at, got)
		}
	}
}
