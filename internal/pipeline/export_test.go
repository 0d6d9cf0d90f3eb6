package pipeline

// Load is how many calls the lanes have that have not ended.
func (p *Pipeline) Load() (n int) {
	for _, l := range *p.lanes.Load() {
		n += int(l.load())
	}
	return n
}

// Waiting is how many callers wait for room.
func (p *Pipeline) Waiting() int { return int(p.waiting.Load()) }
