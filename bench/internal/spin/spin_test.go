package spin_test

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/bench/internal/spin"
)

// TestMain lets the test binary spin.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == spin.Command {
		if err := spin.Main(os.Stdin, os.Stdout); err != nil {
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func TestAGroupUsesTheProcessorUntilItIsClosed(t *testing.T) {
	g, err := spin.Start(2)
	require.NoError(t, err)
	before, err := g.CPU()
	require.NoError(t, err)
	for range 1000 { // until it has used some more
		after, err := g.CPU()
		require.NoError(t, err)
		require.GreaterOrEqual(t, after, before)
		if after > before {
			require.NoError(t, g.Close())
			return
		}
	}
	t.Fatal("it uses no processor")
}
