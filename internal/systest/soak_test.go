package systest

import (
	"flag"
	"time"
)

// soak is how long the tests under load go on; zero is short.
var soak time.Duration

func init() {
	flag.DurationVar(&soak, "soak", 0, "how long the tests under load go on")
}
