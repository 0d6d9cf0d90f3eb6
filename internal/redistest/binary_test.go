//go:build unix

package redistest_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/internal/redistest"
)

func TestTheEnvironmentChoosesTheServer(t *testing.T) {
	program := filepath.Join(t.TempDir(), "server")
	require.NoError(t, os.WriteFile(program, []byte("#!/bin/sh\necho Valkey server v=42.0.1 sha=0\n"), 0o755))
	t.Setenv("REDISCACHE_SERVER", program)
	require.Equal(t, 42, redistest.Major(t))
}
