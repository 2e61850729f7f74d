package authdb

import (
	"errors"
	"os"

	"lethe/fault"
	"lethe/memfd"
)

// Map maps a sealed memfd (see package memfd) and opens it as [Open] does. The
// mapping outlives f, which stays the caller's; [Segment.Close] ends it once no
// database uses it. Any other file is refused: its content could change after
// the check.
func Map(f *os.File) (*Segment, error) {
	b, unmap, err := memfd.Map(f)
	switch {
	case errors.Is(err, memfd.ErrUnsealed):
		return nil, refuse("not in a sealed memfd")
	case err != nil:
		return nil, fault.Wrap(fault.Full, "authentication segment: no memory to map it", err)
	}
	return Borrow(b, unmap)
}
