// Package event is everything that Lethe's programs can say in a log.
//
// There is no way to log text. A program logs an [Event]: one of the structs in
// vocabulary.go, whose fields are enumerations, counts and versions. A user
// name, an address, an error's text or a daemon's output has no field to go
// into, so keeping them out needs no discipline. Events of a VPN server speak
// of the server, never of a session: there is none for a login, a connect or a
// disconnect, because a log line's arrival is a timestamp.
//
// A line is written as "name key=value …" without a time of its own. [Stray]
// catches what libraries want to log (net/http, for instance): it counts and
// drops.
package event

import (
	"io"
	"log"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// Event is one of the structs of this package; no other type can be an Event.
type Event interface {
	// name returns the event's stable name, for instance "bundle.applied".
	name() string
}

// Logger writes events, one line each. It is safe for concurrent use. A nil
// *Logger drops everything.
type Logger struct {
	strays atomic.Uint64

	mu sync.Mutex
	w  io.Writer
}

// New returns a logger that writes to w.
func New(w io.Writer) *Logger { return &Logger{w: w} }

// Log writes e. A failing writer is ignored: a full log must not stop a
// server.
func (l *Logger) Log(e Event) {
	if l == nil {
		return
	}
	line := Format(e) + "\n"
	l.mu.Lock()
	defer l.mu.Unlock()
	_, _ = io.WriteString(l.w, line)
}

// Stray returns a standard logger for libraries that insist on one. What they
// say is counted and dropped.
func (l *Logger) Stray() *log.Logger { return log.New(strayWriter{l}, "", 0) }

// Strays returns how many lines [Logger.Stray] has dropped.
func (l *Logger) Strays() uint64 { return l.strays.Load() }

type strayWriter struct{ l *Logger }

func (w strayWriter) Write(p []byte) (int, error) {
	if w.l != nil {
		w.l.strays.Add(1)
	}
	return len(p), nil
}

// Name returns the stable name of e.
func Name(e Event) string { return e.name() }

// Format returns the line that stands for e, without line feed.
func Format(e Event) string {
	var b strings.Builder
	b.WriteString(e.name())
	v := reflect.ValueOf(e)
	for i := range v.NumField() {
		b.WriteByte(' ')
		b.WriteString(Key(v.Type().Field(i).Name))
		b.WriteByte('=')
		b.WriteString(value(v.Field(i)))
	}
	return b.String()
}

// Key returns the key under which a field is written: FieldName becomes
// field_name.
func Key(field string) string {
	var b strings.Builder
	for i, r := range field {
		if r >= 'A' && r <= 'Z' {
			if i > 0 {
				b.WriteByte('_')
			}
			r += 'a' - 'A'
		}
		b.WriteRune(r)
	}
	return b.String()
}

// value prints a field. Only the kinds that the vocabulary test allows reach
// it: enumerations (with a String method), integers and booleans.
func value(v reflect.Value) string {
	if s, ok := v.Interface().(interface{ String() string }); ok {
		return s.String()
	}
	switch {
	case v.CanInt():
		return strconv.FormatInt(v.Int(), 10)
	case v.CanUint():
		return strconv.FormatUint(v.Uint(), 10)
	case v.Kind() == reflect.Bool:
		return strconv.FormatBool(v.Bool())
	default:
		panic("event: internal error: field of a kind that the vocabulary does not allow")
	}
}
