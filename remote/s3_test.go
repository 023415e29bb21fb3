package remote_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
)

// methods gives the requests as "PUT 200, HEAD 0".
func methods(requests []remotetest.Request) string {
	var all []string
	for _, r := range requests {
		all = append(all, fmt.Sprintf("%s %d", r.Method, r.Status))
	}
	return strings.Join(all, ", ")
}

func expectMethods(t *testing.T, strict *remotetest.StrictR2, what, want string) {
	t.Helper()
	if got := methods(strict.Requests()); got != want {
		t.Errorf("%s: requests %q, want %q", what, got, want)
	}
}

// TestS3Requests pins what an operation costs: requests are money and round
// trips. It runs over HTTP and TLS, which are signed in different ways.
func TestS3Requests(t *testing.T) {
	server := remotetest.StartVersityGW(t)
	for _, tls := range []bool{false, true} {
		strict := remotetest.StartStrictR2(t, server, tls)
		s := openS3(t, strict.Config(fmt.Sprintf("tls-%v", tls)))
		ctx := t.Context()
		data := bytes.Repeat([]byte("0123456789abcdef"), 17<<16) // over 16 MiB, where minio would go multipart
		check := func(what string, err error, want string) {
			t.Helper()
			if err != nil {
				t.Errorf("%s: %v", what, err)
			}
			expectMethods(t, strict, what, want)
		}
		check("Put", s.Put(ctx, "packs/aa/1", data), "PUT 200")
		check("empty Put", s.Put(ctx, "packs/aa/2", nil), "PUT 200")
		got, err := s.Get(ctx, "packs/aa/1")
		if !bytes.Equal(got, data) {
			t.Errorf("got %d other bytes than were put", len(got))
		}
		check("Get", err, "GET 200")
		p := make([]byte, 100)
		check("ReadAt", s.ReadAt(ctx, "packs/aa/1", 5, p), "GET 206")
		_, err = s.Stat(ctx, "packs/aa/1")
		check("Stat", err, "HEAD 200")
		check("List", s.List(ctx, "packs/", func(remote.Info) error { return nil }), "GET 200")
		check("Replace", s.Replace(ctx, "leases/1", data[:10]), "PUT 200")
		check("Delete of one", s.Delete(ctx, "leases/1"), "DELETE 204")
		check("Delete of two", s.Delete(ctx, "packs/aa/1", "packs/aa/2"), "POST 200")
	}
}

// TestS3Corrupt has the body change on the way to the server, which must
// notice.
func TestS3Corrupt(t *testing.T) {
	server := remotetest.StartVersityGW(t)
	for _, tls := range []bool{false, true} {
		strict := remotetest.StartStrictR2(t, server, tls)
		strict.WriteInterval = 0
		s := openS3(t, strict.Config(fmt.Sprintf("tls-%v", tls)))
		data := []byte("content that must arrive as it is")
		strict.Next(remotetest.Trouble{Corrupt: true})
		if err := s.Put(t.Context(), "a", data); !remote.Transient(err) {
			t.Errorf("tls=%v: got %v, want a transient error", tls, err)
		}
		strict.Next(remotetest.Trouble{Corrupt: true})
		if err := quick(s).Put(t.Context(), "a", data); err != nil {
			t.Error(err)
		}
		if got, err := s.Get(t.Context(), "a"); err != nil || !bytes.Equal(got, data) {
			t.Errorf("tls=%v: got %q, %v", tls, got, err)
		}
	}
}

// quick retries without waiting.
func quick(s remote.Store) remote.Store {
	return remote.Retry(s, &remote.RetryOptions{Sleep: noSleep})
}

