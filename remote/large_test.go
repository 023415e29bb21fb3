package remote_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"

	"github.com/snapctl/snapctl/remote"
)

// TestGetLarge: the size that a store tells of an object is not believed without bounds.
func TestGetLarge(t *testing.T) {
	dir := t.TempDir()
	folder, err := remote.OpenFile(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/config", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(dir+"/config", 1<<40); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1152921504606846976")
		w.Header().Set("Last-Modified", "Mon, 02 Nov 2026 00:00:00 GMT")
		w.Header().Set("ETag", `"0"`)
		_, _ = w.Write([]byte("x"))
	}))
	defer server.Close()
	s3 := openS3(t, remote.S3Config{Endpoint: server.URL, Bucket: "bucket", Credentials: remote.Credentials{AccessKeyID: "a", SecretAccessKey: "s"}})
	for name, s := range map[string]remote.Store{"folder": folder, "S3": s3} {
		if b, err := s.Get(t.Context(), "config"); !errors.Is(err, remote.ErrLarge) || b != nil {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
	}
}
