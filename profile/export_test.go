package profile

// Quote is quote, for tests.
func Quote(s string) string { return quote(s) }
