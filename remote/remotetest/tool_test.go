package remotetest

import (
	"context"
	"errors"
	"strings"
	"testing"
)

// TestTool: a test never builds: what TestMain did not prepare is an error, and what could
// not be built a reason to skip.
func TestTool(t *testing.T) {
	t.Setenv(preparedEnv("built"), "/somewhere/built")
	if path, err := Tool(t.Context(), "built"); err != nil || path != "/somewhere/built" {
		t.Errorf("%q, %v", path, err)
	}
	t.Setenv(preparedEnv("failed"), preparedError+"no network")
	if _, err := Tool(t.Context(), "failed"); !errors.Is(err, ErrNoTool) || !strings.Contains(err.Error(), "no network") {
		t.Error(err)
	}
	late, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := build(late, "versitygw"); !errors.Is(err, ErrNoTool) || !errors.Is(err, context.Canceled) {
		t.Errorf("out of time: %v", err)
	}
	if _, err := Tool(t.Context(), "staticcheck"); err == nil || errors.Is(err, ErrNoTool) || !strings.Contains(err.Error(), "Prepare") {
		t.Error(err)
	}
}
