package engine_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/snapctl/snapctl/engine"
)

// A program makes a repository, takes a snapshot of a directory, and brings it
// back when it is spoilt.
func Example() {
	ctx := context.Background()
	temp, err := os.MkdirTemp("", "example-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(temp)
	dir := filepath.Join(temp, "project")
	if err := os.Mkdir(dir, 0o755); err != nil {
		log.Fatal(err)
	}
	notes := filepath.Join(dir, "notes.txt")
	if err := os.WriteFile(notes, []byte("precious"), 0o644); err != nil {
		log.Fatal(err)
	}

	// In a program of yours: "s3://bucket/prefix" or "r2://ACCOUNT/bucket", and
	// no options.
	repo, err := engine.Init(ctx, filepath.Join(temp, "repository"), nil, &engine.Options{CacheDir: filepath.Join(temp, "cache")})
	if err != nil {
		log.Fatal(err)
	}
	defer repo.Close()

	snapshot, err := repo.Create(ctx, dir, &engine.CreateOptions{Name: "before"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(snapshot.Files, "file of", snapshot.Bytes, "bytes")

	if err := os.WriteFile(notes, []byte("spoilt"), 0o644); err != nil {
		log.Fatal(err)
	}
	if _, err := repo.Restore(ctx, "before", dir, &engine.RestoreOptions{Delete: true}); err != nil {
		log.Fatal(err)
	}
	text, err := os.ReadFile(notes)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", text)
	// Output:
	// 1 file of 8 bytes
	// precious
}
