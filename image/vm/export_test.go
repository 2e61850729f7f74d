package vm

import (
	"context"
	"io"
)

var (
	Extended  = extended
	PCRValues = pcrValues
)

// Monitor is monitor for tests.
type Monitor struct{ m *monitor }

func NewMonitor(rw io.ReadWriter) Monitor { return Monitor{newMonitor(rw)} }

func (m Monitor) Listen(event func(string)) { m.m.listen(func(e message) { event(e.Event) }) }

func (m Monitor) Do(ctx context.Context, command string, arguments, result any) error {
	return m.m.do(ctx, command, arguments, result)
}