func TestS3AnswerLost(t *testing.T) {
	strict := remotetest.StartStrictR2(t, remotetest.StartVersityGW(t), false)
	strict.WriteInterval = 0
	s := openS3(t, strict.Config(""))
	ctx := t.Context()
	data := bytes.Repeat([]byte("x"), 1<<20)
	lost := remotetest.Trouble{LoseAnswer: true}

	// It looks at once whether the object is there,
	strict.Next(lost)
	if err := s.Put(ctx, "a", data); err != nil {
		t.Error(err)
	}
	expectMethods(t, strict, "answer lost", "PUT 0, HEAD 200")

	// or if it cannot, the next attempt finds its own object there,
	strict.Next(lost, remotetest.Trouble{Reset: true})
	if err := quick(s).Put(ctx, "b", []byte("small")); err != nil {
		t.Error(err)
	}
	expectMethods(t, strict, "answer lost, then away", "PUT 0, HEAD 0, PUT 412, HEAD 200")

	// or another's.
	strict.Next(lost)
	if err := s.Put(ctx, "a", []byte("other")); !errors.Is(err, remote.ErrExist) {
		t.Errorf("got %v, want ErrExist", err)
	}
	// Of the same size, only the content tells.
	if err := s.Put(ctx, "b", []byte("SMALL")); !errors.Is(err, remote.ErrExist) {
		t.Errorf("got %v, want ErrExist", err)
	}

	// It did not arrive at all.
	strict.Next(remotetest.Trouble{Reset: true})
	if err := s.Put(ctx, "c", data); !remote.Transient(err) {
		t.Errorf("got %v, want a transient error", err)
	}
	strict.Requests()
	strict.Next(lost)
	if err := quick(s).Delete(ctx, "a"); err != nil {
		t.Error(err)
	}
	strict.Next(lost)
	if err := quick(s).Delete(ctx, "a", "b"); err != nil {
		t.Error(err)
	}
	expectMethods(t, strict, "deletions", "DELETE 0, DELETE 204, POST 0, POST 200")
}

// TestS3AwayAndBack has the server away until the third wait of every operation.
func TestS3AwayAndBack(t *testing.T) {
	strict := remotetest.StartStrictR2(t, remotetest.StartVersityGW(t), false)
	strict.WriteInterval = 0
	base := openS3(t, strict.Config("away"))
	ctx := t.Context()
	p := make([]byte, 3)
	for _, test := range []struct {
		name string
		f    func(remote.Store) error
	}{
		{"Put", func(s remote.Store) error { return s.Put(ctx, "a", []byte("content")) }},
		{"Get", func(s remote.Store) error { _, err := s.Get(ctx, "a"); return err }},
		{"ReadAt", func(s remote.Store) error { return s.ReadAt(ctx, "a", 1, p) }},
		{"Stat", func(s remote.Store) error { _, err := s.Stat(ctx, "a"); return err }},
		{"Replace", func(s remote.Store) error { return s.(remote.Replacer).Replace(ctx, "b", nil) }},
		{"List", func(s remote.Store) error {
			n := 0
			err := s.List(ctx, "", func(remote.Info) error { n++; return nil })
			if n != 2 {
				return fmt.Errorf("%d objects listed, %w", n, err)
			}
			return err
		}},
		{"Delete", func(s remote.Store) error { return s.Delete(ctx, "a") }},
		{"DeleteMany", func(s remote.Store) error { return s.Delete(ctx, "a", "b", "c") }},
	} {
		sleeps, told := 0, 0
		strict.SetAway(true)
		s := remote.Retry(base, &remote.RetryOptions{
			Sleep: func(context.Context, time.Duration) error {
				if sleeps++; sleeps == 3 {
					strict.SetAway(false)
				}
				return nil
			},
			Notify: func(err error, _ time.Duration) { told++ },
		})
		if err := test.f(s); err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
		if sleeps != 3 || told != 3 {
			t.Errorf("%s: waited %d times, notified %d times, want 3", test.name, sleeps, told)
		}
	}
	if string(p) != "ont" {
		t.Errorf("ReadAt gave %q", p)
	}
}

func TestS3Throttled(t *testing.T) {
	strict := remotetest.StartStrictR2(t, remotetest.StartVersityGW(t), false)
	base := openS3(t, strict.Config(""))
	var waits []time.Duration
	s := remote.Retry(base, &remote.RetryOptions{
		Initial: time.Millisecond, Total: 10 * time.Hour,
		Sleep: func(_ context.Context, d time.Duration) error {
			waits = append(waits, d)
			return nil
		},
	})
	strict.Next(
		remotetest.Trouble{Status: 503, RetryAfter: "7"},
		remotetest.Trouble{Status: 429, RetryAfter: time.Now().Add(time.Hour).UTC().Format(http.TimeFormat)},
		remotetest.Trouble{Status: 500},
	)
	if err := s.Put(t.Context(), "a", nil); err != nil {
		t.Fatal(err)
	}
	if len(waits) != 3 || waits[0] != 7*time.Second || waits[1] < 30*time.Minute || waits[2] > time.Second {
		t.Errorf("waited %v, want 7s, about an hour, and a moment", waits)
	}
}

