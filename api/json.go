package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"

	"lethe/private"
)

// What is wrong with a body. The texts are constants: they are told to the
// caller and hold nothing of the body.
var (
	errUTF8      = errors.New("the body is not UTF-8")
	errSyntax    = errors.New("the body is not one JSON value")
	errDuplicate = errors.New("a field stands twice")
	errDepth     = errors.New("the body is nested too deeply")
	errName      = errors.New("a field has a name that no field has")
	errShape     = errors.New("a field is not of the expected form")
)

const maxDepth = 8

// strictJSON is huma's JSON with a reader that takes no two meanings: invalid
// UTF-8, a second value, a field that stands twice (also in other letter case,
// which encoding/json would take for the same) are refused.
func strictJSON() huma.Format {
	return huma.Format{Marshal: encode, Unmarshal: decode}
}

// encode writes v. The client being gone is nobody's failure, and huma would
// print it.
func encode(w io.Writer, v any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err
	}
	_, _ = w.Write(b.Bytes())
	return nil
}

// decode is called twice by huma for one body: first into an any that is
// validated, then into the operation's type. The second call wipes the bytes,
// which lie in a pool of huma's and may hold a password.
func decode(data []byte, v any) error {
	if _, first := v.(*any); first {
		if err := inspect(data); err != nil {
			return err
		}
		if json.Unmarshal(data, v) != nil {
			return errShape // a number that no float64 holds
		}
		return nil
	}
	defer clear(data)
	if json.Unmarshal(data, v) != nil {
		return errShape
	}
	return nil
}

// inspect returns what makes data ambiguous, or nil.
func inspect(data []byte) error {
	if !utf8.Valid(data) {
		return errUTF8
	}
	if !json.Valid(data) {
		return errSyntax
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()            // so that no number stops it
	var open []map[string]bool // names seen in each open object; nil for an array
	name := false              // the next token is a name, when it is a string
	for {
		token, err := dec.Token()
		if err != nil {
			return nil // the end: the syntax has been checked
		}
		switch t := token.(type) {
		case json.Delim:
			switch t {
			case '{':
				open = append(open, map[string]bool{})
			case '[':
				open = append(open, nil)
			default:
				open = open[:len(open)-1]
			}
			if len(open) > maxDepth {
				return errDepth
			}
		case string:
			if name {
				if err := see(open[len(open)-1], t); err != nil {
					return err
				}
				name = false
				continue
			}
		}
		name = len(open) > 0 && open[len(open)-1] != nil
	}
}

// see notes a field's name. All of ours are small letters, digits and
// underscores, so that comparing bytes is comparing as encoding/json does.
func see(seen map[string]bool, name string) error {
	for _, c := range []byte(name) {
		if c != '_' && (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return errName
		}
	}
	if seen[name] {
		return errDuplicate
	}
	seen[name] = true
	return nil
}

// secret is a string of a request that becomes private where it is decoded.
type secret struct{ private.Value[string] }

// UnmarshalJSON reads a JSON string.
func (s *secret) UnmarshalJSON(data []byte) error {
	var text string
	if err := json.Unmarshal(data, &text); err != nil {
		return errShape
	}
	s.Value = private.Of(text)
	return nil
}

// Schema describes it as a string.
func (secret) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Format: "password"}
}
