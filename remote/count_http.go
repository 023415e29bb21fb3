package remote

import (
	"io"
	"net/http"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
)

// transport returns one that sends everything through next, and has c count it.
func (c *Counter) transport(next http.RoundTripper) http.RoundTripper {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.server = true
	return &countingTransport{next, c}
}

type countingTransport struct {
	next  http.RoundTripper
	count *Counter
}

func (t *countingTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	k := t.count.begin(opOf(req))
	// A request on a connection that the server has just closed is sent again by
	// http.Transport, without a word.
	var written atomic.Int32
	req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
		WroteRequest: func(httptrace.WroteRequestInfo) {
			if written.Add(1) > 1 {
				k.again()
			}
		},
	})) // a copy: the caller's must stay as it is
	if req.Body != nil && req.Body != http.NoBody {
		req.Body = &sentBody{req.Body, k}
		if again := req.GetBody; again != nil {
			req.GetBody = func() (io.ReadCloser, error) {
				b, err := again()
				return &sentBody{b, k}, err
			}
		}
	}
	resp, err := t.next.RoundTrip(req)
	if err != nil {
		k.end(true)
		return nil, err
	}
	failed := resp.StatusCode >= http.StatusBadRequest
	if resp.Body == http.NoBody { // of which nobody need read the end
		k.end(failed)
	} else {
		resp.Body = &receivedBody{ReadCloser: resp.Body, call: k, failed: failed}
	}
	return resp, nil
}

// opOf is what a request does: one of those that this package sends, or one that
// another client would send for the same price.
func opOf(req *http.Request) Op {
	q := req.URL.Query()
	switch req.Method {
	case http.MethodGet:
		switch {
		case q.Has("list-type"):
			return OpList
		case req.Header.Get("Range") != "":
			return OpReadAt
		}
		return OpGet
	case http.MethodHead:
		return OpStat
	case http.MethodDelete:
		return OpDelete
	case http.MethodPost:
		if q.Has("delete") {
			return OpDelete
		}
	case http.MethodPut:
		if req.Header.Get("If-None-Match") != "" {
			return OpPut
		}
	}
	return OpReplace
}

type sentBody struct {
	io.ReadCloser
	call *call
}

func (b *sentBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.call.moved(n, 0)
	return n, err
}

// receivedBody ends the call at its own end: when it was read, or is closed.
type receivedBody struct {
	io.ReadCloser
	call   *call
	failed bool
	end    sync.Once
}

func (b *receivedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.call.moved(0, n)
	if err != nil {
		b.end.Do(func() { b.call.end(b.failed || err != io.EOF) })
	}
	return n, err
}

func (b *receivedBody) Close() error {
	err := b.ReadCloser.Close()
	b.end.Do(func() { b.call.end(b.failed) })
	return err
}
