// Package fault is the closed set of reasons for which Lethe's programs refuse
// or fail.
//
// A [Kind] is what crosses process borders and what decides the HTTP status
// and the exit code; it is small, stable and says nothing about a person. The
// cause stays inside the process and is never logged (error texts of the
// standard library hold addresses). The public text is its own field, written
// for the person who reads it.
package fault

import (
	"errors"
	"net/http"
)

// Kind says why something was refused. The zero Kind is Internal, so that an
// error nobody classified is never mistaken for a refusal.
type Kind uint8

// The kinds. Their numbers are not stable, their names are.
const (
	Internal        Kind = iota // a defect or an unforeseen failure
	Invalid                     // the request makes no sense; repeating it will not help
	Unauthenticated             // unknown user, wrong password, unknown or ended token
	Denied                      // authenticated, but not allowed
	Expired                     // the licence, bundle or certificate has ended
	NotFound                    // no such thing
	Conflict                    // it exists already, or somebody else was faster
	TooMany                     // a limit is reached; later it may work
	Unavailable                 // a needed service does not answer; later it may work
	Full                        // no space left to keep what was sent; nothing was acknowledged
	Untrusted                   // a signature, digest or version did not verify
)

var names = [...]string{
	"internal", "invalid", "unauthenticated", "denied", "expired", "not-found",
	"conflict", "too-many", "unavailable", "full", "untrusted",
}

var statuses = [...]int{
	http.StatusInternalServerError, http.StatusUnprocessableEntity, http.StatusUnauthorized,
	http.StatusForbidden, http.StatusPaymentRequired, http.StatusNotFound,
	http.StatusConflict, http.StatusTooManyRequests, http.StatusServiceUnavailable,
	http.StatusInsufficientStorage, http.StatusBadGateway,
}

// Kinds returns every kind.
func Kinds() []Kind {
	all := make([]Kind, len(names))
	for i := range all {
		all[i] = Kind(i)
	}
	return all
}

// String returns the stable name of k, for instance "not-found".
func (k Kind) String() string {
	if int(k) >= len(names) {
		k = Internal
	}
	return names[k]
}

// Parse returns the kind of that name; an unknown name is Internal.
func Parse(name string) Kind {
	for i, n := range names {
		if n == name {
			return Kind(i)
		}
	}
	return Internal
}

// Status returns the HTTP status that stands for k (RFC 9110).
func (k Kind) Status() int {
	if int(k) >= len(statuses) {
		k = Internal
	}
	return statuses[k]
}

// FromStatus returns the kind that an HTTP status of another program stands
// for; an unknown one is Unavailable.
func FromStatus(status int) Kind {
	for k, s := range statuses {
		if s == status {
			return Kind(k)
		}
	}
	return Unavailable
}

// Error is a classified error. Text and Hint are for the person who asked and
// hold no personal data and no cause; the cause is for code only.
type Error struct {
	Kind Kind
	Text string // one lower-case sentence without full stop: what is wrong
	Hint string // what the person can do about it; may be empty
	err  error
}

// New returns an error of kind k with a public text.
func New(k Kind, text string) *Error { return &Error{Kind: k, Text: text} }

// Wrap returns an error of kind k with a public text and a cause. The cause
// is reachable by errors.Is and errors.As but is not part of the message.
func Wrap(k Kind, text string, cause error) *Error { return &Error{Kind: k, Text: text, err: cause} }

// WithHint returns a copy of e with a hint.
func (e *Error) WithHint(hint string) *Error {
	c := *e
	c.Hint = hint
	return &c
}

// Error returns the public text. The cause is left out on purpose.
func (e *Error) Error() string { return e.Text }

// Unwrap returns the cause, or nil.
func (e *Error) Unwrap() error { return e.err }

// Is makes errors.Is(err, fault.New(kind, "")) match any error of that kind.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Text == "" && t.Kind == e.Kind
}

// Of returns the kind of the outermost classified error in err's chain, or
// Internal when there is none.
func Of(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Internal
}
