package pipeline

// Load is how many calls the lanes have that have not ended.
func (p *Pipeline) Load() (n int) {
	for _, l := range *p.lanes.Load() {
		n += int(l.load())
	}
	return n
}
