package remote_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/snapctl/snapctl/remote"
)

const account = "0123456789abcdef0123456789abcdef"

func TestParseURL(t *testing.T) {
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		raw  string
		want remote.Location
		str  string
	}{
		{"/var/repo", remote.Location{Dir: "/var/repo"}, "/var/repo"},
		{"/var//repo/../repo/", remote.Location{Dir: "/var/repo"}, "/var/repo"},
		{"/var/50%?a=b#c", remote.Location{Dir: "/var/50%?a=b#c"}, "/var/50%?a=b#c"},
		{"repo", remote.Location{Dir: filepath.Join(wd, "repo")}, filepath.Join(wd, "repo")},
		{"./s3:x", remote.Location{Dir: filepath.Join(wd, "s3:x")}, filepath.Join(wd, "s3:x")},
		{"./~/repo", remote.Location{Dir: filepath.Join(wd, "~/repo")}, filepath.Join(wd, "~/repo")},
		{"~repo", remote.Location{Dir: filepath.Join(wd, "~repo")}, filepath.Join(wd, "~repo")},
		{"a:b", remote.Location{Dir: filepath.Join(wd, "a:b")}, filepath.Join(wd, "a:b")},
		{"file:///var/repo", remote.Location{Dir: "/var/repo"}, "/var/repo"},
		{"file://localhost/var/re%20po", remote.Location{Dir: "/var/re po"}, "/var/re po"},

		{"s3://bucket", remote.Location{Bucket: "bucket"}, "s3://bucket"},
		{"s3://bucket/", remote.Location{Bucket: "bucket"}, "s3://bucket"},
		{"s3://my.bucket-1/a/b%20c/", remote.Location{Bucket: "my.bucket-1", Prefix: "a/b c"}, "s3://my.bucket-1/a/b%20c"},
		{"s3://bucket/p?region=eu-west-1", remote.Location{Bucket: "bucket", Prefix: "p", Region: "eu-west-1"}, "s3://bucket/p?region=eu-west-1"},
		{
			"s3://bucket/p?region=x&endpoint=http://Localhost:9000/",
			remote.Location{Bucket: "bucket", Prefix: "p", Region: "x", Endpoint: "http://localhost:9000"},
			"s3://bucket/p?endpoint=http://localhost:9000&region=x",
		},
		{
			"s3://bucket?endpoint=https%3A%2F%2F[::1]:9000",
			remote.Location{Bucket: "bucket", Endpoint: "https://[::1]:9000"},
			"s3://bucket?endpoint=https://%5B::1%5D:9000",
		},
		{
			"r2://" + account + "/bucket/p/q",
			remote.Location{
				Account: account, Bucket: "bucket", Prefix: "p/q", Region: "auto",
				Endpoint: "https://" + account + ".r2.cloudflarestorage.com",
			},
			"r2://" + account + "/bucket/p/q",
		},
		{
			"r2://" + account + "/bucket?jurisdiction=eu",
			remote.Location{
				Account: account, Bucket: "bucket", Jurisdiction: "eu", Region: "auto",
				Endpoint: "https://" + account + ".eu.r2.cloudflarestorage.com",
			},
			"r2://" + account + "/bucket?jurisdiction=eu",
		},
	} {
		got, err := remote.ParseURL(test.raw)
		if err != nil || got != test.want {
			t.Errorf("%s: got %+v, %v, want %+v", test.raw, got, err, test.want)
		}
		if got.String() != test.str {
			t.Errorf("%s: the string is %s, want %s", test.raw, got, test.str)
		}
		if again, err := remote.ParseURL(got.String()); err != nil || again != got {
			t.Errorf("%s: parsed again, %+v, %v, want %+v", got, again, err, got)
		}
	}
}

func TestParseURLRefuses(t *testing.T) {
	for _, test := range []struct{ raw, want string }{
		{"", "empty"},
		{"~", "the path in full"},
		{"~/repo", "the path in full"},
		{"a\x00b", "zero byte"},
		{"file://", "no path"},
		{"file://path", "not this machine"},
		{"file:path", "followed by //"},
		{"file:///a%00", "zero byte"},
		{"file:///a?b=c", `unknown parameter "b"`},
		{"gs://bucket", `unknown scheme "gs"`},
		{"http://host/bucket", `unknown scheme "http"`},
		{"s3:bucket", "followed by //"},
		{"s3:http://host/bucket", "followed by //"},
		{"s3://", "no bucket"},
		{"s3:///p", "no bucket"},
		{"s3://Bucket", "not a bucket's name"},
		{"s3://host:9000/bucket", "not a bucket's name"},
		{"s3://127.0.0.1/bucket", "not a bucket's name"},
		{"s3://a", "not a bucket's name"},
		{"s3://buck..et", "not a bucket's name"},
		{"s3://bucket/a//b", "part that is empty"},
		{"s3://bucket/../b", "made of dots"},
		{"s3://bucket/a%0ab", "printable"},
		{"s3://bucket/" + strings.Repeat("x", 513), "longer"},
		{"s3://bucket/p#f", "fragment"},
		{"s3://bucket/p#", "fragment"},
		{"s3://bucket/%zz", "invalid URL escape"},
		{"s3://bucket?foo=bar", `unknown parameter "foo"`},
		{"s3://bucket?region=a&region=b", "twice"},
		{"s3://bucket?region=%2F", "not a region"},
		{"s3://bucket?endpoint=localhost:9000", "neither http nor https"},
		{"s3://bucket?endpoint=127.0.0.1:9000", "not a URL"},
		{"s3://bucket?endpoint=//host", "not a URL"},
		{"s3://bucket?endpoint=http://host/path", "nothing may follow"},
		{"s3://bucket?endpoint=http://", "not a URL"},
		{"r2://bucket/p", "account id"},
		{"r2://" + account, "no bucket"},
		{"r2://" + account + "/bucket?jurisdiction=us", "unknown jurisdiction"},
		{"r2://" + account + "/bucket?endpoint=http://host", "unknown parameter"},
	} {
		got, err := remote.ParseURL(test.raw)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q: got %+v, %v, want an error with %q", test.raw, got, err, test.want)
		}
	}
}

