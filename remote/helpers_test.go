package remote_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
)

// TestMain takes away what the environment says of AWS, so that the tests do
// not depend on it.
func TestMain(m *testing.M) {
	for _, kv := range os.Environ() {
		if key, _, _ := strings.Cut(kv, "="); strings.HasPrefix(key, "AWS_") {
			os.Unsetenv(key)
		}
	}
	os.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	os.Setenv("AWS_SHARED_CREDENTIALS_FILE", os.DevNull)
	os.Setenv("AWS_CONFIG_FILE", os.DevNull)
	remotetest.Prepare("versitygw")
	os.Exit(m.Run())
}

var errTest = errors.New("trouble made by the test")

func openS3(t testing.TB, c remote.S3Config) *remote.S3 {
	t.Helper()
	s, err := remote.OpenS3(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// noSleep is for RetryOptions.
func noSleep(ctx context.Context, _ time.Duration) error { return ctx.Err() }

type counter struct{ n atomic.Int64 }

func (c *counter) next() int64 { return c.n.Add(1) }

func (c *counter) name(prefix string) string { return fmt.Sprintf("%s-%d", prefix, c.next()) }
