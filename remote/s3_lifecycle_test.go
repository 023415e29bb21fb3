package remote_test

import (
	"bytes"
	"crypto/md5"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
)

// lifecycleServer is the one part of S3 that versitygw does not have: a bucket's
// lifecycle configuration, kept as it was put.
type lifecycleServer struct {
	mu       sync.Mutex
	doc      []byte // nil for none
	minimum  string
	requests []string
	fail     int // so many requests fail first
}

const minimumHeader = "X-Amz-Transition-Default-Minimum-Object-Size"

func (s *lifecycleServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	body, err := io.ReadAll(r.Body)
	refuse := func(status int, code string) {
		w.WriteHeader(status)
		io.WriteString(w, "<Error><Code>"+code+"</Code><Message>no</Message></Error>")
	}
	s.requests = append(s.requests, r.Method)
	switch {
	case err != nil || r.URL.Path != "/bucket/" || r.URL.RawQuery != "lifecycle=" || !strings.Contains(r.Header.Get("Authorization"), "Credential=access/"):
		refuse(http.StatusBadRequest, "InvalidRequest")
	case s.fail > 0:
		s.fail--
		refuse(http.StatusServiceUnavailable, "SlowDown")
	case r.Method == http.MethodGet && s.doc == nil:
		refuse(http.StatusNotFound, "NoSuchLifecycleConfiguration")
	case r.Method == http.MethodGet:
		if s.minimum != "" {
			w.Header().Set(minimumHeader, s.minimum)
		}
		w.Write(s.doc)
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

func (s *lifecycleServer) said() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := strings.Join(s.requests, " ")
	s.requests = nil
	return all
}

// others is what somebody else has set up, with what minio's type would lose: a second
// transition, a filter that is empty, elements that nobody knows yet.
const others = `<Rule><ID>Default Multipart Abort Rule</ID><Filter></Filter><Status>Enabled</Status><AbortIncompleteMultipartUpload><DaysAfterInitiation>7</DaysAfterInitiation></AbortIncompleteMultipartUpload></Rule>` +
	`<Rule><ID>logs &amp; more</ID><Filter><And><Prefix>logs/</Prefix><Tag><Key>a</Key><Value>b</Value></Tag></And></Filter><Status>Disabled</Status>
		<Transition><Days>30</Days><StorageClass>STANDARD_IA</StorageClass></Transition><Transition><Days>90</Days><StorageClass>GLACIER</StorageClass></Transition>
		<Expiration><Date>2030-01-01T00:00:00.000Z</Date></Expiration><Future><Thing x="1"/></Future></Rule>` +
	`<Rule><ID>snapctl-ANOTHER-ttl-1d</ID><Filter><Prefix>else/</Prefix></Filter><Status>Enabled</Status><Expiration><Days>2</Days></Expiration></Rule>`

func TestLifecycle(t *testing.T) {
	server := &lifecycleServer{}
	h := httptest.NewServer(server)
	defer h.Close()
	s3 := openS3(t, remote.S3Config{
		Endpoint: h.URL, Bucket: "bucket", Prefix: "a/b",
		Credentials: remote.Credentials{AccessKeyID: "access", SecretAccessKey: "secret"},
	})
	store := remote.Retry(remote.Count(s3), &remote.RetryOptions{Sleep: noSleep}).(remote.Lifecycler)
	ctx := t.Context()
	const owner = "snapctl-OURS-"
	ours := []remote.LifecycleRule{{ID: owner + "ttl-1d", Prefix: "manifests/ttl-1d/", Days: 2}, {ID: owner + "ttl-7d", Prefix: "manifests/ttl-7d/", Days: 8}}
	expect := func(what string, want []remote.LifecycleRule, others int, requests string) {
		t.Helper()
		if got := server.said(); got != requests {
			t.Errorf("%s: requests %q, want %q", what, got, requests)
		}
		rules, n, err := store.Lifecycle(ctx, owner)
		if err != nil || n != others || len(rules)+len(want) > 0 && !reflect.DeepEqual(rules, want) {
			t.Errorf("%s: %+v, %d others, %v", what, rules, n, err)
		}
		server.said()
	}
	set := func(rules []remote.LifecycleRule) {
		t.Helper()
		if err := store.SetLifecycle(ctx, owner, rules); err != nil {
			t.Error(err)
		}
	}

	// A bucket without any.
	expect("nothing", nil, 0, "")
	set(nil)
	expect("nothing of nothing", nil, 0, "GET")
	set(ours)
	expect("ours alone", ours, 0, "GET PUT")
	if want := `<Filter><Prefix>a/b/manifests/ttl-1d/</Prefix></Filter><Status>Enabled</Status><Expiration><Days>2</Days></Expiration>`; !strings.Contains(string(server.doc), want) {
		t.Errorf("no %s in %s", want, server.doc)
	}
	set(ours)
	expect("again", ours, 0, "GET")
	set(nil)
	expect("ours alone removed", nil, 0, "GET DELETE")

	// Others stay as they are, to the byte.
	const root = `<LifecycleConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/">`
	server.doc = []byte(`<?xml version="1.0" encoding="UTF-8"?>` + "\n" + root + others + `<Known>no</Known></LifecycleConfiguration>`)
	server.minimum = "varies_by_storage_class"
	expect("others", nil, 3, "")
	set(ours)
	expect("beside others", ours, 3, "GET PUT")
	if !strings.HasPrefix(string(server.doc), root+others) || !strings.HasSuffix(string(server.doc), "<Known>no</Known></LifecycleConfiguration>") || server.minimum != "varies_by_storage_class" {
		t.Errorf("%s\n%s", server.minimum, server.doc)
	}
	set(ours[:1])
	expect("one less", ours[:1], 3, "GET PUT")
	server.fail = 2
	set(nil)
	expect("removed", nil, 3, "GET GET GET PUT")
	if want := root + others + "<Known>no</Known></LifecycleConfiguration>"; string(server.doc) != want {
		t.Errorf("%s, want\n%s", server.doc, want)
	}

	// What somebody changed about ours is seen, and set right.
	for what, change := range map[string][2]string{
		"switched off":   {"Enabled", "Disabled"},
		"other objects":  {"a/b/manifests/ttl-1d/", "a/c/"},
		"all objects":    {"<Filter><Prefix>a/b/manifests/ttl-1d/</Prefix></Filter>", "<Filter></Filter>"},
		"fewer objects":  {"</Prefix></Filter>", "</Prefix><ObjectSizeLessThan>1</ObjectSizeLessThan></Filter>"},
		"at a date":      {"<Days>2</Days>", "<Date>2030-01-01T00:00:00.000Z</Date>"},
		"something more": {"<Expiration>", "<NoncurrentVersionExpiration/><Expiration>"},
	} {
		server.doc = nil
		set(ours[:1])
		server.doc = []byte(strings.Replace(string(server.doc), change[0], change[1], 1))
		rules, _, err := store.Lifecycle(ctx, owner)
		if err != nil || len(rules) != 1 || !rules[0].Altered {
			t.Errorf("%s: %+v, %v", what, rules, err)
		}
		server.said()
		set(ours[:1])
		expect(what, ours[:1], 0, "GET PUT")
	}
	server.doc = []byte(root + "<Rule><ID>" + owner + "ttl-1d</ID><Prefix>a/b/manifests/ttl-1d/</Prefix><Status>Enabled</Status><Expiration><Days>2</Days></Expiration></Rule></LifecycleConfiguration>")
	expect("as it was written once", ours[:1], 0, "")

	for what, bad := range map[string]string{
		"a page":     "<html></html>",
		"nothing":    "",
		"a prefix":   `<s:LifecycleConfiguration xmlns:s="x"><s:Rule/></s:LifecycleConfiguration>`,
		"cut short":  root + others,
		"other data": `<ListBucketResult/>`,
	} {
		server.doc = []byte(bad)
		if err := store.SetLifecycle(ctx, owner, ours); err == nil || server.said() != "GET" {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, bad := range []remote.LifecycleRule{{ID: "other", Prefix: "x", Days: 1}, {ID: owner, Prefix: "x"}, {ID: owner, Prefix: "../x", Days: 1}} {
		if err := store.SetLifecycle(ctx, owner, []remote.LifecycleRule{bad}); err == nil {
			t.Errorf("%+v was set", bad)
		}
	}
}

// TestLifecycleUnsupported: versitygw, which checks the signature first, has no rules;
// nor has what is no bucket.
func TestLifecycleUnsupported(t *testing.T) {
	server := remotetest.StartVersityGW(t)
	for _, tls := range []bool{false, true} {
		s := openS3(t, remotetest.StartStrictR2(t, server, tls).Config(""))
		if _, _, err := s.Lifecycle(t.Context(), "x"); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("tls %v: %v", tls, err)
		} else {
			t.Log(err)
		}
		if err := s.SetLifecycle(t.Context(), "x", []remote.LifecycleRule{{ID: "x1", Prefix: "x", Days: 1}}); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("tls %v: %v", tls, err)
		}
		c := remotetest.StartStrictR2(t, server, tls).Config("")
		c.Credentials.SecretAccessKey = "wrong"
		if _, _, err := openS3(t, c).Lifecycle(t.Context(), "x"); !errors.Is(err, remote.ErrAccess) {
			t.Errorf("tls %v: a wrong key: %v", tls, err)
		}
	}
	l := remote.Retry(remote.Count(remote.NewMemory()), nil).(remote.Lifecycler)
	if _, _, err := l.Lifecycle(t.Context(), "x"); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("memory: %v", err)
	}
}
