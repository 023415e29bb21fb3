package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A server answers at the socket of its entry in the registry, by HTTP:
//
//	GET  /status   statusReply
//	POST /points   pointRequest: shows the snapshot at a further mount point; pointReply
//	POST /profile  saves the access profile, in the background; {}
//
// Only its own user can reach it: the folder is his alone. It answers an error
// with another status than 200, and a text.
const (
	statusPath  = "/status"
	pointsPath  = "/points"
	profilePath = "/profile"

	maxControl = 1 << 20 // bytes of a request or a reply
)

// How long others wait for a server: to be told how it is, and to have it do
// something. One that is stopped, or waits for a disk, must not stop them too.
const (
	statusPatience = time.Second
	pointPatience  = 10 * time.Second // that it is there is known then
)

type statusReply struct {
	Pid      int        `json:"pid"`
	Restarts int        `json:"restarts,omitempty"`
	Keeper   int        `json:"keeper,omitempty"` // pid
	Kept     bool       `json:"kept,omitempty"`   // there is one, which may have no pid yet
	Used     bool       `json:"used,omitempty"`   // the kernel has a file system of its still
	Stats    MountStats `json:"stats"`
}

type pointRequest struct {
	Dir        rawPath   `json:"dir"`
	AllowOther bool      `json:"allowOther,omitempty"`
	Namespace  string    `json:"namespace"` // of who asks: paths mean something else in another
	Root       string    `json:"root"`      // device and inode of /, likewise
	Until      time.Time `json:"until"`     // then nobody waits for it any more
}

type pointReply struct {
	Pid   int         `json:"pid"`
	Point recordPoint `json:"point"`
}

// rootDir identifies what this process calls /.
func rootDir() string {
	var st unix.Stat_t
	if err := unix.Stat("/", &st); err != nil {
		return ""
	}
	return fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}

// listen makes the socket of an entry, and answers at it.
func (s *mountServer) listen(e *entry) error {
	l, err := net.Listen("unix", e.path(socketName))
	if err != nil {
		return err
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // the path is of use as long as the entry is open
	if err := os.Chmod(e.path(socketName), 0o600); err != nil {
		l.Close()
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+statusPath, func(w http.ResponseWriter, _ *http.Request) {
		s.checkFor(statusPatience / 2) // for who has just unmounted something
		reply(w, s.status())
	})
	mux.HandleFunc("POST "+pointsPath, s.answerPoint)
	mux.HandleFunc("POST "+profilePath, func(w http.ResponseWriter, _ *http.Request) {
		s.ahead.saveSoon()
		reply(w, struct{}{})
	})
	s.control = &http.Server{
		Handler:           mux,
		ErrorLog:          log.New(io.Discard, "", 0),
		ReadHeaderTimeout: statusPatience,
		ReadTimeout:       pointPatience,
	}
	go s.control.Serve(l)
	return nil
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v) // or the caller is gone
}

func (s *mountServer) answerPoint(w http.ResponseWriter, r *http.Request) {
	var q pointRequest
	err := json.NewDecoder(io.LimitReader(r.Body, maxControl)).Decode(&q)
	switch {
	case err != nil:
	case !s.share:
		err = errors.New("this process serves no mount points of others")
	case q.Namespace != mountNamespace() || q.Root != rootDir():
		err = errors.New("another mount namespace")
	}
	var m *Mount
	if err == nil {
		ctx, cancel := context.WithDeadline(r.Context(), q.Until)
		defer cancel()
		m, err = s.attach(ctx, string(q.Dir), &MountOptions{AllowOther: q.AllowOther})
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	reply(w, pointReply{os.Getpid(), m.point})
}

// call asks the server of an entry.
func (e *entry) call(ctx context.Context, method, path string, in, out any) error {
	t := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", e.path(socketName))
		},
	}
	defer t.CloseIdleConnections()
	var body bytes.Buffer
	if in != nil {
		if err := json.NewEncoder(&body).Encode(in); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://snapctl"+path, &body)
	if err != nil {
		return err
	}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxControl))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New(strings.TrimSpace(string(b)))
	}
	return json.Unmarshal(b, out)
}

// status asks the server how it is.
func (e *entry) status(ctx context.Context) (*statusReply, error) {
	ctx, cancel := context.WithTimeout(ctx, statusPatience)
	defer cancel()
	s := &statusReply{}
	if err := e.call(ctx, http.MethodGet, statusPath, nil, s); err != nil {
		return nil, err
	}
	return s, nil
}

// attach asks the server to show its snapshot at a further mount point.
func (e *entry) attach(ctx context.Context, path string, opts *MountOptions) (*pointReply, error) {
	until := time.Now().Add(pointPatience)
	// The server gives up before us, and we do not give up before it: what it did
	// must be known.
	ctx, cancel := context.WithDeadline(context.WithoutCancel(ctx), until.Add(pointPatience))
	defer cancel()
	q := pointRequest{Dir: rawPath(path), AllowOther: opts.AllowOther, Namespace: mountNamespace(), Root: rootDir(), Until: until}
	p := &pointReply{}
	if err := e.call(ctx, http.MethodPost, pointsPath, q, p); err != nil {
		return nil, err
	}
	return p, nil
}
