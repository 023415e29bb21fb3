package remotetest

import (
	"bytes"
	"crypto/md5"
	"encoding/base64"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/snapctl/snapctl/remote"
)

// LifecycleServer is the one part of S3 that versitygw does not have: the lifecycle
// configuration of a bucket, which is given as it was put. It has no objects.
type LifecycleServer struct {
	endpoint string

	mu       sync.Mutex
	doc      []byte // nil for none
	minimum  string
	requests []string
	failures int
}

const minimumHeader = "X-Amz-Transition-Default-Minimum-Object-Size"

// StartLifecycleServer starts one for the time of a test.
func StartLifecycleServer(t testing.TB) *LifecycleServer {
	s := &LifecycleServer{}
	h := httptest.NewServer(s)
	t.Cleanup(h.Close)
	s.endpoint = h.URL
	return s
}

// Config opens a store in its bucket.
func (s *LifecycleServer) Config(prefix string) remote.S3Config {
	return remote.S3Config{
		Endpoint: s.endpoint, Bucket: "bucket", Prefix: prefix,
		Credentials: remote.Credentials{AccessKeyID: "access", SecretAccessKey: "secret"},
	}
}

// Set makes doc the configuration, "" for none, and minimum the header that belongs to it.
func (s *LifecycleServer) Set(doc, minimum string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.doc, s.minimum = []byte(doc), minimum
	if doc == "" {
		s.doc = nil
	}
}

// Doc gives the configuration and that header.
func (s *LifecycleServer) Doc() (doc, minimum string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(s.doc), s.minimum
}

// Fail has the next n requests fail as those of a busy server do.
func (s *LifecycleServer) Fail(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failures = n
}

// Requests gives the methods of the requests since the last call, as in "GET PUT".
func (s *LifecycleServer) Requests() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := strings.Join(s.requests, " ")
	s.requests = nil
	return all
}

// ServeHTTP is [http.Handler.ServeHTTP].
func (s *LifecycleServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	s.mu.Lock()
	defer s.mu.Unlock()
	refuse := func(status int, code string) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, "<Error><Code>"+code+"</Code><Message>no</Message></Error>") // the client may have gone
	}
	s.requests = append(s.requests, r.Method)
	switch {
	case err != nil || r.URL.Path != "/bucket/" || r.URL.RawQuery != "lifecycle=" || !strings.Contains(r.Header.Get("Authorization"), "Credential=access/"):
		refuse(http.StatusBadRequest, "InvalidRequest")
	case s.failures > 0:
		s.failures--
		refuse(http.StatusServiceUnavailable, "SlowDown")
	case r.Method == http.MethodGet && s.doc == nil:
		refuse(http.StatusNotFound, "NoSuchLifecycleConfiguration")
	case r.Method == http.MethodGet:
		if s.minimum != "" {
			w.Header().Set(minimumHeader, s.minimum)
		}
		_, _ = w.Write(s.doc)
	case r.Method == http.MethodPut:
		sum := md5.Sum(body)
		if r.Header.Get("Content-Md5") != base64.StdEncoding.EncodeToString(sum[:]) || !bytes.Contains(body, []byte("<Rule>")) {
			refuse(http.StatusBadRequest, "MalformedXML")
			return
		}
		s.doc, s.minimum = body, r.Header.Get(minimumHeader)
	case r.Method == http.MethodDelete:
		s.doc, s.minimum = nil, ""
		w.WriteHeader(http.StatusNoContent)
	default:
		refuse(http.StatusMethodNotAllowed, "MethodNotAllowed")
	}
}