// TestParseURLSecrets: credentials are refused wherever they stand, and are
// not in the error, which ends up in a log.
func TestParseURLSecrets(t *testing.T) {
	for _, raw := range []string{
		"s3://KEY:hunter2@bucket/p",
		"s3://KEY:hun%ter2@bucket/hunter2",
		"s3://hunter2@bucket",
		"s3://KEY:hunter2@/bucket",
		"s3://:hunter2@",
		"r2://KEY:hunter2@" + account + "/bucket",
		"http://KEY:hunter2@host",
		"s3://bucket?endpoint=http://KEY:hunter2@host:9000",
		"s3://bucket?endpoint=http%3A%2F%2FKEY%3Ahunter2%40host",
		"s3://bucket?secret_access_key=hunter2",
		"s3://bucket?region=a&secret=hunter2",
	} {
		_, err := remote.ParseURL(raw)
		if err == nil {
			t.Errorf("%s is taken", raw)
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the error repeats the secret: %v", raw, err)
		}
	}
	t.Setenv("AWS_ENDPOINT_URL", "http://KEY:hunter2@host")
	if _, err := remote.ParseURL("s3://bucket"); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("from the environment: got %v", err)
	}
}

func TestParseURLEnvironment(t *testing.T) {
	parse := func(raw string) string {
		l, err := remote.ParseURL(raw)
		if err != nil {
			return err.Error()
		}
		return l.String()
	}
	for _, step := range []struct{ key, value, raw, want string }{
		{"AWS_DEFAULT_REGION", "eu-1", "s3://bucket", "s3://bucket?region=eu-1"},
		{"AWS_REGION", "eu-2", "s3://bucket", "s3://bucket?region=eu-2"},
		{"AWS_REGION", "eu-2", "s3://bucket?region=eu-3", "s3://bucket?region=eu-3"},
		{"AWS_ENDPOINT_URL", "http://all:1", "s3://bucket", "s3://bucket?endpoint=http://all:1&region=eu-2"},
		{"AWS_ENDPOINT_URL_S3", "http://s3:2", "s3://bucket", "s3://bucket?endpoint=http://s3:2&region=eu-2"},
		{"AWS_ENDPOINT_URL_S3", "http://s3:2", "s3://bucket?endpoint=http://url:3", "s3://bucket?endpoint=http://url:3&region=eu-2"},
		{"AWS_ENDPOINT_URL_S3", "http://s3:2", "r2://" + account + "/bucket", "r2://" + account + "/bucket"},
		{"AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true", "s3://bucket", "s3://bucket?region=eu-2"},
	} {
		t.Setenv(step.key, step.value)
		if got := parse(step.raw); got != step.want {
			t.Errorf("with %s=%s, %s is %s, want %s", step.key, step.value, step.raw, got, step.want)
		}
	}
}

func FuzzParseURL(f *testing.F) {
	for _, seed := range []string{
		"/var/repo", "file:///a%20b", "s3://bucket/a/b?endpoint=http://localhost:9000&region=x",
		"r2://" + account + "/bucket/p?jurisdiction=eu", "s3://K:S@bucket", "s3://bucket/%2e%2e/%2f",
		"s3://bucket?endpoint=https://[::1%25eth0]:1", "s3://bucket/a%3Fb%23c+d&e;f",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		l, err := remote.ParseURL(raw)
		if err != nil {
			if l != (remote.Location{}) {
				t.Errorf("%q: %+v with error %v", raw, l, err)
			}
			return
		}
		if l.Dir == "" && l.Bucket == "" || l.Dir != "" && !filepath.IsAbs(l.Dir) {
			t.Errorf("%q: %+v", raw, l)
		}
		again, err := remote.ParseURL(l.String())
		if err != nil || again != l {
			t.Errorf("%q is %+v, its string %q is %+v, %v", raw, l, l, again, err)
		}
	})
}

func TestOpenAndCreate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data", "repo")
	if _, err := remote.Open(t.Context(), dir, nil); !errors.Is(err, remote.ErrNoBucket) {
		t.Errorf("got %v", err)
	}
	var count remote.Counter
	s, err := remote.Create(t.Context(), "file://"+dir, &remote.Options{Count: &count})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), "config", []byte("{}")); err != nil {
		t.Fatal(err)
	}
	if s, err = remote.Open(t.Context(), dir, nil); err != nil {
		t.Fatal(err)
	}
	if data, err := s.Get(t.Context(), "config"); err != nil || string(data) != "{}" {
		t.Errorf("got %q, %v", data, err)
	}
	if got := count.Requests(); got.Server || got.Ops.String() != "put 1 (2 bytes)" {
		t.Errorf("counted %+v", got)
	}
	if _, err := remote.Open(t.Context(), "gs://x", nil); err == nil {
		t.Error("no error")
	}
}
