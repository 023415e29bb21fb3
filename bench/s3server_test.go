package main

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/snapctl/snapctl/remote/remotetest"
)

func TestCountRequests(t *testing.T) {
	const log = `log starts 2026-11-23 16:13:02.22489618 +0000 UTC m=+0.015002539
bench bench [23/November/2026:16:13:02 +0000] 127.0.0.1 bench JDK25 s3_HeadBucket - /bench/ 200 - 0 0 0 0 - MinIO
bench bench [23/November/2026:16:13:02 +0000] 127.0.0.1 bench CN7CB s3_CreateMultipartUpload 2/x /bench/2/x 200 - 0
bench bench [23/November/2026:16:13:02 +0000] 127.0.0.1 bench CN7CB s3_UploadPart 2/x /bench/2/x 200 - 0
bench bench [23/November/2026:16:13:02 +0000] 127.0.0.1 bench CN7CB s3_ListObjectsV2 - /bench/ 200 - 0
bench bench [23/November/2026:16:13:02 +0000] 127.0.0.1 bench CN7CB s3_GetObject 2/x /bench/2/x 404 NoSuchKey 0
bench bench [23/November/2026:16:13:02 +0000] 127.0.0.1 bench CN7CB s3_DeleteObjects - /bench/ 200 - 0
`
	got, err := countRequests(strings.NewReader(log))
	if err != nil {
		t.Fatal(err)
	}
	if want := (map[string]int{"HEAD": 1, "PUT": 2, "LIST": 1, "GET": 1, "DELETE": 1}); !reflect.DeepEqual(got, want) {
		t.Errorf("counted %v, want %v", got, want)
	}
}

// A fair peer's image must arrive whole, by several parts.
func TestTransfer(t *testing.T) {
	s := remotetest.StartVersityGW(t)
	t.Setenv("AWS_ACCESS_KEY_ID", s.Credentials.AccessKeyID)
	t.Setenv("AWS_SECRET_ACCESS_KEY", s.Credentials.SecretAccessKey)
	for _, size := range []int{0, 1000, partSize, 2*partSize + 4321} {
		want := make([]byte, size)
		r := rand.NewChaCha8([32]byte{1})
		r.Read(want)
		up, down := filepath.Join(t.TempDir(), "up"), filepath.Join(t.TempDir(), "down")
		if err := os.WriteFile(up, want, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := upload(t.Context(), []string{s.Endpoint, s.Bucket, "dir/image", up}); err != nil {
			t.Fatalf("upload of %d bytes: %v", size, err)
		}
		if err := download(t.Context(), []string{s.Endpoint, s.Bucket, "dir/image", down}); err != nil {
			t.Fatalf("download of %d bytes: %v", size, err)
		}
		if got, err := os.ReadFile(down); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes came back as %d (%v)", size, len(got), err)
		}
	}
}
