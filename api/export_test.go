package api

import (
	"net/http"

	"lethe/event"
)

// Guard puts a test's handler where the operations are.
func Guard(next http.Handler, limiter Limiter, log *event.Logger) http.Handler {
	return &guard{next: next, limiter: limiter, purpose: appPurpose, body: MaxAppBody, part: event.AppAPI, log: log}
}

// Decode is the reader of bodies.
func Decode(data []byte, v any) error { return decode(data, v) }

// SignUpBody returns a new request type of POST /v1/accounts.
func SignUpBody() any { return &new(signUpInput).Body }
