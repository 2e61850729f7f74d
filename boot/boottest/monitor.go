package boottest

import (
	"bufio"
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Monitor speaks with a machine's monitor (QEMU Machine Protocol).
type Monitor struct {
	t *testing.T
	c net.Conn
	r *bufio.Reader
}

// Monitor connects to the machine's monitor.
func (r *Running) Monitor(t *testing.T) *Monitor {
	t.Helper()
	var c net.Conn
	Eventually(t, "monitor", func() bool {
		var err error
		c, err = net.Dial("unix", r.QMP)
		return err == nil
	})
	t.Cleanup(func() { _ = c.Close() })
	m := &Monitor{t: t, c: c, r: bufio.NewReader(c)}
	m.next() // greeting
	m.Do("qmp_capabilities", nil)
	return m
}

func (m *Monitor) next() (answer map[string]any) {
	m.t.Helper()
	check(m.t, m.c.SetReadDeadline(time.Now().Add(3*time.Minute)))
	line, err := m.r.ReadBytes('\n')
	check(m.t, err)
	check(m.t, json.Unmarshal(line, &answer))
	return answer
}

// Do runs a command and waits for its answer.
func (m *Monitor) Do(command string, arguments map[string]any) {
	m.t.Helper()
	b, err := json.Marshal(map[string]any{"execute": command, "arguments": arguments})
	if arguments == nil {
		b, err = json.Marshal(map[string]any{"execute": command})
	}
	check(m.t, err)
	_, err = m.c.Write(append(b, '\n'))
	check(m.t, err)
	for {
		answer := m.next()
		if answer["error"] != nil {
			m.t.Fatalf("%s: %v", command, answer["error"])
		}
		if _, ok := answer["return"]; ok {
			return
		}
	}
}

// Until waits for an event.
func (m *Monitor) Until(event string) {
	m.t.Helper()
	for m.next()["event"] != event {
	}
}

// Memory returns the machine's memory, of which it has that many MiB, below the hole for devices.
func (m *Monitor) Memory(mib int) []byte {
	m.t.Helper()
	path := filepath.Join(m.t.TempDir(), "memory")
	m.Do("pmemsave", map[string]any{"val": 0, "size": mib << 20, "filename": path})
	b, err := os.ReadFile(path)
	check(m.t, err)
	check(m.t, os.Remove(path))
	return b
}

// Go tells a machine that waits to go on.
func (r *Running) Go(t *testing.T) {
	t.Helper()
	c, err := net.Dial("unix", filepath.Join(r.dir, "line"))
	check(t, err)
	_, err = c.Write([]byte("\n"))
	check(t, err)
	go func() { _, _ = io.Copy(io.Discard, c) }() // the machine writes there as well, and waits for a reader
	t.Cleanup(func() { _ = c.Close() })
}

// Said waits until the console has said something n times and returns all of it.
func (r *Running) Said(t *testing.T, what string, n int) (text string) {
	t.Helper()
	Eventually(t, what, func() bool {
		text = r.Text()
		return strings.Count(text, what) >= n
	})
	return text
}

// Eventually waits for three minutes at most until something is so.
func Eventually(t *testing.T, what string, so func() bool) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(3 * time.Minute); !so(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("no %s after three minutes", what)
		}
	}
}
