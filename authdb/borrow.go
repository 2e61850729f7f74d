package authdb

// Borrow opens b as [Open] does and calls release once nobody uses it any more:
// after [Segment.Close] and the end of the last database made from it. On an
// error it calls release at once.
func Borrow(b []byte, release func()) (*Segment, error) {
	s, err := Open(b)
	if err != nil {
		release()
		return nil, err
	}
	s.take(release)
	return s, nil
}
