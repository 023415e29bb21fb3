package remotetest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/snapctl/snapctl/remote"
)

// Server is a real S3 server, versitygw, in a process of its own on a port of
// the loopback interface.
type Server struct {
	// Endpoint is the server's URL.
	Endpoint string
	// Credentials are its administrator's.
	Credentials remote.Credentials
	// Bucket exists, and is empty when the server starts.
	Bucket string

	root string // the buckets' folder
	temp string
	cmd  *exec.Cmd
	out  *bytes.Buffer
	dead chan struct{} // closed when the process has ended
}

const region = "us-east-1"

// StartServer starts versitygw, which [Tool] gives it, with its data in a new
// folder beneath dir, or beneath the system's temporary folder if that is
// empty. It returns when the server answers. Close ends it.
func StartServer(ctx context.Context, dir string) (*Server, error) {
	bin, err := Tool(ctx, "versitygw")
	if err != nil {
		return nil, err
	}
	temp, err := os.MkdirTemp(dir, "versitygw-*")
	if err != nil {
		return nil, err
	}
	// A port that was free may be taken by another when the server gets to it.
	for range 5 {
		var s *Server
		if s, err = start(ctx, bin, temp); err == nil {
			return s, nil
		}
	}
	os.RemoveAll(temp)
	return nil, err
}

func start(ctx context.Context, bin, temp string) (*Server, error) {
	s := &Server{
		Credentials: remote.Credentials{AccessKeyID: "test-" + rand.Text(), SecretAccessKey: "test-secret-key"},
		Bucket:      "bucket",
		root:        filepath.Join(temp, "root"),
		temp:        temp,
		out:         new(bytes.Buffer),
		dead:        make(chan struct{}),
	}
	// The folder of metadata must not lie in the root, nor begin like it.
	metadata, users := filepath.Join(temp, "metadata"), filepath.Join(temp, "users")
	// The gateway takes every folder in its root for a bucket.
	for _, d := range []string{filepath.Join(s.root, s.Bucket), metadata, users} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	addr := l.Addr().String()
	l.Close()
	s.Endpoint = "http://" + addr

	s.cmd = exec.Command(bin, "--port", addr, "--region", region, "--quiet", "--keep-alive",
		"--iam-dir", users, "posix", "--sidecar", metadata, s.root)
	// Its own environment, so that our AWS_* do not reach it.
	s.cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + temp,
		"ROOT_ACCESS_KEY=" + s.Credentials.AccessKeyID, "ROOT_SECRET_KEY=" + s.Credentials.SecretAccessKey,
	}
	s.cmd.Stdout, s.cmd.Stderr = s.out, s.out
	if err := startTool(s.cmd, s.dead); err != nil {
		return nil, err
	}
	if err := s.waitReady(ctx); err != nil {
		s.stop()
		return nil, fmt.Errorf("versitygw did not start: %w\n%s", err, s.out)
	}
	return s, nil
}

// waitReady returns when the server answers. One of another test, which has taken the
// port, does not know the credentials.
func (s *Server) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	store, err := remote.OpenS3(ctx, s.Config(""))
	if err != nil {
		return err
	}
	for {
		_, err := store.Stat(ctx, "ready")
		switch {
		case errors.Is(err, remote.ErrNotExist):
			return nil
		case errors.Is(err, remote.ErrAccess):
			return fmt.Errorf("another server answers: %w", err)
		}
		select {
		case <-s.dead:
			return errors.New("it ended")
		case <-ctx.Done():
			return err
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (s *Server) stop() {
	_ = s.cmd.Process.Kill() // by its handle, so never another process
	<-s.dead
}

// Close ends the server and removes its data.
func (s *Server) Close() error {
	s.stop()
	return os.RemoveAll(s.temp)
}

// Dir is the folder whose files are the bucket's objects.
func (s *Server) Dir() string { return filepath.Join(s.root, s.Bucket) }

// Config is what [remote.OpenS3] needs, for the bucket and a prefix in it.
func (s *Server) Config(prefix string) remote.S3Config {
	return remote.S3Config{
		Endpoint: s.Endpoint, Region: region, Bucket: s.Bucket, Prefix: prefix, Credentials: s.Credentials,
	}
}

// URL is what [remote.Open] needs, for the bucket and a prefix in it. The
// credentials go beside it.
func (s *Server) URL(prefix string) string {
	return strings.TrimSuffix("s3://"+s.Bucket+"/"+prefix, "/") + "?endpoint=" + s.Endpoint + "&region=" + region
}

// StartVersityGW is StartServer for a test: it skips the test when the server
// cannot be had, and ends the server with it.
func StartVersityGW(t testing.TB) *Server {
	t.Helper()
	s, err := StartServer(t.Context(), t.TempDir())
	if errors.Is(err, ErrNoTool) {
		t.Skipf("no S3 server to test with: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}
