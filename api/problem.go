package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"regexp"

	"github.com/danielgtaylor/huma/v2"

	"lethe/fault"
)

const problemType = "application/problem+json"

// Problem is the body of every refusal and failure: problem details of RFC 9457
// with the type "about:blank", extended by the fault's kind and hint. It holds
// no value that came with the request.
type Problem struct {
	Status int     `json:"status" doc:"HTTP status code" example:"401"`
	Title  string  `json:"title" doc:"Name of the HTTP status" example:"Unauthorized"`
	Kind   string  `json:"kind" doc:"Why it was refused; stable, for programs" enum:"internal,invalid,unauthenticated,denied,expired,not-found,conflict,too-many,unavailable,full,untrusted"`
	Detail string  `json:"detail" doc:"What is wrong, for people" example:"the e-mail address or the password is wrong"`
	Hint   string  `json:"hint,omitempty" doc:"What can be done about it, for people"`
	Fields []Field `json:"fields,omitempty" doc:"Fields of the request that are not as the schema demands" maxItems:"16" nullable:"false"`
}

// Field says what is wrong with one field of a request.
type Field struct {
	Name    string `json:"name" doc:"Path of the field" example:"body.password"`
	Message string `json:"message" doc:"What the schema demands" example:"expected length >= 10"`
}

// Error returns the public text.
func (p *Problem) Error() string { return p.Detail }

// GetStatus returns the HTTP status, which is how huma learns of it.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType returns the media type of problem documents.
func (p *Problem) ContentType(string) string { return problemType }

// problem returns the public side of err: of a fault its kind, text and hint,
// of anything else nothing.
func problem(err error) *Problem {
	var f *fault.Error
	switch {
	case errors.As(err, &f) && f.Kind != fault.Internal:
		p := refusal(f.Kind.Status(), f.Kind, f.Text)
		p.Hint = f.Hint
		return p
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return refusal(fault.Unavailable.Status(), fault.Unavailable, "the service did not answer in time")
	default:
		return refusal(http.StatusInternalServerError, fault.Internal, "the service has failed")
	}
}

func refusal(status int, kind fault.Kind, text string) *Problem {
	return &Problem{Status: status, Title: http.StatusText(status), Kind: kind.String(), Detail: text}
}

// statusProblem is what a bare status means to a person. Statuses come bare from
// http.ServeMux, http.ServeContent and huma, whose own texts may repeat the
// request.
func statusProblem(status int) *Problem {
	switch status {
	case http.StatusBadRequest:
		return refusal(status, fault.Invalid, "the body is not the JSON object that this call takes")
	case http.StatusNotFound:
		return refusal(status, fault.NotFound, "there is nothing at this path")
	case http.StatusMethodNotAllowed:
		return refusal(status, fault.Invalid, "this path does not take this method")
	case http.StatusRequestTimeout:
		return refusal(status, fault.Invalid, "the body did not arrive in time")
	case http.StatusRequestEntityTooLarge:
		return refusal(status, fault.Invalid, "the body is too large")
	case http.StatusUnsupportedMediaType:
		return refusal(status, fault.Invalid, "the body must be application/json")
	case http.StatusRequestedRangeNotSatisfiable:
		return refusal(status, fault.Invalid, "the file does not have this range")
	case http.StatusUnprocessableEntity:
		return refusal(status, fault.Invalid, "the request is not what this call takes")
	default:
		return problem(nil)
	}
}

// write sends p. The client being gone is nobody's failure.
func (p *Problem) write(w http.ResponseWriter) {
	body, err := json.Marshal(p)
	if err != nil {
		panic("api: internal error: a problem that cannot be encoded")
	}
	h := w.Header()
	h.Set("Content-Type", problemType)
	h.Set("Cache-Control", "no-store")
	for _, name := range []string{"Content-Length", "ETag", "Content-Encoding"} {
		h.Del(name)
	}
	w.WriteHeader(p.Status)
	_, _ = w.Write(append(body, '\n'))
}

// fieldForm are the paths that may be told back: those of our own schemas.
var fieldForm = regexp.MustCompile(`^[a-z0-9_.\[\]]{1,64}$`)

// transform turns huma's own errors into problems. Each of huma's details
// repeats the refused value (a password that is too short, for instance), and
// huma keeps the details in a pool: the value is dropped here for good.
func transform(_ huma.Context, _ string, v any) (any, error) {
	model, ok := v.(*huma.ErrorModel)
	if !ok {
		return v, nil
	}
	p := statusProblem(model.Status)
	for _, d := range model.Errors {
		d.Value = nil
		if len(p.Fields) == 16 || !fieldForm.MatchString(d.Location) {
			continue
		}
		p.Fields = append(p.Fields, Field{Name: d.Location, Message: d.Message})
	}
	return p, nil
}
