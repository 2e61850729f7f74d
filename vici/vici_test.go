package vici_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"lethe/vici"
)

// charon starts a strongSwan in a network namespace of its own and returns its socket.
func charon(t *testing.T) (string, *exec.Cmd) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for a network namespace")
	}
	dir := t.TempDir()
	conf, socket := filepath.Join(dir, "conf"), filepath.Join(dir, "vici")
	text := fmt.Sprintf("charon-systemd {\nload = random nonce openssl vici kernel-netlink socket-default\njournal {\ndefault = -1\n}\nplugins {\nvici {\nsocket = unix://%s\n}\n}\n}\n", socket)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/usr/sbin/charon-systemd")
	cmd.Env = []string{"STRONGSWAN_CONF=" + conf}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return socket, cmd
}

// dial connects as soon as somebody listens.
func dial(t *testing.T, socket string, keep ...string) *vici.Conn {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; {
		c, err := vici.Dial(t.Context(), socket, keep...)
		if err == nil {
			t.Cleanup(c.Close)
			return c
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestCharon speaks with the real one.
func TestCharon(t *testing.T) {
	socket, cmd := charon(t)
	c := dial(t, socket)
	ctx := t.Context()
	v, err := c.Call(ctx, "version", nil)
	if err != nil || v.Get("daemon") != "charon-systemd" || v.Get("version") == "" {
		t.Errorf("version: %v", err)
	}
	if _, err := c.Call(ctx, "no-such-command", nil); !errors.Is(err, vici.ErrUnknown) {
		t.Errorf("unknown command: %v", err)
	}
	if err := c.Subscribe(ctx, "ike-updown", "no-such-event"); !errors.Is(err, vici.ErrUnknown) {
		t.Errorf("unknown event: %v", err)
	}
	if _, err := c.Call(ctx, "load-key", new(vici.Message).Set("type", "any").Set("data", "junk")); !errors.Is(err, vici.ErrFailed) {
		t.Errorf("junk for a key: %v", err)
	}
	conn := func(name string) *vici.Message {
		side := new(vici.Message).Set("auth", "psk")
		return new(vici.Message).SetSection(name, new(vici.Message).Set("version", "2").SetList("remote_addrs", "192.0.2.1").
			SetSection("local", side).SetSection("remote", side).SetSection("children", new(vici.Message).SetSection("c", new(vici.Message))))
	}
	for _, name := range []string{"one", "two"} {
		if _, err := c.Call(ctx, "load-conn", conn(name)); err != nil {
			t.Fatal(err)
		}
	}
	var names []string
	if err := c.Stream(ctx, "list-conns", "list-conn", nil, func(m *vici.Message) {
		for name, s := range m.Sections() {
			names = append(names, name+" "+s.List("remote_addrs")[0])
		}
	}); err != nil || fmt.Sprint(names) != "[one 192.0.2.1 two 192.0.2.1]" {
		t.Errorf("connections %q, %v", names, err)
	}
	if err := c.Stream(ctx, "list-conns", "no-such-event", nil, nil); !errors.Is(err, vici.ErrUnknown) {
		t.Errorf("stream of unknown events: %v", err)
	}
	// Many callers, one connection.
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if m, err := c.Call(ctx, "version", nil); err != nil || m.Get("daemon") != "charon-systemd" {
				t.Errorf("version: %v", err)
			}
		})
	}
	wg.Wait()
	// Only what was asked for.
	short := dial(t, socket, "daemon")
	if m, err := short.Call(ctx, "version", nil); err != nil || m.Get("daemon") != "charon-systemd" || m.Get("version") != "" {
		t.Errorf("want the daemon only: %v", err)
	}
	if _, err := short.Call(ctx, "load-key", new(vici.Message).Set("type", "any")); !errors.Is(err, vici.ErrFailed) {
		t.Errorf("a failure is not noticed: %v", err)
	}
	// The end of charon is the end of the connection, for those who wait too.
	waiting := make(chan error, 1)
	go func() { _, err := c.Next(ctx); waiting <- err }()
	_ = cmd.Process.Kill()
	if err := <-waiting; !errors.Is(err, vici.ErrClosed) || !errors.Is(err, io.EOF) {
		t.Errorf("waiting for an event at the end: %v", err)
	}
	if _, err := c.Call(ctx, "version", nil); !errors.Is(err, vici.ErrClosed) {
		t.Errorf("call after the end: %v", err)
	}
	if c.Err() == nil {
		t.Error("ended without a reason")
	}
	if err := c.Subscribe(ctx, "ike-updown"); !errors.Is(err, vici.ErrClosed) {
		t.Errorf("subscribe after the end: %v", err)
	}
	if _, err := vici.Dial(ctx, socket+"x"); err == nil {
		t.Error("connected to nobody")
	}
}

