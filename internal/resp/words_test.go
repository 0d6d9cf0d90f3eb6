package resp_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/internal/resp"
)

func TestMeaningOf(t *testing.T) {
	refused := resp.Retry | resp.Unavailable | resp.Condemns
	for text, want := range map[string]resp.Meaning{
		"":                                     0,
		"ERR syntax error":                     0,
		"ERR":                                  0,
		"LOADING Redis is loading the dataset": refused,
		"LOADING":                              refused,
		"LOADINGX":                             0,
		"READONLY You can't write against a read only replica.":             refused,
		"MASTERDOWN Link with MASTER is down":                               refused,
		"CLUSTERDOWN Hash slot not served":                                  resp.Retry | resp.Unavailable,
		"MISCONF Redis is configured to save RDB snapshots":                 resp.Unavailable,
		"OOM command not allowed when used memory > 'maxmemory'.":           resp.Unavailable,
		"ERR max number of clients reached":                                 resp.Unavailable | resp.Condemns,
		"ERR max number of clients + cluster connections reached":           resp.Unavailable | resp.Condemns,
		"NOAUTH Authentication required.":                                   resp.Denied | resp.Condemns,
		"WRONGPASS invalid username-password pair":                          resp.Denied,
		"NOPERM this user has no permissions to run the 'eval' command":     resp.Denied,
		"ERR unknown command 'EVALSHA', with args beginning with: ":         resp.UnknownCommand,
		"ERR unknown command `EVAL`":                                        resp.UnknownCommand,
		"unsupported command 'ping'":                                        resp.UnknownCommand,
		"NOSCRIPT No matching script. Please use EVAL.":                     resp.NoScript,
		"WRONGTYPE Operation against a key holding the wrong kind of value": resp.WrongType,

		"upstream failure":                                 resp.Unavailable | resp.Unproven,
		"no upstream host":                                 resp.Unavailable,
		"finished with 2 error(s)":                         resp.Unavailable | resp.Unproven,
		"ERR Protocol error: invalid bulk length":          resp.Closes | resp.TooLarge,
		"ERR Protocol error: unbalanced quotes in request": resp.Closes,
		"ERR Host is down":                                 resp.Unavailable,
		"ERR Connection timed out":                         resp.Unavailable | resp.Unproven,
		"ERR no server connection avaliable":               resp.Unavailable,
		"ERR max concurrent connections exceeded":          resp.Unavailable,

		// Within scripts.
		"ERR Error running script (call to f_6b1b): @user_script:10: -READONLY You can't write against a read only replica.":                             refused,
		"ERR Error running script (call to f_6b1b): @user_script:9: -WRONGTYPE Operation against a key":                                                  resp.WrongType,
		"ERR Error running script (call to f_6b1b): @user_script:9: -MISCONF Redis is configured":                                                        resp.Unavailable,
		"ERR Error running script (call to f_6b1b): @user_script:9: -NOREPLICAS Not enough good replicas to write.":                                      resp.Unavailable,
		"ERR Error running script (call to f_6b1b): @user_script:9: @user_script: 9: The user executing the script can't run this command or subcommand": resp.Denied,
		"ERR Error running script (call to f_6b1b): @user_script:1: user_script:1: attempt to index a nil value":                                         0,
		"ERR Error running script": 0,
		"READONLY You can't write against a read only replica. script: 6b1b, on @user_script:10.":                        refused,
		"ERR ACL failure in script: User u has no permissions to run the 'set' command script: 6b1b, on @user_script:1.": resp.Denied,
	} {
		require.Equal(t, want, resp.MeaningOf(text), "%q", text)
	}
}