// startManyObjects has 1010 objects in a bucket, which is more than one page of a list,
// under the prefix p, and gives their names.
func startManyObjects(t *testing.T) (strict *remotetest.StrictR2, want []string) {
	t.Helper()
	server := remotetest.StartVersityGW(t)
	strict = remotetest.StartStrictR2(t, server, false)
	dir := filepath.Join(server.Dir(), "p", "packs")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range 1010 {
		want = append(want, fmt.Sprintf("packs/%04d", i))
		if err := os.WriteFile(filepath.Join(server.Dir(), "p", want[i]), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// Objects that are no Store's.
	if err := os.WriteFile(filepath.Join(dir, "README.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return strict, want
}

func listNames(ctx context.Context, s remote.Store, prefix string) (names []string, err error) {
	err = s.List(ctx, prefix, func(i remote.Info) error {
		names = append(names, i.Name)
		return nil
	})
	return names, err
}

// TestS3List: no trouble may make a list look shorter than it is.
func TestS3List(t *testing.T) {
	strict, want := startManyObjects(t)
	s := openS3(t, strict.Config("p"))
	for _, page := range []int{1, 2} {
		for what, trouble := range map[string]remotetest.Trouble{
			"500":                   {Status: 500},
			"503":                   {Status: 503},
			"reset":                 {Reset: true},
			"answer lost":           {LoseAnswer: true},
			"broken off":            {Truncate: 1500},
			"broken off at once":    {Truncate: 10},
			"error with status 200": {Body: `<?xml version="1.0"?><Error><Code>InternalError</Code></Error>`},
			"a proxy's page":        {Body: `<html><body><p>Please log in.</p></body></html>`},
			"half a list":           {Body: `<ListBucketResult><Name>bucket</Name><IsTruncated>false</IsTruncated>`},
		} {
			t.Run(fmt.Sprintf("%s on page %d", what, page), func(t *testing.T) {
				testListTrouble(t, strict, s, want, page, trouble)
			})
		}
	}
}

// testListTrouble lists with trouble on one page: that may be an error, and is none with
// retries, which do not list anything twice.
func testListTrouble(t *testing.T, strict *remotetest.StrictR2, s remote.Store, want []string, page int, trouble remotetest.Trouble) {
	fail := func() {
		n := 0
		strict.Hook(func(*http.Request) remotetest.Trouble {
			if n++; n == page {
				return trouble
			}
			return remotetest.Trouble{}
		})
	}
	fail()
	// net/http itself tries once more when a connection breaks that it had
	// used before, so there need not be an error.
	if got, err := listNames(t.Context(), s, ""); err == nil && len(got) != len(want) || err != nil && !remote.Transient(err) {
		t.Errorf("got %d names and %v, want all or a transient error", len(got), err)
	}
	fail()
	strict.Requests()
	if got, err := listNames(t.Context(), quick(s), ""); err != nil || !slices.Equal(got, want) {
		t.Errorf("with retries: got %d names, want %d, error %v", len(got), len(want), err)
	}
	if n := len(strict.Requests()); n != 3 { // it goes on with the second page
		t.Errorf("%d requests, want 3", n)
	}
}

func TestS3ListCancelled(t *testing.T) {
	strict, _ := startManyObjects(t)
	s := openS3(t, strict.Config("p"))
	for _, at := range []int{1, 500, 1000, 1005, 1010} {
		ctx, cancel := context.WithCancel(t.Context())
		n := 0
		err := s.List(ctx, "", func(remote.Info) error {
			if n++; n == at {
				cancel()
			}
			return nil
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled after %d entries: got %v after %d", at, err, n)
		}
		cancel()
	}
}

func TestS3GetBrokenOff(t *testing.T) {
	strict := remotetest.StartStrictR2(t, remotetest.StartVersityGW(t), false)
	s := openS3(t, strict.Config(""))
	data := bytes.Repeat([]byte("0123456789"), 1<<17)
	if err := s.Put(t.Context(), "a", data); err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{1, 1000, len(data) - 1} {
		strict.Next(remotetest.Trouble{Truncate: at})
		if got, err := s.Get(t.Context(), "a"); !remote.Transient(err) || got != nil {
			t.Errorf("Get broken off after %d bytes: got %d bytes and %v", at, len(got), err)
		}
		strict.Next(remotetest.Trouble{Truncate: at})
		if err := s.ReadAt(t.Context(), "a", 0, make([]byte, len(data))); !remote.Transient(err) {
			t.Errorf("ReadAt broken off after %d bytes: got %v", at, err)
		}
		strict.Next(remotetest.Trouble{Truncate: at}, remotetest.Trouble{Truncate: at})
		if got, err := quick(s).Get(t.Context(), "a"); err != nil || !bytes.Equal(got, data) {
			t.Errorf("after %d bytes, with retries: got %d bytes and %v", at, len(got), err)
		}
	}
	// An answer to another question: the whole object, where a range was asked for.
	strict.Next(remotetest.Trouble{Body: string(data)})
	if err := s.ReadAt(t.Context(), "a", 5, make([]byte, 10)); err == nil {
		t.Error("ReadAt takes the whole object for the range")
	}
}

// TestS3Refused: what trying again cannot mend is said at once, by its sentinel.
func TestS3Refused(t *testing.T) {
	strict := remotetest.StartStrictR2(t, remotetest.StartVersityGW(t), false)
	strict.WriteInterval = 0
	ctx := t.Context()

	wrong := strict.Config("")
	wrong.Credentials.SecretAccessKey = "wrong"
	unknown := strict.Config("")
	unknown.Credentials.AccessKeyID = "unknown"
	nowhere := strict.Config("")
	nowhere.Bucket = "nowhere"
	for _, test := range []struct {
		config remote.S3Config
		want   error
	}{
		{wrong, remote.ErrAccess}, {unknown, remote.ErrAccess}, {nowhere, remote.ErrNoBucket},
	} {
		s := remote.Retry(openS3(t, test.config), &remote.RetryOptions{Notify: func(err error, _ time.Duration) {
			t.Errorf("tries again after %v", err)
		}})
		errs := map[string]error{
			"Put":         s.Put(ctx, "a", []byte("x")),
			"ReadAt":      s.ReadAt(ctx, "a", 0, make([]byte, 1)),
			"List":        s.List(ctx, "", func(remote.Info) error { return nil }),
			"Delete many": s.Delete(ctx, "a", "b"),
		}
		_, errs["Get"] = s.Get(ctx, "a")
		for what, err := range errs {
			if !errors.Is(err, test.want) {
				t.Errorf("%s: got %v, want %v", what, err, test.want)
			}
			if strings.Contains(fmt.Sprint(err), test.config.Credentials.SecretAccessKey) {
				t.Errorf("%s: the error has the secret in it: %v", what, err)
			}
		}
	}

	// A web server that knows nothing of S3 has no objects, but also lacks none.
	strict.Hook(func(*http.Request) remotetest.Trouble {
		return remotetest.Trouble{Status: 404, Body: "<html>Not found</html>"}
	})
	s := openS3(t, strict.Config(""))
	if _, err := s.Get(ctx, "a"); err == nil || errors.Is(err, remote.ErrNotExist) {
		t.Errorf("Get: got %v", err)
	}
	if err := s.Delete(ctx, "a"); err == nil {
		t.Error("Delete: no error")
	}

	// A server that was never there is tried again; one with a mistyped name is not.
	c := strict.Config("")
	c.Endpoint = "http://no-such-host.invalid"
	s = openS3(t, c)
	if _, err := s.Get(ctx, "a"); err == nil || remote.Transient(err) {
		t.Errorf("got %v, want an error that is not transient", err)
	}
}
