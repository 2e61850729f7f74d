package publish

import (
	"errors"
	"io"
)

// ErrCrash is what a publisher dies of in tests.
var ErrCrash = errors.New("crash")

// CrashAt makes the n-th step from now, and every one after it, fail as if the
// process had died there. A put has two steps: before it (a torn scratch file
// stays) and after it (it is done, but nobody has heard of it). It returns a
// count of the steps so far.
func (p *Publisher) CrashAt(n int) (steps *int) {
	c := &crashing{disk: p.disk, at: n}
	p.disk = c
	return &c.steps
}

type crashing struct {
	disk
	at, steps int
}

func (c *crashing) step() error {
	if c.steps++; c.steps >= c.at {
		return ErrCrash
	}
	return nil
}

func (c *crashing) put(fill func(io.Writer) (string, error)) error {
	if err := c.step(); err != nil {
		return err
	}
	if err := c.disk.put(fill); err != nil {
		return err
	}
	return c.step()
}

func (c *crashing) remove(path string) error {
	if err := c.step(); err != nil {
		return err
	}
	return c.disk.remove(path)
}

func (c *crashing) list(dir string) ([]stored, error) {
	if err := c.step(); err != nil {
		return nil, err
	}
	return c.disk.list(dir)
}
