package remotetest

import (
	"cmp"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/snapctl/snapctl/remote"
)

// Trouble is what StrictR2 does to one request. The zero Trouble is none.
type Trouble struct {
	// Delay is waited first, or until the client has gone.
	Delay time.Duration
	// Status is answered, and the server does not get the request. RetryAfter
	// is the header of that name, if not empty. With Body, that is the answer,
	// and with Body alone its status is 200.
	Status     int
	RetryAfter string
	Body       string
	// Reset breaks the connection before the server gets the request.
	Reset bool
	// LoseAnswer breaks the connection when the server has done what was asked.
	LoseAnswer bool
	// Truncate, if positive, breaks the connection after so many bytes of the
	// answer's body.
	Truncate int
	// Corrupt changes a byte of the request's body.
	Corrupt bool
}

// Request is one that StrictR2 has seen.
type Request struct {
	Method string
	Path   string // "/bucket/key"
	Query  url.Values
	Header http.Header
	Status int // that was answered; 0 when the connection was broken
}

// StrictR2 is a proxy before an S3 server which refuses and records what R2
// would refuse, allows one write of a key a second, and makes the trouble that
// a test asks for. The signature covers the Host header, so the server gets
// it as the client sent it.
type StrictR2 struct {
	// URL is the proxy's endpoint.
	URL string
	// Client has a transport that trusts the proxy, if it speaks TLS.
	Client *http.Client
	// WriteInterval is how often a key may be written, 1 s at first. Set it
	// before the first request.
	WriteInterval time.Duration

	server *Server
	proxy  *httputil.ReverseProxy

	mu         sync.Mutex
	away       bool
	hook       func(*http.Request) Trouble
	requests   []Request
	violations []string
	written    map[string]time.Time
}

// NewStrictR2 returns the handler. Most tests want [StartStrictR2].
func NewStrictR2(s *Server) (*StrictR2, error) {
	target, err := url.Parse(s.Endpoint)
	if err != nil {
		return nil, err
	}
	p := &StrictR2{WriteInterval: time.Second, server: s, written: make(map[string]time.Time)}
	p.proxy = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host
		},
		Transport: &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true},
		ErrorLog:  log.New(io.Discard, "", 0), // clients that go away are part of the tests
	}
	return p, nil
}

// StartStrictR2 starts the proxy for a test, over TLS or plain HTTP. Every
// breach of R2's rules is an error of the test.
func StartStrictR2(t testing.TB, s *Server, tls bool) *StrictR2 {
	t.Helper()
	p, err := NewStrictR2(s)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(p)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	if tls {
		srv.StartTLS()
	} else {
		srv.Start()
	}
	p.URL, p.Client = srv.URL, srv.Client()
	t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
		p.proxy.Transport.(*http.Transport).CloseIdleConnections()
		for _, v := range p.Violations() {
			t.Errorf("R2 would refuse this: %s", v)
		}
	})
	return p
}

// Config is [Server.Config], by way of the proxy.
func (p *StrictR2) Config(prefix string) remote.S3Config {
	c := p.server.Config(prefix)
	c.Endpoint = p.URL
	if strings.HasPrefix(p.URL, "https:") {
		c.Transport = p.Client.Transport
	}
	return c
}

// Hook has f asked what trouble to make with each request, from now on; nil
// ends that. f is called by one goroutine at a time.
func (p *StrictR2) Hook(f func(*http.Request) Trouble) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hook = f
}

// Next makes the given trouble with the next requests, one each, and none
// with those after them.
func (p *StrictR2) Next(troubles ...Trouble) {
	p.Hook(func(*http.Request) Trouble {
		if len(troubles) == 0 {
			return Trouble{}
		}
		t := troubles[0]
		troubles = troubles[1:]
		return t
	})
}

// SetAway has the server be away, or come back: while it is away, every
// connection is reset.
func (p *StrictR2) SetAway(away bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.away = away
}

// Requests gives what was asked since the last call, in the order of the answers.
func (p *StrictR2) Requests() []Request {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.requests
	p.requests = nil
	return r
}

// Violations gives all breaches of R2's rules.
func (p *StrictR2) Violations() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.violations)
}

