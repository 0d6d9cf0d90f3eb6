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

// Lanes is how many there are.
func (p *Pipeline) Lanes() int { return len(*p.lanes.Load()) }

// Finishing reports that no lane takes calls any more.
func (p *Pipeline) Finishing() bool {
	for _, l := range *p.lanes.Load() {
		if !l.over.Load() {
			return false
		}
	}
	return true
}
