package api

import (
	"net/http"

	"lethe/event"
)

// Guard puts a test's handler where the operations are.
func Guard(next http.Handler, limiter Limiter, log *event.Logger) http.Handler {
	return &guard{next: next, limiter: limiter, purpose: appPurpose, body: MaxAppBody, part: event.AppAPI, log: log}
}
