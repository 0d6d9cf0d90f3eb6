package fill

import (
	"crypto/sha1" // identifies what a key held, and keeps no secret
	"encoding/hex"
	"math"
	"time"

	"github.com/rediscache/rediscache/internal/pipeline"
)

// Special times to live.
const (
	NoExpiry time.Duration = -1            // as rediscache.NoExpiry
	Remove   time.Duration = -2            // as the life of a job: the key is deleted
	Forever  time.Duration = math.MaxInt64 // as the time that is left: no expiry
)

// millis converts a time for the scripts: -1 never ends, 0 deletes the key.
func millis(d time.Duration) int64 {
	switch d {
	case NoExpiry:
		return -1
	case Remove:
		return 0
	case Forever:
		return 1 << 53
	}
	return d.Milliseconds()
}

// Digest returns a digest that differs for different data, or "" for nil.
func Digest(data []byte) string {
	if data == nil {
		return ""
	}
	sum := sha1.Sum(data)
	return hex.EncodeToString(sum[:])
}

// SetArgs returns the number of arguments of a SET for AppendSet.
func SetArgs(life time.Duration, options ...string) int {
	n := 2 + len(options)
	if life != NoExpiry {
		n += 2
	}
	return n
}

// AppendSet appends the arguments of a SET to a call: the two parts of the name of the key, the
// value, how long it lives, and options such as NX.
func AppendSet(
	call *pipeline.Call, prefix, key string, value []byte, life time.Duration, options ...string,
) *pipeline.Call {
	if call.Key(prefix, key).Value(value); life != NoExpiry {
		call.String("PX").Int(life.Milliseconds())
	}
	for _, o := range options {
		call.String(o)
	}
	return call
}

// write returns the command that stores the data of a job.
func (j *Job) write() *pipeline.Call {
	if j.Life == Remove {
		return pipeline.Write("DEL", 1, pipeline.Count).Key(j.Prefix, j.Key)
	}
	call := pipeline.Write("SET", SetArgs(j.Life), pipeline.Status)
	return AppendSet(call, j.Prefix, j.Key, j.Data, j.Life)
}
