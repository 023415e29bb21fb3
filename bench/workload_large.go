package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
)

// insertWorkload is one large file. After: eight inserts of some KB, which
// shift all that is behind them.
var insertWorkload = workload{
	name:  "insert",
	bytes: func(o *options) int64 { return bigFile(o.smoke) + 1<<20 },
	write: func(ctx context.Context, b *bench, before, after string) error {
		if err := errors.Join(os.Mkdir(before, 0o755), os.Mkdir(after, 0o755)); err != nil {
			return err
		}
		const name = "large.bin"
		from := filepath.Join(before, name)
		if err := writeBig(ctx, from, bigFile(b.o.smoke)); err != nil {
			return err
		}
		return copyWithInserts(from, filepath.Join(after, name), bigFile(b.o.smoke), 8)
	},
}

// copyWithInserts copies a file of that size and inserts something of 1 to 9 KB
// in so many places.
func copyWithInserts(from, to string, size int64, inserts int) error {
	rng := rand.New(rand.NewPCG(13, 14))
	places := make([]int64, inserts)
	for i := range places {
		places[i] = size/10 + rng.Int64N(size*8/10)
	}
	slices.Sort(places)
	return copyBy(from, to, func(out io.Writer, in io.Reader) error {
		at := int64(0)
		for _, place := range places {
			if _, err := io.CopyN(out, in, place-at); err != nil {
				return err
			}
			at = place
			if _, err := out.Write(appendNoise(nil, rng, 1000+rng.IntN(8000))); err != nil {
				return err
			}
		}
		_, err := io.Copy(out, in)
		return err
	})
}

// binariesWorkload is many large files, every other one of which cannot be
// compressed. After: one in ten is another one, and one in ten has other bytes
// in one place, as a program has that was built anew.
var binariesWorkload = workload{
	name:  "binaries",
	bytes: func(o *options) int64 { s := binarySizes(o); return int64(s.files) * int64(s.least+s.most) / 2 },
	write: func(ctx context.Context, b *bench, before, after string) error {
		s := binarySizes(b.o)
		for i, root := range []string{before, after} {
			if err := os.Mkdir(root, 0o755); err != nil {
				return err
			}
			for n := range s.files {
				if err := s.write(ctx, filepath.Join(root, fmt.Sprintf("binary-%03d", n)), n, i > 0); err != nil {
					return err
				}
			}
		}
		return nil
	},
}

type binarySpec struct{ files, least, most int }

func binarySizes(o *options) binarySpec {
	if o.smoke {
		return binarySpec{10, 100_000, 1_000_000}
	}
	return binarySpec{200, 1_000_000, 20_000_000}
}

func (s binarySpec) write(ctx context.Context, path string, n int, after bool) (err error) {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	seed := uint64(n)
	if replaced := n%10 == 3; replaced && after {
		seed += 1e6
	}
	rng := rand.New(rand.NewPCG(15, seed))
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriterSize(f, 1<<20)
	const piece = 4 << 10
	var buf []byte
	size := s.least + rng.IntN(s.most-s.least)
	for done := 0; done < size; done += piece {
		part := min(piece, size-done)
		if n%2 == 0 || done/piece%4 == 0 {
			buf = appendNoise(buf[:0], rng, part)
		} else {
			buf = appendText(buf[:0], rng, part)
		}
		w.Write(buf) // its error is Flush's
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if rebuilt := n%10 == 6; rebuilt && after {
		_, err = f.WriteAt(appendNoise(nil, rng, 50_000), int64(size/2))
	}
	return err
}

// tinyWorkload is a great many tiny files. After: those of one package in twelve
// have other contents.
var tinyWorkload = workload{
	name:  "tiny",
	bytes: func(o *options) int64 { return int64(o.tiny) * 6 << 10 }, // a page and an inode each
	write: func(ctx context.Context, b *bench, before, after string) error {
		spec := treeSpec{Files: b.o.tiny, Mean: scaleMean}
		if err := spec.write(ctx, before); err != nil {
			return err
		}
		spec.Version = 1
		return spec.write(ctx, after)
	},
}
