package api

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/netip"
	"reflect"
	"strconv"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"lethe/event"
	"lethe/fault"
)

// Version is the version of both APIs. Within /v1 fields are added, never
// changed or removed.
const Version = "1.0.0"

// document is one API under construction.
type document struct {
	api huma.API
	reporter
}

// reporter tells failures: to the caller as a problem, to the operator as an
// event.
type reporter struct {
	part event.Part
	log  *event.Logger
}

// newDocument returns an empty API on mux. huma's documentation pages, schema
// links and its own handlers for the document are left out: the pages load
// scripts from elsewhere, the handlers race on their first call.
func newDocument(mux *http.ServeMux, title, text string, part event.Part, log *event.Logger) *document {
	registry := huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer)
	registry.RegisterTypeAlias(reflect.TypeFor[huma.ErrorModel](), reflect.TypeFor[Problem]())
	config := huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI:    "3.1.0",
			Info:       &huma.Info{Title: title, Version: Version, Description: text},
			Components: &huma.Components{Schemas: registry},
		},
		// Both are needed for answers; the guard lets only the first in.
		Formats:       map[string]huma.Format{"application/json": strictJSON(), problemType: strictJSON()},
		DefaultFormat: "application/json",
		Transformers:  []huma.Transformer{transform},
	}
	return &document{api: humago.New(mux, config), reporter: reporter{part, log}}
}

// operation describes an operation. Kinds are the refusals it may answer
// beside those that every operation of its security may.
func operation(security, id, method, path string, status int, summary string, kinds ...fault.Kind) huma.Operation {
	op := huma.Operation{OperationID: id, Method: method, Path: path, DefaultStatus: status, Summary: summary}
	kinds = append(kinds, fault.TooMany, fault.Internal, fault.Unavailable)
	if security != "" {
		op.Security = []map[string][]string{{security: {}}}
		kinds = append(kinds, fault.Unauthenticated)
	}
	for _, k := range kinds {
		op.Errors = append(op.Errors, k.Status())
	}
	return op
}

// response describes a response whose body the operation encodes itself.
func (d *document) response(text string, body any) *huma.Response {
	schema := d.api.OpenAPI().Components.Schemas.Schema(reflect.TypeOf(body), true, "")
	return &huma.Response{Description: text, Content: map[string]*huma.MediaType{"application/json": {Schema: schema}}}
}

// add registers an operation. Its errors become problems here, and failures
// that are the service's own are logged by kind.
func add[I, O any](d *document, op huma.Operation, handle func(context.Context, *I) (*O, error)) {
	huma.Register(d.api, op, func(ctx context.Context, in *I) (*O, error) {
		out, err := handle(ctx, in)
		if err != nil {
			return nil, d.tell(err)
		}
		return out, nil
	})
}

// tell returns the problem for err and logs what the operator must know of.
func (r reporter) tell(err error) *Problem {
	p := problem(err)
	switch kind := fault.Parse(p.Kind); kind {
	case fault.Internal, fault.Unavailable, fault.Full:
		r.log.Log(event.Trouble{Part: r.part, Kind: kind})
	}
	return p
}

// serveDocument serves the finished document as JSON and YAML.
func serveDocument(mux *http.ServeMux, path string, doc *huma.OpenAPI) {
	yaml, err := doc.YAML()
	if err != nil {
		panic("api: internal error: the document cannot be written as YAML")
	}
	for ending, body := range map[string][]byte{"json": render(doc), "yaml": yaml} {
		mux.HandleFunc("GET "+path+"."+ending, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/openapi+"+ending)
			w.Header().Set("Cache-Control", "no-cache")
			w.Header().Set("Content-Length", strconv.Itoa(len(body)))
			_, _ = w.Write(body) // the client being gone is nobody's failure
		})
	}
}

// render returns the document as indented JSON.
func render(doc *huma.OpenAPI) []byte {
	bare, err := json.Marshal(doc)
	var b bytes.Buffer
	if err != nil || json.Indent(&b, bare, "", "  ") != nil {
		panic("api: internal error: the document cannot be written as JSON")
	}
	b.WriteByte('\n')
	return b.Bytes()
}

// Documents returns the OpenAPI documents of both APIs by file name, as they
// are kept in doc.
func Documents() map[string][]byte {
	return map[string][]byte{
		"openapi.json":      render(describeApp(http.NewServeMux(), AppDeps{}, nil)),
		"openapi-node.json": render(describeNode(http.NewServeMux(), NodeDeps{}, nil)),
	}
}

// nobody is the limiter that lets nobody in.
type nobody struct{}

func (nobody) Allow(string, netip.Addr) bool { return false }
