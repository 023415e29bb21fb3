package man

import "testing"

// TestRoffLine: no text is taken for a request.
func TestRoffLine(t *testing.T) {
	for in, want := range map[string]string{
		".gitignore":  `\&.gitignore`,
		"'quoted'":    `\(aqquoted\(aq`,
		`a\nb --name`: `a\enb \-\-name`,
		"app~2":       `app\(ti2`,
	} {
		if got := roffLine(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
