package remotetest

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/snapctl/snapctl/remote"
)

// AddUser makes a user of the server who may do in the bucket what an identity policy
// of AWS allows, and nobody else but the administrator anything: there is one policy
// for a bucket.
func (s *Server) AddUser(ctx context.Context, name, policy string) (remote.Credentials, error) {
	c := remote.Credentials{AccessKeyID: name, SecretAccessKey: name + "-secret-key"}
	bin, err := Tool(ctx, "versitygw")
	if err != nil {
		return c, err
	}
	cmd := exec.CommandContext(ctx, bin, "admin", "--access", s.Credentials.AccessKeyID, "--secret", s.Credentials.SecretAccessKey,
		"--region", region, "--endpoint-url", s.Endpoint,
		"create-user", "--access", c.AccessKeyID, "--secret", c.SecretAccessKey, "--role", "user")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.temp}
	if out, err := cmd.CombinedOutput(); err != nil {
		return c, fmt.Errorf("making user %s: %w\n%s", name, err, out)
	}
	// What a bucket's policy says more than that of an identity is whom it is for.
	var p struct {
		Version   string
		Statement []map[string]any
	}
	if err := json.Unmarshal([]byte(policy), &p); err != nil {
		return c, fmt.Errorf("policy: %w", err)
	}
	for _, statement := range p.Statement {
		statement["Principal"] = map[string]any{"AWS": []string{name}}
	}
	b, err := json.Marshal(p)
	if err != nil {
		return c, err
	}
	client, err := minio.New(strings.TrimPrefix(s.Endpoint, "http://"), &minio.Options{
		Creds:  credentials.NewStaticV4(s.Credentials.AccessKeyID, s.Credentials.SecretAccessKey, ""),
		Region: region,
	})
	if err != nil {
		return c, err
	}
	return c, client.SetBucketPolicy(ctx, s.Bucket, string(b))
}
