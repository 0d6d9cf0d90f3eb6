package redistest

// Leaked returns the stacks of this module's goroutines, whenever they began.
func Leaked() []string { return leaked(nil) }
