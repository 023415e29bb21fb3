package remote

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"
)

const (
	dialTimeout = 10 * time.Second

	// silence is how long a connection in use may move no byte in either
	// direction. A peer that has gone does not say so, and the kernel takes a
	// quarter of an hour to give up on what it sent.
	silence = time.Minute
)

// newTransport gives HTTP/1.1 with as many idle connections as are used at
// once: with fewer, most requests would begin with a handshake.
func newTransport(parallel int) (*http.Transport, error) {
	if parallel <= 0 {
		parallel = defaultParallel
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	// Unlike SSL_CERT_FILE, this one crypto/x509 does not know; the AWS tools do.
	if file := os.Getenv("AWS_CA_BUNDLE"); file != "" {
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("AWS_CA_BUNDLE: %w", err)
		}
		if config.RootCAs, err = x509.SystemCertPool(); err != nil {
			return nil, err
		}
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("AWS_CA_BUNDLE: no certificate in %s", file)
		}
	}
	dialer := &net.Dialer{Timeout: dialTimeout}
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := dialer.DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return &watchedConn{Conn: c}, nil
		},
		TLSClientConfig:       config,
		TLSHandshakeTimeout:   dialTimeout,
		MaxIdleConns:          2 * parallel,
		MaxIdleConnsPerHost:   parallel,
		IdleConnTimeout:       silence * 2 / 3, // before the watch ends them
		ExpectContinueTimeout: time.Second,
		DisableCompression:    true,      // objects are bytes, whatever their encoding
		WriteBufferSize:       256 << 10, // the default of 4 KiB is a system call for each, and a TLS record
		ReadBufferSize:        64 << 10,
	}, nil
}

// watchedConn ends a connection on which nothing moves. Every read and write
// puts off both deadlines: a long upload is not silence, though nothing is
// read, nor is a long download.
type watchedConn struct {
	net.Conn
}

func (c *watchedConn) moved() error { return c.SetDeadline(time.Now().Add(silence)) }

func (c *watchedConn) Read(p []byte) (int, error) {
	if err := c.moved(); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

func (c *watchedConn) Write(p []byte) (n int, err error) {
	// In pieces, so that a large write on a slow line is not silence either.
	for err = c.moved(); len(p) > 0 && err == nil; {
		var m int
		m, err = c.Conn.Write(p[:min(len(p), 64<<10)])
		n, p = n+m, p[m:]
		if err == nil {
			err = c.moved() // also for the read that waits for the answer
		}
	}
	return n, err
}

// answer is what mapErr wants to know of a response, and minio drops.
type answer struct {
	status     int // 0: there was none
	retryAfter time.Duration
	ahead      time.Duration // how far this machine's clock is ahead of the server's
}

// refusedUnexplained tells whether the server declined for a reason that only the body of
// an answer would tell: the region, the clock, the key.
func (a *answer) refusedUnexplained() bool {
	switch a.status {
	case http.StatusBadRequest, http.StatusMovedPermanently, http.StatusUnauthorized, http.StatusForbidden:
		return true
	}
	return false
}

// refused tells whether the server itself declined, so that nothing was done.
// A gateway's answer says nothing of the server behind it.
func (a *answer) refused() bool {
	switch a.status {
	case 0, http.StatusInternalServerError, http.StatusBadGateway, http.StatusGatewayTimeout:
		return false
	}
	return true
}

type answerKey struct{}

func withAnswer(ctx context.Context) (context.Context, *answer) {
	a := new(answer)
	return context.WithValue(ctx, answerKey{}, a), a
}

// roundTripper looks at responses before minio does.
type roundTripper struct {
	next  http.RoundTripper
	dates *dates
}

var errClosed = errors.New("the server closed the connection before it answered")

func (t roundTripper) RoundTrip(req *http.Request) (*http.Response, error) {
	sent := time.Now()
	resp, err := t.next.RoundTrip(req)
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = errClosed
		}
		return nil, err
	}
	t.dates.hear(resp, sent)
	if a, ok := req.Context().Value(answerKey{}).(*answer); ok {
		a.status = resp.StatusCode
		if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
			a.ahead = time.Since(date)
		}
		a.retryAfter = retryAfter(resp.Header.Get("Retry-After"), time.Now())
	}
	// minio takes any XML for a list (an error that came with status 200, the
	// page of a proxy), and one of no objects at that; and any 404 for an object
	// that does not exist.
	switch {
	case resp.StatusCode == http.StatusOK && req.Method == http.MethodGet && req.URL.Query().Has("list-type"):
		err = expect(resp, "<ListBucketResult")
	case resp.StatusCode == http.StatusNotFound && req.Method != http.MethodHead:
		err = expect(resp, "<Error")
	}
	if err != nil {
		resp.Body.Close()
		return nil, err
	}
	return resp, nil
}

// retryAfter parses the header: seconds, or a date.
func retryAfter(v string, now time.Time) time.Duration {
	if s, err := strconv.Atoi(v); err == nil && s > 0 {
		return time.Duration(min(s, 24*60*60)) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil && t.After(now) {
		return t.Sub(now)
	}
	return 0
}

// expect sees to it that the body has an element in its beginning.
func expect(resp *http.Response, element string) error {
	r := bufio.NewReader(resp.Body)
	head, err := r.Peek(512)
	if !bytes.Contains(head, []byte(element)) {
		if err != nil && err != io.EOF {
			return err
		}
		return fmt.Errorf("this is not an S3 server's answer: %s, %.100q", resp.Status, head)
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{r, resp.Body}
	return nil
}