// ServeHTTP is [http.Handler.ServeHTTP].
func (p *StrictR2) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rec := &recorder{ResponseWriter: w}
	// Before the client sees anything of the answer, and asks what there was.
	rec.note = sync.OnceFunc(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.requests = append(p.requests, Request{r.Method, r.URL.Path, r.URL.Query(), r.Header, rec.status})
	})
	defer rec.note()

	violations := breaches(r)
	p.mu.Lock()
	p.violations = append(p.violations, violations...)
	trouble := Trouble{Reset: p.away}
	if !p.away && p.hook != nil {
		trouble = p.hook(r)
	}
	p.mu.Unlock()

	if trouble.Delay > 0 {
		select {
		case <-time.After(trouble.Delay):
		case <-r.Context().Done():
		}
	}
	switch {
	case trouble.Reset:
		rec.note()
		reset(w)
	case len(violations) > 0:
		refuse(rec, http.StatusNotImplemented, "NotImplemented", strings.Join(violations, "; "))
	case trouble.Body != "":
		w.Header().Set("Content-Type", "application/xml")
		rec.WriteHeader(cmp.Or(trouble.Status, http.StatusOK))
		_, _ = io.WriteString(rec, trouble.Body)
	case trouble.Status != 0:
		if trouble.RetryAfter != "" {
			w.Header().Set("Retry-After", trouble.RetryAfter)
		}
		refuse(rec, trouble.Status, cmp.Or(codes[trouble.Status], "Trouble"), "as the test wants it")
	case r.Method == http.MethodPut && p.tooSoon(r.URL.Path):
		refuse(rec, http.StatusTooManyRequests, "TooManyRequests", "Reduce your concurrent request rate for the same object.")
	case trouble.LoseAnswer:
		p.proxy.ServeHTTP(&discard{header: make(http.Header)}, r)
		rec.note()
		reset(w)
	default:
		if trouble.Corrupt {
			r.Body = io.NopCloser(&corrupter{r: r.Body})
		}
		rec.truncate = trouble.Truncate
		p.proxy.ServeHTTP(rec, r)
	}
}

var codes = map[int]string{
	http.StatusInternalServerError: "InternalError",
	http.StatusServiceUnavailable:  "SlowDown",
	http.StatusTooManyRequests:     "TooManyRequests",
	http.StatusForbidden:           "AccessDenied",
}

// tooSoon tells whether the key was written less than the interval ago, and
// else notes that it is now.
func (p *StrictR2) tooSoon(key string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if last, ok := p.written[key]; ok && now.Sub(last) < p.WriteInterval {
		return true
	}
	p.written[key] = now
	return false
}

// breaches lists the rules of R2 that a request does not keep.
func breaches(r *http.Request) []string {
	var found []string
	breach := func(format string, args ...any) {
		found = append(found, fmt.Sprintf("%s %s: ", r.Method, r.URL.Path)+fmt.Sprintf(format, args...))
	}
	sum := r.Header.Get("X-Amz-Content-Sha256")
	if strings.HasPrefix(sum, "STREAMING-") {
		breach("streaming signature %s", sum)
	}
	if strings.Contains(r.Header.Get("Content-Encoding"), "aws-chunked") {
		breach("aws-chunked")
	}
	for name := range r.Header {
		for _, prefix := range []string{
			"X-Amz-Checksum-", "X-Amz-Sdk-Checksum-", "X-Amz-Trailer", "X-Amz-Decoded-",
			"X-Amz-Tagging", "X-Amz-Object-Lock-", "X-Amz-Acl", "X-Amz-Grant-",
		} {
			if strings.HasPrefix(name, prefix) {
				breach("header %s", name)
			}
		}
	}
	if len(r.Trailer) > 0 {
		breach("trailing headers")
	}
	if len(r.TransferEncoding) > 0 {
		breach("no Content-Length")
	}
	q := r.URL.Query()
	for _, name := range []string{"uploads", "uploadId"} {
		if q.Has(name) {
			breach("multipart upload, which cannot be conditional")
		}
	}
	for _, name := range []string{"versions", "versionId", "tagging", "acl", "object-lock", "legal-hold", "retention"} {
		if q.Has(name) {
			breach("?%s", name)
		}
	}
	if r.Method == http.MethodPut && r.Header.Get("Content-Md5") == "" && (sum == "" || sum == "UNSIGNED-PAYLOAD") {
		breach("nothing by which the server can tell that the content arrived whole")
	}
	if scope := r.Header.Get("Authorization"); !strings.Contains(scope, "/us-east-1/s3/") && !strings.Contains(scope, "/auto/s3/") {
		breach("not signed for region auto or us-east-1")
	}
	return found
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	fmt.Fprintf(w, "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>%s</Code><Message>%s</Message></Error>", code, message)
}

// reset breaks the client's connection with a TCP reset.
func reset(w http.ResponseWriter) {
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	c.Close()
}

// recorder notes the status, and breaks the connection after truncate bytes.
type recorder struct {
	http.ResponseWriter
	note     func() // when the status is known
	status   int
	truncate int
	written  int
}

func (r *recorder) WriteHeader(status int) {
	r.status = status
	if status >= 200 {
		r.note()
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(p []byte) (int, error) {
	if r.status < 200 {
		r.status = http.StatusOK
		r.note()
	}
	if r.truncate > 0 && r.written+len(p) > r.truncate {
		_, _ = r.ResponseWriter.Write(p[:r.truncate-r.written])
		_ = http.NewResponseController(r.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	n, err := r.ResponseWriter.Write(p)
	r.written += n
	return n, err
}

// discard takes an answer that nobody gets.
type discard struct {
	header http.Header
}

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) WriteHeader(int)             {}
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }

// corrupter changes the first byte that is read.
type corrupter struct {
	r    io.Reader
	done bool
}

func (c *corrupter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if n > 0 && !c.done {
		p[0] ^= 1
		c.done = true
	}
	return n, err
}
