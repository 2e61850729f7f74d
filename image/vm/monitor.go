package vm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// monitor speaks QMP, QEMU's control protocol (QEMU, docs/interop/qmp-spec): a line of
// JSON each way, and events between. It is safe for concurrent use.
type monitor struct {
	rw      io.ReadWriter
	answers chan message  // of the command on its way
	ended   chan struct{} // closed when QEMU has hung up

	mu    sync.Mutex // held during a command: one at a time
	count uint64     // of commands, each one's id
}

// message is what QEMU sends.
type message struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class       string `json:"class"`
		Description string `json:"desc"`
	} `json:"error"`
	ID    uint64 `json:"id"`
	Event string `json:"event"`
	Data  struct {
		Guest  bool   `json:"guest"`
		Reason string `json:"reason"`
	} `json:"data"`
}

// ErrHungUp says that QEMU answers no more.
var ErrHungUp = errors.New("the machine's QEMU has ended")

func newMonitor(rw io.ReadWriter) *monitor {
	return &monitor{rw: rw, answers: make(chan message, 1), ended: make(chan struct{})}
}

// listen passes answers on, and events to event, until QEMU hangs up.
func (m *monitor) listen(event func(message)) {
	defer close(m.ended)
	lines := bufio.NewReader(m.rw)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		var got message
		switch err := json.Unmarshal(line, &got); {
		case err != nil: // nothing of ours; whoever waits for it has a deadline
		case got.Event != "":
			event(got)
		case got.Return != nil || got.Error != nil:
			// The greeting is neither. An answer that nobody waits for any more makes room.
			select {
			case <-m.answers:
			default:
			}
			m.answers <- got
		}
	}
}

// do runs a command and decodes its answer into result unless that is nil.
func (m *monitor) do(ctx context.Context, command string, arguments, result any) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.count++
	id := m.count
	b, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, arguments, id})
	if err == nil {
		_, err = m.rw.Write(append(b, '\n'))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", command, errors.Join(ErrHungUp, err))
	}
	for {
		select {
		case got := <-m.answers:
			if got.ID != id {
				continue // of a command that was given up
			}
			if got.Error != nil {
				return fmt.Errorf("%s: %s", command, got.Error.Description)
			}
			if result == nil {
				return nil
			}
			return json.Unmarshal(got.Return, result)
		case <-m.ended:
			return fmt.Errorf("%s: %w", command, ErrHungUp)
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", command, context.Cause(ctx))
		}
	}
}