// peer is the other end of a connection, which does as a test wants.
type peer struct {
	t    *testing.T
	conn net.Conn
}

func pair(t *testing.T) (*vici.Conn, peer) {
	t.Helper()
	a, b := net.Pipe()
	c := vici.New(a)
	t.Cleanup(func() { c.Close(); _ = b.Close() })
	return c, peer{t, b}
}

// send sends a packet; an error is for the connection to notice.
func (p peer) send(packet string) {
	_, _ = p.conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(packet))), packet...))
}

// receive takes a packet.
func (p peer) receive() string {
	var head [4]byte
	if _, err := io.ReadFull(p.conn, head[:]); err != nil {
		return err.Error()
	}
	b := make([]byte, binary.BigEndian.Uint32(head[:]))
	_, _ = io.ReadFull(p.conn, b)
	return string(b)
}

// TestEvents shows that events are kept in order, among answers, until somebody takes them.
func TestEvents(t *testing.T) {
	c, p := pair(t)
	done := make(chan error, 1)
	go func() { done <- c.Subscribe(t.Context(), "up") }()
	if got := p.receive(); got != "\x03\x02up" {
		t.Errorf("got %q", got)
	}
	p.send("\x07\x02up\x03\x01n\x00\x010")
	p.send("\x05")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	go func() {
		var seen []string
		err := c.Stream(t.Context(), "list", "item", new(vici.Message).Set("a", "b"), func(m *vici.Message) { seen = append(seen, m.Get("n")) })
		if err == nil && fmt.Sprint(seen) != "[7 8]" {
			err = fmt.Errorf("streamed %q", seen)
		}
		done <- err
	}()
	for _, step := range []struct{ want, answer string }{
		{"\x03\x04item", "\x05"},
		{"\x00\x04list\x03\x01a\x00\x01b", "\x07\x04item\x03\x01n\x00\x017 \x07\x02up\x03\x01n\x00\x011 \x07\x04item\x03\x01n\x00\x018 \x01"},
		{"\x04\x04item", "\x05"},
	} {
		if got := p.receive(); got != step.want {
			t.Errorf("got %q, want %q", got, step.want)
		}
		for _, a := range strings.Split(step.answer, " ") {
			p.send(a)
		}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	_ = p.conn.Close()
	for i := range 2 {
		e, err := c.Next(t.Context())
		if err != nil || e.Name != "up" || e.Message.Get("n") != fmt.Sprint(i) {
			t.Errorf("event %d: %v", i, err)
		}
	}
	if _, err := c.Next(t.Context()); !errors.Is(err, vici.ErrClosed) {
		t.Errorf("after the last event: %v", err)
	}
}

// TestNobodyListens fills the queue of events.
func TestNobodyListens(t *testing.T) {
	c, p := pair(t)
	one := append(binary.BigEndian.AppendUint32(nil, 3), "\x07\x01u"...)
	_, _ = p.conn.Write(bytes.Repeat(one, vici.MaxQueue+1))
	for c.Err() == nil {
		time.Sleep(time.Millisecond) // the last one is read and may not be handled yet
	}
	n := 0
	for {
		if _, err := c.Next(t.Context()); err != nil {
			break
		}
		n++
	}
	if n != vici.MaxQueue || !strings.Contains(c.Err().Error(), "were not taken") {
		t.Errorf("%d events, then %v", n, c.Err())
	}
}

// TestJunk ends the connection, whatever it is.
func TestJunk(t *testing.T) {
	for name, in := range map[string]string{
		"no length":             "\x00\x00",
		"nothing":               "\x00\x00\x00\x00",
		"too long":              "\x00\x08\x00\x01",
		"cut":                   "\x00\x00\x00\x09\x01",
		"answer to nobody":      "\x00\x00\x00\x01\x01",
		"confirmation":          "\x00\x00\x00\x01\x05",
		"a request":             "\x00\x00\x00\x02\x00\x00",
		"unknown kind":          "\x00\x00\x00\x01\x63",
		"event without a name":  "\x00\x00\x00\x01\x07",
		"event, name cut":       "\x00\x00\x00\x03\x07\x09a",
		"event, broken message": "\x00\x00\x00\x04\x07\x01a\x02",
		"confirmation and more": "\x00\x00\x00\x02\x05\x00",
	} {
		t.Run(name, func(t *testing.T) {
			c, p := pair(t)
			_, _ = p.conn.Write([]byte(in))
			_ = p.conn.Close()
			if _, err := c.Next(t.Context()); !errors.Is(err, vici.ErrClosed) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestWrongAnswer shows that an answer to something else ends the connection.
func TestWrongAnswer(t *testing.T) {
	for _, answer := range []string{"\x05", "\x01\x02"} {
		c, p := pair(t)
		go func() { _ = p.receive(); p.send(answer) }()
		if _, err := c.Call(t.Context(), "version", nil); !errors.Is(err, vici.ErrClosed) {
			t.Errorf("answer %q: %v", answer, err)
		}
	}
	c, p := pair(t)
	go func() { _ = p.receive(); p.send("\x01") }()
	if err := c.Subscribe(t.Context(), "up"); !errors.Is(err, vici.ErrClosed) {
		t.Errorf("an answer instead of a confirmation: %v", err)
	}
}

// TestGiveUp ends waits of every kind by their contexts.
func TestGiveUp(t *testing.T) {
	c, p := pair(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 4)
	go func() { _, err := c.Next(ctx); done <- err }()
	go func() { _, err := c.Call(ctx, "slow", nil); done <- err }()
	_ = p.receive() // the call has its turn
	go func() { _, err := c.Call(ctx, "other", nil); done <- err }()
	go func() { done <- c.Subscribe(ctx, "up") }()
	go func() { time.Sleep(20 * time.Millisecond); cancel() }()
	for range 4 {
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	}
	if err := c.Stream(ctx, "a", "b", nil, nil); err == nil {
		t.Error("a stream after the end")
	}
	if _, err := c.Call(t.Context(), "version", nil); !errors.Is(err, vici.ErrClosed) {
		t.Errorf("a call that was given up leaves the connection: %v", err)
	}
}

func TestCallTooLong(t *testing.T) {
	c, p := pair(t)
	long := strings.Repeat("x", 1<<16)
	big := new(vici.Message)
	for range 9 {
		big.Set("k", long[1:])
	}
	for name, call := range map[string]func() error{
		"command": func() error { _, err := c.Call(t.Context(), long, nil); return err },
		"value":   func() error { _, err := c.Call(t.Context(), "a", new(vici.Message).Set("b", long)); return err },
		"message": func() error { _, err := c.Call(t.Context(), "a", big); return err },
	} {
		if err := call(); !errors.Is(err, vici.ErrTooLong) {
			t.Errorf("%s: %v", name, err)
		}
	}
	go func() { _ = p.receive(); p.send("\x01") }()
	if _, err := c.Call(t.Context(), "version", nil); err != nil {
		t.Errorf("the connection did not survive: %v", err)
	}
}
