// Package vici speaks VICI, the protocol by which strongSwan's charon is configured and watched. It
// implements README.md of strongSwan's vici plugin (the file is the protocol's definition) over a Unix
// socket: requests with one answer ([Conn.Call]), requests whose answer is a stream of events
// ([Conn.Stream]) and events as they happen ([Conn.Subscribe], [Conn.Next]).
//
// The protocol has no numbers that tell which answer belongs to which request, so one request is under way
// at a time; further callers wait. A caller that gives up leaves an answer on its way that nobody could
// tell from the next one, so that ends the connection: everybody then reads [ErrClosed] and dials anew.
//
// One goroutine reads. It never waits for anybody: events that nobody has taken yet queue up, and at
// [maxQueue] of them the connection ends, because an event that was dropped in silence would be a session
// without an end. It ends with the connection.
//
// Charon's messages name customers and their addresses. A connection is told which keys its user wants
// ([Dial]); the values of all others are skipped, and the buffer is overwritten after each packet.
package vici

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// Types of packets ("Packet layer" in README.md of the plugin).
const (
	cmdRequest      = 0
	cmdResponse     = 1
	cmdUnknown      = 2
	eventRegister   = 3
	eventUnregister = 4
	eventConfirm    = 5
	eventUnknown    = 6
	event           = 7
)

const (
	maxPacket = 512 << 10 // what charon accepts and sends at most
	maxQueue  = 1 << 16   // events that nobody has taken; some 10 MB
)

// Errors of a connection.
var (
	// ErrClosed says that the connection has ended; the cause is in the chain of the error.
	ErrClosed = errors.New("vici: connection closed")
	// ErrUnknown says that charon does not know a command or an event. The connection lives on.
	ErrUnknown = errors.New("vici: unknown command or event")
	// ErrFailed says that charon refused a command. Its reason may name a customer and is dropped.
	ErrFailed = errors.New("vici: command failed")

	errPacket = errors.New("vici: unexpected packet")
	errQueue  = fmt.Errorf("vici: more than %d events were not taken", maxQueue)
)

// Event is something that happened in charon.
type Event struct {
	Name    string
	Message *Message
}

// Conn is a connection to charon. Its methods are safe for concurrent use. A Conn must be closed.
type Conn struct {
	conn net.Conn
	keep []string

	turn chan struct{} // holds a token while a request is under way

	mu     sync.Mutex
	answer chan packet    // of the request under way; nil: there is none
	stream string         // name of the events that belong to the request under way
	sink   func(*Message) // called by the reader for those events
	queue  []Event
	more   chan struct{} // has a token when queue has grown or the connection has ended
	err    error         // why the connection ended
	done   chan struct{} // closed when the reader has ended
}

// packet is an answer.
type packet struct {
	kind    byte
	message *Message
}

// Dial connects to charon's socket. Of the messages it reads, only the values of the keys and lists in keep
// are kept, and all sections; without keep, everything is.
func Dial(ctx context.Context, path string, keep ...string) (*Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("vici: %w", err)
	}
	return New(conn, keep...), nil
}

// New returns a connection over conn, which it closes when it is closed. For keep see [Dial].
func New(conn net.Conn, keep ...string) *Conn {
	if len(keep) > 0 {
		keep = append([]string{"success"}, keep...)
	}
	c := &Conn{conn: conn, keep: keep, turn: make(chan struct{}, 1), more: make(chan struct{}, 1), done: make(chan struct{})}
	go c.read()
	return c
}

// Close ends the connection and waits for its reader. Whoever waits gets [ErrClosed].
func (c *Conn) Close() {
	_ = c.conn.Close() // fails only when it is closed already
	<-c.done
}

// Err returns why the connection has ended, nil while it lives.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// read takes packets until the connection ends. It never blocks on anything but the connection.
func (c *Conn) read() {
	err := c.packets()
	_ = c.conn.Close()
	c.mu.Lock()
	c.err = fmt.Errorf("%w: %w", ErrClosed, err)
	c.mu.Unlock()
	close(c.done)
	c.wake()
}

func (c *Conn) packets() error {
	var head [4]byte
	var buf []byte
	for {
		if _, err := io.ReadFull(c.conn, head[:]); err != nil {
			return err
		}
		n := binary.BigEndian.Uint32(head[:])
		if n == 0 || n > maxPacket {
			return errPacket
		}
		if int(n) > cap(buf) {
			buf = make([]byte, n)
		}
		buf = buf[:n]
		_, err := io.ReadFull(c.conn, buf)
		if err == nil {
			err = c.handle(buf[0], buf[1:])
		}
		clear(buf)
		if err != nil {
			return err
		}
	}
}

