package report

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
)

// Machine is what the numbers were measured on.
type Machine struct {
	CPU   string
	Cores int // as many as Go uses
	OS    string
	Go    string
	Load  string // the load average before the run, empty where unknown
}

// ThisMachine describes this machine as far as it tells.
func ThisMachine() Machine {
	return Machine{
		CPU:   firstValue("/proc/cpuinfo", "model name", ":", runtime.GOARCH),
		Cores: runtime.GOMAXPROCS(0),
		OS:    system(),
		Go:    runtime.Version(),
		Load:  loadAverage(),
	}
}

// firstValue returns what follows separator in the first line of the file that
// begins with name, or fallback.
func firstValue(file, name, separator, fallback string) string {
	text, err := os.ReadFile(file)
	if err != nil {
		return fallback
	}
	for line := range strings.Lines(string(text)) {
		key, value, ok := strings.Cut(line, separator)
		if ok && strings.TrimSpace(key) == name {
			return strings.Trim(strings.TrimSpace(value), `"`)
		}
	}
	return fallback
}

func system() string {
	name := firstValue("/etc/os-release", "PRETTY_NAME", "=", runtime.GOOS)
	if kernel, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		name += ", kernel " + strings.TrimSpace(string(kernel))
	}
	return fmt.Sprintf("%s (%s/%s)", name, runtime.GOOS, runtime.GOARCH)
}

func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return ""
	}
	fields := strings.Fields(string(text))
	return strings.Join(fields[:min(3, len(fields))], " ")
}

// Versions returns the version of each module that is built into this program.
// A module that a replace directive takes from this source tree has none.
func Versions() map[string]string {
	versions := map[string]string{}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return versions
	}
	for _, m := range info.Deps {
		versions[m.Path] = m.Version
		if m.Replace != nil {
			versions[m.Path] = "this source tree"
		}
	}
	return versions
}
