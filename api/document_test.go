package api_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"lethe/api"
	"lethe/fault"
)

var update = flag.Bool("update", false, "write doc/openapi*.json")

// TestDocuments compares the documents in doc with what the types say. Run it
// with -update after a change of the types.
func TestDocuments(t *testing.T) {
	for name, want := range api.Documents() {
		file := filepath.Join("..", "doc", name)
		if *update {
			if err := os.WriteFile(file, want, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("doc/%s is not what the types say: run go generate ./api", name)
		}
	}
	if r := newService(t).do(t, "GET", "/v1/openapi.json", ""); !bytes.Equal(r.body, api.Documents()["openapi.json"]) {
		t.Error("another document is served")
	}
}

type schema struct {
	Ref         string            `json:"$ref"`
	Type        any               `json:"type"`
	Format      string            `json:"format"`
	Description string            `json:"description"`
	Enum        []string          `json:"enum"`
	Properties  map[string]schema `json:"properties"`
	Items       *schema           `json:"items"`
	Additional  any               `json:"additionalProperties"`
}

type operation struct {
	ID          string              `json:"operationId"`
	Summary     string              `json:"summary"`
	Security    []map[string][]any  `json:"security"`
	Parameters  []map[string]any    `json:"parameters"`
	RequestBody map[string]any      `json:"requestBody"`
	Responses   map[string]response `json:"responses"`
}

type response struct {
	Content map[string]struct {
		Schema schema `json:"schema"`
	} `json:"content"`
	Headers map[string]struct {
		Schema schema `json:"schema"`
	} `json:"headers"`
}

type openapi struct {
	OpenAPI    string                          `json:"openapi"`
	Paths      map[string]map[string]operation `json:"paths"`
	Components struct {
		Schemas map[string]schema `json:"schemas"`
	} `json:"components"`
}

// TestDocumentsSayNoMoreThanTheyMay walks every field of every request and
// response. Each is described; none is a time or an address except those that
// are listed here with what they are.
func TestDocumentsSayNoMoreThanTheyMay(t *testing.T) {
	allowed := map[string]string{
		"Server.addresses":   "where customers connect to: the servers' own",
		"Licence.paid_until": "a date, the end of a licence",
		"Record.date":        "the date of a usage record",
	}
	used := map[string]bool{}
	suspicious := []string{"addr", "ip", "time", "date", "until", "last", "seen", "created", "when", "host", "peer", "client", "agent", "session"}
	for name, text := range api.Documents() {
		var doc openapi
		if err := json.Unmarshal(text, &doc); err != nil {
			t.Fatal(err)
		}
		if doc.OpenAPI != "3.1.0" || len(doc.Paths) == 0 {
			t.Errorf("%s: openapi %q with %d paths", name, doc.OpenAPI, len(doc.Paths))
		}
		for typ, s := range doc.Components.Schemas {
			if s.Type == "object" && s.Additional != false {
				t.Errorf("%s: %s takes unknown fields", name, typ)
			}
			for field, f := range s.Properties {
				id := typ + "." + field
				if f.Description == "" {
					t.Errorf("%s: %s is not described", name, id)
				}
				if f.Type == nil && f.Ref == "" {
					t.Errorf("%s: %s has no type", name, id)
				}
				format := f.Format
				if f.Items != nil {
					format = f.Items.Format
				}
				words := strings.FieldsFunc(field, func(r rune) bool { return r == '_' })
				risky := slices.ContainsFunc(words, func(w string) bool {
					return slices.ContainsFunc(suspicious, func(s string) bool { return strings.HasPrefix(w, s) })
				}) || slices.Contains([]string{"ip", "ipv4", "ipv6", "date-time", "date", "time", "hostname", "uri"}, format)
				if _, ok := allowed[id]; risky && !ok {
					t.Errorf("%s: %s looks like an address or a time and is not on the list", name, id)
				}
				used[id] = used[id] || risky
			}
		}
		for path, methods := range doc.Paths {
			for method, op := range methods {
				checkOperation(t, name+": "+method+" "+path, op)
			}
		}
	}
	for id := range allowed {
		if !used[id] {
			t.Errorf("the list allows %s, which is not there", id)
		}
	}
}

func checkOperation(t *testing.T, where string, op operation) {
	t.Helper()
	if op.ID == "" || op.Summary == "" {
		t.Errorf("%s has no name or summary", where)
	}
	for _, p := range op.Parameters {
		if p["description"] == nil {
			t.Errorf("%s: parameter %v is not described", where, p["name"])
		}
		if p["in"] != "path" && p["name"] != "If-None-Match" {
			t.Errorf("%s takes %v in the %v", where, p["name"], p["in"])
		}
	}
	for status, r := range op.Responses {
		for header := range r.Headers {
			if header != "ETag" && header != "Content-Disposition" {
				t.Errorf("%s answers %s with the field %s", where, status, header)
			}
		}
		for kind, c := range r.Content {
			if status >= "400" && (kind != "application/problem+json" || c.Schema.Ref != "#/components/schemas/Problem") {
				t.Errorf("%s answers %s with %s %s", where, status, kind, c.Schema.Ref)
			}
		}
	}
	for _, status := range []string{"500", "503"} {
		if _, ok := op.Responses[status]; !ok {
			t.Errorf("%s does not say that it may answer %s", where, status)
		}
	}
}

func TestProblemKindsAreTheFaultKinds(t *testing.T) {
	var doc openapi
	if err := json.Unmarshal(api.Documents()["openapi.json"], &doc); err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, k := range fault.Kinds() {
		want = append(want, k.String())
	}
	if got := doc.Components.Schemas["Problem"].Properties["kind"].Enum; !slices.Equal(got, want) {
		t.Errorf("kinds %v, want %v", got, want)
	}
}
