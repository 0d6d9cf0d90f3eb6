package resp

import (
	"errors"
	"strings"

	"github.com/gomodule/redigo/redis"
)

// Meaning is what the error of a server, or of a proxy in front of it, means for the caller. The zero
// Meaning is that of an error that [MeaningOf] does not know: the command was refused for good, the
// connection can be used, and a retry would return the same error.
type Meaning uint16

// The parts of a Meaning.
const (
	// Retry: the command was not executed, and a retry may succeed.
	Retry Meaning = 1 << iota
	// Unavailable: the server does not serve now. The condition can end without a change by the
	// caller.
	Unavailable
	// Condemns: the server that answered is the wrong one, or is about to close the connection. A
	// new connection may do better.
	Condemns
	// Unproven: the command may have been executed.
	Unproven
	// Denied: the credentials are wrong, or do not permit the command.
	Denied
	// UnknownCommand: the server lacks the command, or knows it by another name.
	UnknownCommand
	// NoScript: EVALSHA named a script that the server does not hold. Nothing was executed.
	NoScript
	// WrongType: the key holds another type than the command expects.
	WrongType
	// Closes: the server closes the connection after this error.
	Closes
	// TooLarge: the value is longer than the server takes.
	TooLarge
)

// Has reports whether m has any of the parts.
func (m Meaning) Has(parts Meaning) bool { return m&parts != 0 }

// words is the only table of the errors that this module distinguishes, by how their texts begin.
//
// The upper-case words are those of Redis 6.2 to 8 and Valkey 7.2 to 9. The lower part of the table
// has the answers of proxies that lost the server behind them: Envoy without a prefix, twemproxy
// with the text of an errno, predixy, and Upstash.
var words = []struct {
	begins string
	means  Meaning
}{
	{"LOADING", Retry | Unavailable | Condemns},
	{"READONLY", Retry | Unavailable | Condemns},
	{"MASTERDOWN", Retry | Unavailable | Condemns},
	{"CLUSTERDOWN", Retry | Unavailable},
	{"TRYAGAIN", Retry | Unavailable},
	{"BUSY", Unavailable},
	{"MISCONF", Unavailable},
	{"NOREPLICAS", Unavailable},
	{"OOM", Unavailable},
	{"ERR max number of clients", Unavailable | Condemns},          // Redis then closes the connection
	{"ERR Protocol error: invalid bulk length", Closes | TooLarge}, // above proto-max-bulk-len
	{"ERR Protocol error", Closes},

	{"NOAUTH", Denied | Condemns},
	{"DENIED", Denied | Condemns}, // protected mode: Redis then closes the connection
	{"WRONGPASS", Denied},
	{"NOPERM", Denied},
	{"ERR ACL failure in script", Denied},                     // Redis 7.2, Valkey
	{"ERR The user executing the script can't", Denied},       // Redis 7.0
	{"The user executing the script can't", Denied},           // Redis 6.2, behind the prefix that inScript removes
	{"ERR unknown command", UnknownCommand},                   // also of a renamed one
	{"unsupported command", UnknownCommand},                   // Envoy
	{"ERR This Redis command is not allowed", UnknownCommand}, // from a script
	{"NOSCRIPT", NoScript},
	{"WRONGTYPE", WrongType},

	{"no upstream host", Unavailable},
	{"upstream failure", Unavailable | Unproven},
	{"upstream protocol error", Unavailable | Unproven},
	{"finished with", Unavailable | Unproven}, // Envoy: the servers of some of the keys failed
	{"ERR Host is down", Unavailable},
	{"ERR No route to host", Unavailable},
	{"ERR Connection refused", Unavailable},
	{"ERR Connection timed out", Unavailable | Unproven},
	{"ERR Connection reset by peer", Unavailable | Unproven},
	{"ERR no server connection ava", Unavailable}, // predixy misspells the last word
	{"ERR max concurrent connections exceeded", Unavailable},
}

// MeaningOf returns what the text of an error reply means. It ignores the text that a server puts
// before the error of an EXEC, and that Redis 6.2 puts before the error of a command in a script.
func MeaningOf(text string) Meaning {
	text = inScript(strings.TrimPrefix(text, "EXECABORT Transaction discarded because of: "))
	for _, w := range words {
		if rest, ok := strings.CutPrefix(text, w.begins); ok && wordEnds(w.begins, rest) {
			return w.means
		}
	}
	return 0
}

// MeaningOfError returns what the error of a server in err means, and whether err holds one.
func MeaningOfError(err error) (m Meaning, answered bool) {
	var answer redis.Error
	if !errors.As(err, &answer) {
		return 0, false
	}
	return MeaningOf(string(answer)), true
}

// wordEnds reports whether begins ends where a word does: READONLYX is not READONLY. A phrase may
// go on in the middle of a word.
func wordEnds(begins, rest string) bool {
	return strings.Contains(begins, " ") || rest == "" || rest[0] == ' '
}

// inScript returns the error of the command that failed within a script. Redis 6.2 sends it as
//
//	ERR Error running script (call to f_SHA): @user_script:10: -READONLY You can't write …
//	ERR Error running script (call to f_SHA): @user_script:10: @user_script: 10: The user …
//
// where redis.call fails and where Lua raises the error. Later servers send the command's error first.
func inScript(text string) string {
	if !strings.HasPrefix(text, "ERR Error running script") {
		return text
	}
	const place = "@user_script:"
	i := strings.LastIndex(text, place)
	if i < 0 {
		return text
	}
	inner := strings.TrimLeft(text[i+len(place):], " 0123456789")
	inner = strings.TrimPrefix(inner, ": ")
	return strings.TrimPrefix(inner, "-")
}
