// Package private holds values that must never leave the code that works with
// them: user names, passwords, client addresses, DNS names, keys.
//
// A [Value] keeps its content behind a closure. Printing it with any verb,
// logging it, encoding it as JSON, text or gob gives one constant; it cannot be
// compared with ==, so it cannot be a map key by accident either. The one way
// out is [Value.Reveal], whose calls a test counts (see the repository's
// policy test).
//
// Why a closure: fmt prints the memory of unexported fields when a struct is
// printed with a wrong verb, and log/slog honours LogValuer only for an
// attribute's own value. Of the forms tried, only a func field leaked in no
// position.
package private

import (
	"fmt"
	"io"
	"log/slog"
)

// Redacted is what every printed or encoded [Value] looks like.
const Redacted = "[private]"

// Value is a T that cannot be printed, logged, encoded or compared. The zero
// Value holds the zero T. It is immutable and safe for concurrent use when T
// is.
type Value[T any] struct {
	reveal func() T
}

// Of returns a Value that holds v.
func Of[T any](v T) Value[T] {
	return Value[T]{reveal: func() T { return v }}
}

// Reveal returns the content. Every call is a place where personal data or a
// key is handled; keep them few.
func (v Value[T]) Reveal() T {
	if v.reveal == nil {
		var zero T
		return zero
	}
	return v.reveal()
}

// Format implements [fmt.Formatter] for all verbs, so that no verb reaches the
// content.
func (Value[T]) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, Redacted) }

// String implements [fmt.Stringer].
func (Value[T]) String() string { return Redacted }

// LogValue implements [slog.LogValuer].
func (Value[T]) LogValue() slog.Value { return slog.StringValue(Redacted) }

// MarshalText implements [encoding.TextMarshaler]; JSON and XML use it too.
func (Value[T]) MarshalText() ([]byte, error) { return []byte(Redacted), nil }

// GobEncode implements [gob.GobEncoder].
func (Value[T]) GobEncode() ([]byte, error) { return []byte(Redacted), nil }
