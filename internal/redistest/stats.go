package redistest

import (
	"strconv"
	"strings"

	"github.com/gomodule/redigo/redis"
)

// CommandStat is what a server counts of a command: all calls, those that were refused before they ran, and
// those that failed.
type CommandStat struct{ Calls, Rejected, Failed int }

// CommandStats returns the server's counts of each command since they were reset.
func (s *Server) CommandStats() map[string]CommandStat {
	s.t.Helper()
	info, err := redis.String(s.Do("INFO", "commandstats"), nil)
	if err != nil {
		s.t.Fatalf("INFO: %v", err)
	}
	stats := make(map[string]CommandStat)
	for _, line := range strings.Fields(info) {
		name, rest, _ := strings.Cut(strings.TrimPrefix(line, "cmdstat_"), ":")
		var stat CommandStat
		for _, field := range strings.Split(rest, ",") {
			key, value, _ := strings.Cut(field, "=")
			n, _ := strconv.Atoi(value)
			switch key {
			case "calls":
				stat.Calls = n
			case "rejected_calls":
				stat.Rejected = n
			case "failed_calls":
				stat.Failed = n
			}
		}
		stats[name] = stat
	}
	return stats
}
