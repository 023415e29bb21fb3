package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/snapctl/snapctl/remote/remotetest"
)

// An s3Server is versitygw on the work folder, and toxiproxy in front of it
// for the distance. Both are built from tools/go.mod.
type s3Server struct {
	dir      string // all that it keeps
	direct   string // URL of the server itself
	far      string // URL of the server as seen from afar
	accesses string // versitygw's log of requests
	control  string // URL of the proxy's API
	gateway  string // address of the server
	proxy    *exec.Cmd
	daemons  []*exec.Cmd
}

const (
	bucketName = "bench"
	accessKey  = "bench"
	secretKey  = "bench-secret"
)

func startS3(ctx context.Context, b *bench) (s *s3Server, err error) {
	s = &s3Server{dir: filepath.Join(b.work, "s3")}
	s.accesses = filepath.Join(s.dir, "access.log")
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if err := errors.Join(os.MkdirAll(s.root(bucketName), 0o755), os.MkdirAll(filepath.Join(s.dir, "sidecar"), 0o755)); err != nil {
		return nil, err
	}
	versitygw, err := remotetest.Tool(ctx, "versitygw")
	if err != nil {
		return nil, err
	}
	toxiproxy, err := remotetest.Tool(ctx, "server") // its package's name
	if err != nil {
		return nil, err
	}
	ports, err := freePorts(2)
	if err != nil {
		return nil, err
	}
	gateway, control := ports[0], ports[1]
	s.gateway, s.direct, s.control = gateway, "http://"+gateway, "http://"+control

	if err := s.daemon(ctx, gateway, versitygw, "--quiet", "--port", gateway, "--access", accessKey, "--secret", secretKey,
		"--access-log", s.accesses, "posix", "--sidecar", filepath.Join(s.dir, "sidecar"), s.root()); err != nil {
		return nil, err
	}
	host, port, _ := net.SplitHostPort(control)
	if err := s.daemon(ctx, control, toxiproxy, "-host", host, "-port", port); err != nil {
		return nil, err
	}
	s.proxy = s.daemons[1]
	if s.far, err = s.distance(ctx, "far", b.o.rtt, b.o.bandwidth); err != nil {
		return nil, err
	}
	c, err := s3Client(s.far, credentials.NewStaticV4(accessKey, secretKey, ""))
	if err != nil {
		return nil, err
	}
	if ok, err := c.BucketExists(ctx, bucketName); err != nil || !ok {
		return nil, fmt.Errorf("no way to the S3 server: bucket there: %v, %w", ok, err)
	}
	return s, nil
}

// root is the folder that versitygw serves; buckets are folders in it, and
// objects files.
func (s *s3Server) root(elem ...string) string {
	return filepath.Join(append([]string{s.dir, "root"}, elem...)...)
}

func (s *s3Server) bucket(endpoint, prefix string) bucket {
	return bucket{endpoint: endpoint, name: bucketName, prefix: prefix, region: "us-east-1", access: accessKey, secret: secretKey}
}

// daemon starts a server, and waits until it listens.
func (s *s3Server) daemon(ctx context.Context, addr string, args ...string) error {
	said := &tail{max: 4 << 10}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.dir, said, said
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.dir, "LOG_LEVEL=error"}
	ownGroup(cmd)
	if err := cmd.Start(); err != nil {
		return err
	}
	s.daemons = append(s.daemons, cmd)
	deadline := time.Now().Add(5 * time.Minute) // only on a machine that is slow or stuck
	for {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			return c.Close()
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return fmt.Errorf("%s does not listen: %w\n%s", filepath.Base(args[0]), errors.Join(err, ctx.Err()), said)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// distance has toxiproxy listen at one more address, whose URL it gives: half
// the round trip to each direction, and a limit of bandwidth for each
// connection. Connecting itself costs nothing, because it ends at the proxy.
func (s *s3Server) distance(ctx context.Context, name string, rtt time.Duration, mbps int) (url string, err error) {
	ports, err := freePorts(1)
	if err != nil {
		return "", err
	}
	if err := post(ctx, s.control+"/proxies", map[string]any{"name": name, "listen": ports[0], "upstream": s.gateway}); err != nil {
		return "", err
	}
	there := rtt.Milliseconds() / 2
	for stream, latency := range map[string]int64{"upstream": there, "downstream": rtt.Milliseconds() - there} {
		toxics := map[string]map[string]any{"latency": {"latency": latency}}
		if mbps > 0 {
			toxics["bandwidth"] = map[string]any{"rate": mbps * 1000} // toxiproxy's KB are thousands
		}
		for kind, attributes := range toxics {
			toxic := map[string]any{"type": kind, "stream": stream, "attributes": attributes}
			if err := post(ctx, s.control+"/proxies/"+name+"/toxics", toxic); err != nil {
				return "", err
			}
		}
	}
	return "http://" + ports[0], nil
}

func post(ctx context.Context, url string, body any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(b))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		said, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return fmt.Errorf("toxiproxy: %s: %s: %s", url, resp.Status, said)
	}
	return nil
}

// freePorts finds addresses that nothing listens at, for servers that cannot
// be told to choose one and say which.
func freePorts(n int) ([]string, error) {
	var addrs []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // only after all are chosen, so that they differ
		addrs = append(addrs, l.Addr().String())
	}
	return addrs, nil
}

// Close ends the servers. What they kept goes with the work folder.
func (s *s3Server) Close() error {
	for _, cmd := range s.daemons {
		cmd.Cancel()
		cmd.Wait()
	}
	return nil
}

// cpu is the processor time that the servers have used, in seconds. They run
// on the machine that is measured.
func (s *s3Server) cpu() float64 {
	var sum time.Duration
	for _, cmd := range s.daemons {
		sum += processCPU(cmd.Process.Pid)
	}
	return sum.Seconds()
}

// moved is how many bytes the proxy has passed on, in both directions. The
// server's log does not tell, and the proxy itself only of connections that
// have ended.
func (s *s3Server) moved() int64 { return processWritten(s.proxy.Process.Pid) }

// logged is how much versitygw has logged, to be given to requests later.
func (s *s3Server) logged() int64 {
	info, err := os.Stat(s.accesses)
	if err != nil {
		return 0
	}
	return info.Size()
}

// requests counts what was asked of the server since the log had that size.
func (s *s3Server) requests(since int64) (map[string]int, error) {
	f, err := os.Open(s.accesses)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := f.Seek(since, io.SeekStart); err != nil {
		return nil, err
	}
	return countRequests(f)
}

// countRequests counts the requests of an access log by their kind.
func countRequests(r io.Reader) (map[string]int, error) {
	counts := map[string]int{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		// owner bucket [time zone] address requester id operation ...
		if f := strings.Fields(lines.Text()); len(f) > 7 {
			if op, ok := strings.CutPrefix(f[7], "s3_"); ok {
				counts[requestKind(op)]++
			}
		}
	}
	return counts, lines.Err()
}

// requestKind is what a provider charges an operation as.
func requestKind(op string) string {
	for _, kind := range []string{"LIST", "GET", "HEAD", "DELETE"} {
		if len(op) > len(kind) && strings.EqualFold(op[:len(kind)], kind) {
			return kind
		}
	}
	return "PUT" // PutObject, and the steps of a multipart upload
}
