package remote

import (
	"context"
	"fmt"
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

func (c Credentials) value() credentials.Value {
	return credentials.Value{
		AccessKeyID: c.AccessKeyID, SecretAccessKey: c.SecretAccessKey, SessionToken: c.SessionToken,
		SignerType: credentials.SignatureV4,
	}
}

// A source has credentials, gets new ones when they have expired, and keeps them until
// then.
type source interface {
	credentials(ctx context.Context) (Credentials, error)
}

// credentials makes given credentials a source.
func (c Credentials) credentials(context.Context) (Credentials, error) { return c, nil }

// minioSource is a source as minio wants it: a provider that is asked before every request.
// Unlike minio's own chain, it never falls back to sending requests unsigned.
type minioSource struct{ source source }

// refreshPatience is how long new credentials may take, for which everything waits.
const refreshPatience = time.Minute

// Retrieve is [credentials.Provider.Retrieve].
func (p minioSource) Retrieve() (credentials.Value, error) { return p.RetrieveWithCredContext(nil) }

// IsExpired is [credentials.Provider.IsExpired]: the source knows.
func (p minioSource) IsExpired() bool { return true }

// RetrieveWithCredContext is [credentials.Provider.RetrieveWithCredContext].
func (p minioSource) RetrieveWithCredContext(*credentials.CredContext) (credentials.Value, error) {
	ctx, cancel := context.WithTimeout(context.Background(), refreshPatience)
	defer cancel()
	c, err := p.source.credentials(ctx)
	if err != nil { // they were there once, so the service that gives them is away
		return credentials.Value{}, &TransientError{Err: fmt.Errorf("refreshing the credentials: %w", err)}
	}
	return c.value(), nil
}
