package resp_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/internal/resp"
)

func TestAnErrorEndsBeforeWhatItRepeatsOfTheCommand(t *testing.T) {
	for text, said := range map[string]string{
		"":                           "",
		"WRONGPASS invalid username": "WRONGPASS invalid username",
		"ERR unknown command 'AUTH'": "ERR unknown command 'AUTH'",
		"ERR unknown command `SET`, with args beginning with: `key`, `value`, ": "ERR unknown command `SET`",
		"ERR unknown command 'auth', with args beginning with: 'a' 'password'":  "ERR unknown command 'auth'",
	} {
		require.Equal(t, said, resp.Discreet(text))
	}
}
