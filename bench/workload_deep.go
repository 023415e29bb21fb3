package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
)

// deepWorkload is source code in folders 30 to 60 deep, with long names. After:
// a line is changed in one file of 25, and one folder near the root has another
// name.
var deepWorkload = workload{
	name:  "deep",
	bytes: func(o *options) int64 { s := deepSizes(o); return int64(s.projects) * 45 * int64(s.files+1) * 9 << 10 },
	write: func(ctx context.Context, b *bench, before, after string) error {
		s := deepSizes(b.o)
		for i, root := range []string{before, after} {
			if err := s.write(ctx, root, i > 0); err != nil {
				return err
			}
		}
		return nil
	},
}

type deepSpec struct {
	projects int
	files    int // in each folder
}

func deepSizes(o *options) deepSpec {
	if o.smoke {
		return deepSpec{2, 2}
	}
	return deepSpec{80, 5}
}

func (s deepSpec) write(ctx context.Context, root string, after bool) error {
	for p := range s.projects {
		rng := rand.New(rand.NewPCG(11, uint64(p)))
		dir := filepath.Join(root, fmt.Sprintf("project-%d", p))
		if after && p == s.projects/2 {
			dir += "-renamed"
		}
		for range 30 + rng.IntN(31) {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			dir = filepath.Join(dir, longName(rng))
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
			for n := range s.files {
				text := appendText(nil, rng, 500+rng.IntN(9000))
				if edited := rng.IntN(25) == 0; edited && after {
					text = append([]byte("// edited\n"), text...)
				}
				path := filepath.Join(dir, fmt.Sprintf("%s-%d.go", longName(rng), n))
				if err := os.WriteFile(path, text, 0o644); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// longName has 12 to 52 letters, so that 60 of them are a path that Linux takes.
func longName(rng *rand.Rand) string {
	b := make([]byte, 12+rng.IntN(41))
	for i := range b {
		b[i] = "abcdefghijklmnopqrstuvwxyz_"[rng.IntN(27)]
	}
	return string(b)
}
