package main

import (
	"strings"
	"testing"
)

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
