package remote_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/snapctl/snapctl/remote"
)

// echo is a server that notes whose credentials a request is signed with.
type echo struct {
	url   string
	key   string
	token string
	agent string
}

func startEcho(t *testing.T) *echo {
	e := new(echo)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, rest, _ := strings.Cut(r.Header.Get("Authorization"), "Credential=")
		e.key, _, _ = strings.Cut(rest, "/")
		e.token = r.Header.Get("X-Amz-Security-Token")
		e.agent = r.UserAgent()
		w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
	}))
	t.Cleanup(srv.Close)
	e.url = srv.URL
	return e
}

func TestCredentials(t *testing.T) {
	e := startEcho(t)
	home := t.TempDir()
	file := filepath.Join(home, ".aws", "credentials")
	if err := os.Mkdir(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	const ini = "[default]\naws_access_key_id = file-key\naws_secret_access_key = s\n" +
		"[work]\naws_access_key_id = work-key\naws_secret_access_key = s\naws_session_token = work-token\n"
	if err := os.WriteFile(file, []byte(ini), 0o600); err != nil {
		t.Fatal(err)
	}
	role := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/latest/api/token":
			_, _ = io.WriteString(w, "metadata-token")
		case strings.HasSuffix(r.URL.Path, "/security-credentials/"):
			_, _ = io.WriteString(w, "role-name\n")
		default:
			fmt.Fprintf(w, `{"Code":"Success","AccessKeyId":"role-key","SecretAccessKey":"s","Token":"role-token","Expiration":%q}`,
				time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
		}
	}))
	t.Cleanup(role.Close)

	env := map[string]string{"AWS_ACCESS_KEY_ID": "env-key", "AWS_SECRET_ACCESS_KEY": "s", "AWS_SESSION_TOKEN": "env-token"}
	for _, test := range []struct {
		name       string
		env        map[string]string
		given      remote.Credentials
		key, token string
	}{
		{"given", env, remote.Credentials{AccessKeyID: "given-key", SecretAccessKey: "s", SessionToken: "given-token"}, "given-key", "given-token"},
		{"environment", env, remote.Credentials{}, "env-key", "env-token"},
		{"file", map[string]string{"HOME": home, "AWS_SHARED_CREDENTIALS_FILE": ""}, remote.Credentials{}, "file-key", ""},
		{"profile", map[string]string{"AWS_SHARED_CREDENTIALS_FILE": file, "AWS_PROFILE": "work"}, remote.Credentials{}, "work-key", "work-token"},
		{"EC2", map[string]string{"AWS_EC2_METADATA_DISABLED": "", "AWS_EC2_METADATA_SERVICE_ENDPOINT": role.URL}, remote.Credentials{}, "role-key", "role-token"},
		{"ECS", map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": role.URL + "/container"}, remote.Credentials{}, "role-key", "role-token"},
	} {
		t.Run(test.name, func(t *testing.T) {
			for k, v := range test.env {
				t.Setenv(k, v)
			}
			s, err := remote.Open(t.Context(), "s3://bucket?endpoint="+e.url, &remote.Options{
				Credentials: test.given, UserAgent: "snapctl/1.2",
			})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Stat(t.Context(), "a"); err != nil {
				t.Fatal(err)
			}
			if e.key != test.key || e.token != test.token {
				t.Errorf("signed by %q with token %q, want %q and %q", e.key, e.token, test.key, test.token)
			}
			if !strings.HasSuffix(e.agent, " snapctl/1.2") {
				t.Errorf("user agent %q", e.agent)
			}
		})
	}
}

// TestNoCredentials: the error comes at once, says where was looked, and does
// not repeat what was found there.
func TestNoCredentials(t *testing.T) {
	malformed := filepath.Join(t.TempDir(), "credentials")
	if err := os.WriteFile(malformed, []byte("[default]\naws_secret_access_key hunter2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	gone := httptest.NewServer(nil)
	gone.Close()
	for _, test := range []struct {
		env  map[string]string
		want []string
	}{
		{nil, []string{"AWS_ACCESS_KEY_ID", "not set"}},
		{map[string]string{"AWS_ACCESS_KEY_ID": "key-alone"}, []string{"AWS_SECRET_ACCESS_KEY: not set"}},
		{map[string]string{"AWS_SHARED_CREDENTIALS_FILE": "/none"}, []string{"shared credentials file: no such file"}},
		{map[string]string{"AWS_SHARED_CREDENTIALS_FILE": malformed}, []string{"malformed"}},
		{map[string]string{"AWS_PROFILE": "mine"}, []string{"profile mine: no such profile"}},
		{map[string]string{"AWS_EC2_METADATA_DISABLED": "", "AWS_EC2_METADATA_SERVICE_ENDPOINT": gone.URL}, []string{"EC2 instance role: "}},
	} {
		t.Run("", func(t *testing.T) {
			for k, v := range test.env {
				t.Setenv(k, v)
			}
			start := time.Now()
			_, err := remote.Open(t.Context(), "s3://bucket/p", nil)
			if !errors.Is(err, remote.ErrAccess) {
				t.Fatalf("got %v", err)
			}
			for _, want := range append(test.want, "open s3://bucket/p: ") {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got %v, want it to say %q", err, want)
				}
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error has the secret in it: %v", err)
			}
			if took := time.Since(start); took > time.Minute {
				t.Errorf("took %v", took)
			}
		})
	}
}

func TestCredentialsPrint(t *testing.T) {
	c := remote.Credentials{AccessKeyID: "key-id", SecretAccessKey: "hunter2", SessionToken: "hunter3"}
	for _, v := range []any{c, &c, remote.Options{Credentials: c}, &remote.S3Config{Credentials: c}, []remote.Credentials{c}} {
		for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
			got := fmt.Sprintf(format, v)
			if strings.Contains(got, "hunter") || !strings.Contains(got, "key-id") {
				t.Errorf("%s of %T is %s", format, v, got)
			}
		}
	}
}
