package remote

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"
)

// Credentials are an access key. It prints without its secrets.
type Credentials struct {
	AccessKeyID     string
	SecretAccessKey string
	SessionToken    string // empty unless they are temporary
}

// String gives the access key id, which is no secret, alone.
func (c Credentials) String() string { return "access key " + c.AccessKeyID }

// GoString is String, so that %#v prints no secrets either.
func (c Credentials) GoString() string { return c.String() }

// credentialChain is the provider that has credentials, of those it knows.
// Unlike minio's chain, it never falls back to sending requests unsigned,
// keeps to the provider that it found, and can say what it looked at. The
// caller, credentials.Credentials, calls it under a lock.
type credentialChain struct {
	given Credentials
	found credentials.Provider
}

// Retrieve is [credentials.Provider.Retrieve].
func (c *credentialChain) Retrieve() (credentials.Value, error) {
	return c.RetrieveWithCredContext(nil)
}

// IsExpired is [credentials.Provider.IsExpired].
func (c *credentialChain) IsExpired() bool { return c.found == nil || c.found.IsExpired() }

// RetrieveWithCredContext is [credentials.Provider.RetrieveWithCredContext].
func (c *credentialChain) RetrieveWithCredContext(cc *credentials.CredContext) (credentials.Value, error) {
	if c.found != nil {
		v, err := c.found.RetrieveWithCredContext(cc)
		if err != nil { // they were there once, so the service that gives them is away
			err = &TransientError{Err: fmt.Errorf("refreshing the credentials: %w", err)}
		}
		return v, err
	}
	var tried []string
	for _, s := range c.sources() {
		v, err := s.provider.RetrieveWithCredContext(cc)
		if err == nil && v.AccessKeyID != "" && v.SecretAccessKey != "" {
			c.found = s.provider
			return v, nil
		}
		tried = append(tried, s.name+": "+s.explain(err))
		if s.only {
			break
		}
	}
	return credentials.Value{}, fmt.Errorf("%w: no credentials (%s)", ErrAccess, strings.Join(tried, "; "))
}

type credentialSource struct {
	name     string
	provider credentials.Provider
	only     bool // asked for by name: if it fails, look no further
}

// explain says why there was nothing.
func (s credentialSource) explain(err error) string {
	_, file := s.provider.(*credentials.FileAWSCredentials)
	switch {
	case err == nil:
		return "not set"
	case errors.Is(err, os.ErrNotExist):
		return "no such file"
	case errors.Is(err, os.ErrPermission):
		return "permission denied"
	case file && strings.Contains(err.Error(), "does not exist"):
		return "no such profile"
	case file: // the parser's errors repeat the line, which may be the secret
		return "malformed, or its credential_process failed"
	}
	return err.Error()
}

func (c *credentialChain) sources() []credentialSource {
	if c.given != (Credentials{}) {
		return []credentialSource{{"given by the program", &credentials.Static{Value: credentials.Value{
			AccessKeyID:     c.given.AccessKeyID,
			SecretAccessKey: c.given.SecretAccessKey,
			SessionToken:    c.given.SessionToken,
			SignerType:      credentials.SignatureV4,
		}}, true}}
	}
	file, profile := "shared credentials file", os.Getenv("AWS_PROFILE")
	if profile != "" {
		file += ", profile " + profile
	}
	sources := []credentialSource{
		{"AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", new(credentials.EnvAWS), false},
		{file, new(credentials.FileAWSCredentials), profile != ""},
	}
	if role, ok := machineRole(); ok {
		sources = append(sources, role)
	}
	return sources
}

// machineRole is the credentials that the machine or container has. The
// services that give them are near: where EC2's does not answer in a second,
// this is no EC2 machine.
func machineRole() (credentialSource, bool) {
	iam := &credentials.IAM{Client: &http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{
			Proxy:             http.ProxyFromEnvironment,
			DisableKeepAlives: true,
		},
	}}
	switch {
	case os.Getenv("AWS_WEB_IDENTITY_TOKEN_FILE") != "":
		return credentialSource{"web identity", iam, true}, true
	case firstEnv("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI") != "":
		return credentialSource{"container role", iam, true}, true
	case os.Getenv("AWS_EC2_METADATA_DISABLED") == "true":
		return credentialSource{}, false
	}
	iam.Endpoint = os.Getenv("AWS_EC2_METADATA_SERVICE_ENDPOINT")
	iam.Client = &http.Client{
		Timeout: time.Second,
		Transport: &http.Transport{
			DialContext:       (&net.Dialer{Timeout: time.Second}).DialContext,
			DisableKeepAlives: true,
		},
	}
	return credentialSource{"EC2 instance role", iam, false}, true
}
