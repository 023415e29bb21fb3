package remote_test

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
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

// cloud is what gives credentials in AWS: STS, SSO, and the services of machines and
// containers, which are asked by their paths.
type cloud struct {
	url string

	mu    sync.Mutex
	asked []string
}

func startCloud(t *testing.T) *cloud {
	c := new(cloud)
	until := time.Now().Add(time.Hour).UTC()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		what := r.URL.Path
		if action := r.Form.Get("Action"); action != "" {
			what = action + " of " + r.Form.Get("RoleArn")
		}
		c.mu.Lock()
		c.asked = append(c.asked, what)
		c.mu.Unlock()
		sts := func(action, key string) {
			w.Header().Set("Content-Type", "text/xml")
			fmt.Fprintf(w, `<%[1]sResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><%[1]sResult><Credentials>`+
				`<AccessKeyId>%[2]s</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>%[2]s-token</SessionToken><Expiration>%[3]s</Expiration>`+
				`</Credentials></%[1]sResult></%[1]sResponse>`, action, key, until.Format(time.RFC3339))
		}
		switch {
		case r.Form.Get("Action") == "AssumeRole":
			sts("AssumeRole", "assumed")
		case r.Form.Get("Action") == "AssumeRoleWithWebIdentity" && r.Form.Get("WebIdentityToken") == "a-token":
			sts("AssumeRoleWithWebIdentity", "web")
		case r.URL.Path == "/federation/credentials" && r.Header.Get("X-Amz-Sso_bearer_token") == "sso-token":
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"roleCredentials":{"accessKeyId":"sso-key","secretAccessKey":"s","sessionToken":"sso-key-token","expiration":%d}}`, until.UnixMilli())
		case r.URL.Path == "/latest/api/token":
			w.Header().Set("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "300")
			_, _ = io.WriteString(w, "metadata-token")
		case strings.HasSuffix(r.URL.Path, "/security-credentials/"):
			_, _ = io.WriteString(w, "role-name\n")
		case strings.HasSuffix(r.URL.Path, "/role-name"), r.URL.Path == "/container":
			fmt.Fprintf(w, `{"Code":"Success","AccessKeyId":"role-key","SecretAccessKey":"s","Token":"role-token","Expiration":%q}`, until.Format(time.RFC3339))
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	t.Cleanup(srv.Close)
	c.url = srv.URL
	return c
}

// awsFiles writes the two files of AWS, of which the configuration sends to cloud.
func awsFiles(t *testing.T, creds, conf string) map[string]string {
	t.Helper()
	dir := t.TempDir()
	env := map[string]string{"HOME": dir, "AWS_SHARED_CREDENTIALS_FILE": filepath.Join(dir, "credentials"), "AWS_CONFIG_FILE": filepath.Join(dir, "config")}
	for name, text := range map[string]string{"credentials": creds, "config": conf} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return env
}

// TestCredentials: they come from where the AWS command line has them from, and the machine
// is asked only when nothing else is there.
const backupRole = "arn:aws:iam::123456789012:role/backup"

// credentialFiles are files of AWS with a profile of each kind, and the file of a web
// identity's token.
func credentialFiles(t *testing.T) (files map[string]string, token string) {
	t.Helper()
	const creds = "[default]\naws_access_key_id = file-key\naws_secret_access_key = s\n" +
		"[work]\naws_access_key_id = work-key\naws_secret_access_key = s\naws_session_token = work-token\n"
	token = filepath.Join(t.TempDir(), "token")
	program := filepath.Join(t.TempDir(), "program")
	if err := errors.Join(os.WriteFile(token, []byte("a-token"), 0o600),
		os.WriteFile(program, []byte("#!/bin/sh\necho '{\"Version\":1,\"AccessKeyId\":\"program-key\",\"SecretAccessKey\":\"s\",\"SessionToken\":\"program-token\"}'\n"), 0o700)); err != nil {
		t.Fatal(err)
	}
	files = awsFiles(t, creds, "[default]\nregion = eu-central-1\n"+
		"[profile role]\nrole_arn = "+backupRole+"\nsource_profile = work\n"+
		"[profile process]\ncredential_process = "+program+"\n"+
		"[profile web]\nrole_arn = "+backupRole+"\nweb_identity_token_file = "+token+"\n"+
		"[sso-session ours]\nsso_region = eu-central-1\nsso_start_url = https://ours.example/start\n"+
		"[profile sso]\nsso_session = ours\nsso_account_id = 123456789012\nsso_role_name = backup\n"+
		"[profile machine]\nrole_arn = "+backupRole+"\ncredential_source = Ec2InstanceMetadata\n")
	cache := filepath.Join(files["HOME"], ".aws", "sso", "cache")
	sum := sha1.Sum([]byte("ours"))
	if err := errors.Join(os.MkdirAll(cache, 0o700), os.WriteFile(filepath.Join(cache, hex.EncodeToString(sum[:])+".json"),
		fmt.Appendf(nil, `{"accessToken":"sso-token","expiresAt":%q,"region":"eu-central-1","startUrl":"https://ours.example/start"}`,
			time.Now().Add(time.Hour).UTC().Format(time.RFC3339)), 0o600)); err != nil {
		t.Fatal(err)
	}
	return files, token
}

func TestCredentials(t *testing.T) {
	e := startEcho(t)
	c := startCloud(t)
	files, token := credentialFiles(t)
	keys := map[string]string{"AWS_ACCESS_KEY_ID": "env-key", "AWS_SECRET_ACCESS_KEY": "s", "AWS_SESSION_TOKEN": "env-token"}
	profile := func(name string) map[string]string {
		env := maps.Clone(files)
		env["AWS_PROFILE"] = name
		return env
	}
	for _, test := range []credentialsTest{
		{"given", keys, remote.Credentials{AccessKeyID: "given-key", SecretAccessKey: "s", SessionToken: "given-token"}, "given-key", "given-token", ""},
		{"environment", keys, remote.Credentials{}, "env-key", "env-token", ""},
		{"environment, whatever the profile", map[string]string{"AWS_ACCESS_KEY_ID": "env-key", "AWS_SECRET_ACCESS_KEY": "s", "AWS_PROFILE": "none"}, remote.Credentials{}, "env-key", "", ""},
		{"file", files, remote.Credentials{}, "file-key", "", ""},
		{"profile", profile("work"), remote.Credentials{}, "work-key", "work-token", ""},
		{"role of a profile", profile("role"), remote.Credentials{}, "assumed", "assumed-token", "AssumeRole of " + backupRole},
		{"role of a profile by the machine", profile("machine"), remote.Credentials{}, "assumed", "assumed-token", "AssumeRole of " + backupRole},
		{"process", profile("process"), remote.Credentials{}, "program-key", "program-token", ""},
		{"web identity of a profile", profile("web"), remote.Credentials{}, "web", "web-token", "AssumeRoleWithWebIdentity of " + backupRole},
		{"web identity", map[string]string{"AWS_WEB_IDENTITY_TOKEN_FILE": token, "AWS_ROLE_ARN": backupRole}, remote.Credentials{}, "web", "web-token", "AssumeRoleWithWebIdentity of " + backupRole},
		{"SSO", profile("sso"), remote.Credentials{}, "sso-key", "sso-key-token", "/federation/credentials"},
		{"container", map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": c.url + "/container"}, remote.Credentials{}, "role-key", "role-token", "/container"},
		{"machine", nil, remote.Credentials{}, "role-key", "role-token", "/latest/meta-data/iam/security-credentials/role-name"},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, e, c) })
	}
}

// A credentialsTest is a way to get credentials.
type credentialsTest struct {
	name       string
	env        map[string]string
	given      remote.Credentials
	key, token string
	asked      string // of the cloud; "" for nothing
}

// run looks at who signs the requests that e gets, and what c was asked for it.
func (test credentialsTest) run(t *testing.T, e *echo, c *cloud) {
	machine := map[string]string{"AWS_EC2_METADATA_DISABLED": "", "AWS_EC2_METADATA_SERVICE_ENDPOINT": c.url}
	for _, env := range []map[string]string{machine, {"AWS_ENDPOINT_URL_STS": c.url, "AWS_ENDPOINT_URL_SSO": c.url}, test.env} {
		for k, v := range env {
			t.Setenv(k, v)
		}
	}
	c.asked = nil
	s, err := remote.Open(t.Context(), "s3://bucket?endpoint="+e.url, &remote.Options{
		Credentials: test.given, UserAgent: "snapctl/1.2",
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 { // they are kept
		if _, err := s.Stat(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
	}
	if e.key != test.key || e.token != test.token {
		t.Errorf("signed by %q with token %q, want %q and %q", e.key, e.token, test.key, test.token)
	}
	if !strings.HasSuffix(e.agent, " snapctl/1.2") {
		t.Errorf("user agent %q", e.agent)
	}
	if test.asked == "" && len(c.asked) > 0 || test.asked != "" && (len(c.asked) == 0 || c.asked[len(c.asked)-1] != test.asked) {
		t.Errorf("asked for %q", c.asked)
	}
	if byMachine := slices.Contains(c.asked, "/latest/api/token"); byMachine != strings.Contains(test.name, "machine") {
		t.Errorf("the machine was asked: %q", c.asked)
	}
	if last := slices.Index(c.asked, test.asked); test.asked != "" && last != len(c.asked)-1 {
		t.Errorf("asked twice: %q", c.asked)
	}
}

// TestProfileRegion: of AWS, the region of the profile is where the bucket is, if neither
// the URL nor the environment says.
func TestProfileRegion(t *testing.T) {
	for k, v := range awsFiles(t, "[default]\naws_access_key_id = k\naws_secret_access_key = s\n", "[default]\nregion = eu-central-1\n") {
		t.Setenv(k, v)
	}
	for _, test := range []struct{ url, env, want string }{
		{"s3://bucket", "", "eu-central-1"},
		{"s3://bucket", "us-west-2", "us-west-2"},
		{"s3://bucket?region=eu-west-3", "us-west-2", "eu-west-3"},
		{"s3://bucket?endpoint=http://127.0.0.1:1", "", "us-east-1"},
	} {
		t.Setenv("AWS_REGION", test.env)
		var signed string
		s, err := remote.Open(t.Context(), test.url, &remote.Options{Transport: answers(func(req *http.Request) {
			signed = req.Header.Get("Authorization")
		})})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Stat(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(signed, "/"+test.want+"/s3/") {
			t.Errorf("%s, %s: signed %s", test.url, test.env, signed)
		}
	}
}

// answers answers every request, after a look at it.
type answers func(*http.Request)

func (a answers) RoundTrip(req *http.Request) (*http.Response, error) {
	a(req)
	return &http.Response{
		StatusCode: http.StatusOK, Body: http.NoBody, Request: req,
		Header: http.Header{"Last-Modified": {time.Now().UTC().Format(http.TimeFormat)}},
	}, nil
}

// TestNoCredentials: the error says where was looked, and does not repeat what was found
// there; and a machine that does not answer is not waited for.
func TestNoCredentials(t *testing.T) {
	const secret = "[default]\naws_secret_access_key hunter2\n"
	malformed := awsFiles(t, secret, "")
	lonely := awsFiles(t, "[default]\naws_secret_access_key = hunter2\n", "")
	gone := httptest.NewServer(nil)
	gone.Close()
	release := make(chan struct{})
	silent := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer silent.Close()
	defer close(release)
	process := func(command string) map[string]string {
		return awsFiles(t, "", "[default]\ncredential_process = "+command+"\n")
	}
	for name, test := range map[string]struct {
		env  map[string]string
		want []string
	}{
		"nothing":    {nil, []string{"AWS_ACCESS_KEY_ID", "not set"}},
		"half a key": {map[string]string{"AWS_ACCESS_KEY_ID": "key-alone"}, []string{"AWS_SECRET_ACCESS_KEY: not set"}},
		"no file":    {map[string]string{"AWS_SHARED_CREDENTIALS_FILE": "/none"}, []string{"/none: no such file"}},
		"malformed":  {malformed, []string{"credentials: nothing for profile default"}},
		"half":       {lonely, []string{"credentials"}},
		"no profile": {map[string]string{"AWS_PROFILE": "mine"}, []string{"profile mine: no such profile"}},
		"no machine": {map[string]string{"AWS_EC2_METADATA_DISABLED": "", "AWS_EC2_METADATA_SERVICE_ENDPOINT": gone.URL}, []string{"EC2 instance role: "}},
		"a machine that does not answer": {map[string]string{"AWS_EC2_METADATA_DISABLED": "", "AWS_EC2_METADATA_SERVICE_ENDPOINT": silent.URL},
			[]string{"EC2 instance role: no answer in time"}},
		"a process that fails":         {process("/bin/sh -c 'exit 3'"), []string{"profile default: credential_process: exit status 3"}},
		"a process that says too much": {process("/bin/echo hunter2"), []string{"what it prints is not what it should be"}},
		"no session": {awsFiles(t, "", "[sso-session ours]\nsso_region = eu-central-1\nsso_start_url = https://ours.example/start\n"+
			"[default]\nsso_session = ours\nsso_account_id = 123456789012\nsso_role_name = backup\n"), []string{"to log in: aws sso login --profile default"}},
	} {
		t.Run(name, func(t *testing.T) {
			for k, v := range test.env {
				t.Setenv(k, v)
			}
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
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		for k, v := range process("/bin/sleep 60") {
			t.Setenv(k, v)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := remote.Open(ctx, "s3://bucket/p", nil); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

// TestCredentialsSeam: the SDK of AWS is what one file knows, and nothing that others see.
func TestCredentialsSeam(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		uses := slices.ContainsFunc(f.Imports, func(i *ast.ImportSpec) bool {
			return strings.Contains(i.Path.Value, "github.com/aws/")
		})
		if uses != (name == "credentials_aws.go") {
			t.Errorf("%s: %v", name, uses)
		}
		if !uses {
			continue
		}
		if f, err = parser.ParseFile(token.NewFileSet(), name, nil, 0); err != nil {
			t.Fatal(err)
		}
		if ast.FileExports(f) {
			t.Errorf("%s exports something", name)
		}
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