// handle takes one packet.
func (c *Conn) handle(kind byte, body []byte) error {
	name := ""
	if kind == event {
		d := decoder{b: body}
		raw, err := d.take(1)
		if err != nil {
			return err
		}
		name, body = string(raw), d.b
	}
	var m *Message
	var err error
	if kind == cmdResponse || kind == event {
		m, err = parse(body, c.keep)
	} else if len(body) > 0 {
		err = errPacket
	}
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch kind {
	case event:
		switch {
		case c.sink != nil && name == c.stream:
			c.sink(m)
		case len(c.queue) == maxQueue:
			return errQueue
		default:
			c.queue = append(c.queue, Event{name, m})
			c.wake()
		}
		return nil
	case cmdResponse, cmdUnknown, eventConfirm, eventUnknown:
		if c.answer == nil {
			return errPacket
		}
		c.answer <- packet{kind, m} // has room for the one answer
		c.answer = nil
		return nil
	default:
		return errPacket
	}
}

func (c *Conn) wake() {
	select {
	case c.more <- struct{}{}:
	default:
	}
}

// Next returns the oldest event that was subscribed to and not yet taken, and waits for one. One goroutine
// at a time may wait. After the connection has ended, the events that came before still do; then Next
// fails with [ErrClosed].
func (c *Conn) Next(ctx context.Context) (Event, error) {
	for {
		c.mu.Lock()
		if len(c.queue) > 0 {
			e := c.queue[0]
			c.queue[0] = Event{}
			c.queue = c.queue[1:]
			c.mu.Unlock()
			return e, nil
		}
		err := c.err
		c.mu.Unlock()
		if err != nil {
			return Event{}, err
		}
		select {
		case <-c.more:
		case <-ctx.Done():
			return Event{}, ctx.Err()
		}
	}
}

// Call makes a request and returns its answer. It fails with [ErrUnknown] when charon does not know the
// command, [ErrFailed] when the answer says success=no, and [ErrClosed]. If ctx ends while charon works, the
// connection ends with it.
func (c *Conn) Call(ctx context.Context, command string, request *Message) (*Message, error) {
	if err := c.take(ctx); err != nil {
		return nil, err
	}
	defer c.give()
	return c.exchange(ctx, cmdRequest, command, request, "", nil)
}

// Stream makes a request whose answer is a series of events and calls each for every one of them, from
// another goroutine but never after Stream has returned; each must not call c. It fails like [Conn.Call].
func (c *Conn) Stream(ctx context.Context, command, event string, request *Message, each func(*Message)) error {
	if err := c.take(ctx); err != nil {
		return err
	}
	defer c.give()
	if _, err := c.exchange(ctx, eventRegister, event, nil, "", nil); err != nil {
		return err
	}
	_, err := c.exchange(ctx, cmdRequest, command, request, event, each)
	if _, end := c.exchange(ctx, eventUnregister, event, nil, "", nil); err == nil {
		err = end
	}
	return err
}

// Subscribe asks for events, which [Conn.Next] then returns.
func (c *Conn) Subscribe(ctx context.Context, events ...string) error {
	if err := c.take(ctx); err != nil {
		return err
	}
	defer c.give()
	for _, name := range events {
		if _, err := c.exchange(ctx, eventRegister, name, nil, "", nil); err != nil {
			return err
		}
	}
	return nil
}

// take waits for the turn to make a request.
func (c *Conn) take(ctx context.Context) error {
	select {
	case c.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *Conn) give() { <-c.turn }

// exchange sends a packet and waits for its answer. The caller has the turn.
func (c *Conn) exchange(ctx context.Context, kind byte, name string, m *Message, stream string, sink func(*Message)) (*Message, error) {
	b, err := encode(kind, name, m)
	defer clear(b) // it may hold a key
	if err != nil {
		return nil, err
	}
	answer := make(chan packet, 1)
	c.mu.Lock()
	c.answer, c.stream, c.sink = answer, stream, sink
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.answer, c.stream, c.sink = nil, "", nil
		c.mu.Unlock()
	}()
	stop := context.AfterFunc(ctx, func() { _ = c.conn.Close() })
	defer stop()
	if _, err := c.conn.Write(b); err != nil {
		_ = c.conn.Close() // half a packet may be on its way
	}
	var p packet
	select {
	case p = <-answer:
	case <-c.done:
		select {
		case p = <-answer: // the last thing it read
		default:
			if err := ctx.Err(); err != nil {
				return nil, fmt.Errorf("%w: %w", ErrClosed, err)
			}
			return nil, c.Err()
		}
	}
	switch {
	case p.kind == cmdUnknown || p.kind == eventUnknown:
		return nil, fmt.Errorf("%w: %s", ErrUnknown, name)
	case (p.kind == cmdResponse) != (kind == cmdRequest):
		_ = c.conn.Close()
		return nil, fmt.Errorf("%w: %w", ErrClosed, errPacket)
	case p.message.Get("success") == "no":
		return nil, fmt.Errorf("%w: %s", ErrFailed, name)
	}
	return p.message, nil
}

// encode returns a packet with its length before it.
func encode(kind byte, name string, m *Message) ([]byte, error) {
	if len(name) > 0xff {
		return nil, ErrTooLong
	}
	b := append(make([]byte, 4, 512), kind, byte(len(name)))
	b, err := m.append(append(b, name...))
	if err == nil && len(b)-4 > maxPacket {
		err = ErrTooLong
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return b, err
}
