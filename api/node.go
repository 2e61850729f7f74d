package api

import (
	"context"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"lethe/day"
	"lethe/event"
	"lethe/fault"
	"lethe/usage"
)

// NodeDeps is what the node API stands on. All are required.
type NodeDeps struct {
	// Directory says which servers there are. A server that is not in it gets
	// nothing; one that is not enabled gets everything, because it still has
	// sessions to end and usage to deliver.
	Directory Directory
	// Usage takes what servers deliver.
	Usage UsageSink
	// Bundles is the directory into which the publisher writes.
	Bundles string
}

// Records may be this many days older or newer than today: a server delivers
// within a week, and its clock may be a time zone off.
const (
	maxAge   = 8
	maxAhead = 1
)

// bundleForm are the files of a bundle; nothing else is served.
var bundleForm = regexp.MustCompile(`^(freshness\.json|(manifest|root)/[0-9]{1,20}\.json|files/[0-9a-f]{64})$`)

type batchInput struct {
	Body usage.Batch
}

type nodeAPI struct{ NodeDeps }

// NewNode returns the node API, to be served with [NodeTLS]. A request without
// a verified client certificate is refused here too, should the TLS
// configuration be another. It logs failures to log, which may be nil.
func NewNode(deps NodeDeps, log *event.Logger) http.Handler {
	mux := http.NewServeMux()
	describeNode(mux, deps, log)
	gate := &gate{next: mux, directory: deps.Directory, report: reporter{event.NodeAPI, log}}
	return &guard{next: gate, body: MaxNodeBody, part: event.NodeAPI, log: log}
}

// describeNode registers the operations on mux and returns their description.
func describeNode(mux *http.ServeMux, deps NodeDeps, log *event.Logger) *huma.OpenAPI {
	n := &nodeAPI{deps}
	d := newDocument(mux, "Lethe node API", "What a VPN server asks of the control plane.", event.NodeAPI, log)
	doc := d.api.OpenAPI()
	doc.Components.SecuritySchemes = map[string]*huma.SecurityScheme{
		"certificate": {Type: "mutualTLS", Description: "Certificate whose common name is the server's id"},
	}
	const server = "certificate"
	add(d, operation(server, "usage", "POST", "/node/v1/usage", 204, "Deliver a batch of usage records",
		fault.Denied, fault.Full), n.usage)

	// Files are served by net/http, which knows ranges; huma only describes them.
	op := operation(server, "bundle", "GET", "/node/v1/bundle/{path}", 200, "Fetch a file of the signed bundle; ranges are served")
	op.Parameters = []*huma.Param{{
		Name: "path", In: "path", Required: true, Description: "freshness.json, manifest/N.json, root/N.json or files/SHA256",
		Schema: &huma.Schema{Type: huma.TypeString, Pattern: bundleForm.String()},
	}}
	op.Responses = map[string]*huma.Response{"200": {Description: "The file"}, "206": {Description: "A part of the file"}}
	refusals := doc.Paths["/node/v1/usage"].Post.Responses["500"].Content
	for _, k := range []fault.Kind{fault.Unauthenticated, fault.Denied, fault.NotFound, fault.Internal, fault.Unavailable} {
		op.Responses[strconv.Itoa(k.Status())] = &huma.Response{Description: http.StatusText(k.Status()), Content: refusals}
	}
	doc.AddOperation(&op)
	mux.HandleFunc("GET /node/v1/bundle/{path...}", func(w http.ResponseWriter, r *http.Request) {
		if err := n.bundle(w, r); err != nil {
			d.tell(err).write(w)
		}
	})
	return doc
}

// gate lets only servers of the directory through and notes which one it is.
type gate struct {
	next      http.Handler
	directory Directory
	report    reporter
}

type serverKey struct{}

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id, err := g.server(r)
	if err != nil {
		g.report.tell(err).write(w)
		return
	}
	g.next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), serverKey{}, id)))
}

// server returns the id of the server that calls. The certificate was verified
// at the handshake; that it still holds is checked here, because a connection
// may outlive it, and so may the server's place in the directory.
func (g *gate) server(r *http.Request) (string, error) {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return "", fault.New(fault.Unauthenticated, "a verified client certificate is needed")
	}
	leaf := r.TLS.VerifiedChains[0][0]
	if now := time.Now(); now.After(leaf.NotAfter) || now.Before(leaf.NotBefore) {
		return "", fault.New(fault.Unauthenticated, "the client certificate is not valid now")
	}
	d, err := g.directory.Directory(r.Context())
	if err != nil {
		return "", err
	}
	s, ok := d.Server(leaf.Subject.CommonName)
	if !ok {
		return "", fault.New(fault.Denied, "the directory has no such server")
	}
	return s.ID, nil
}

func (n *nodeAPI) usage(ctx context.Context, in *batchInput) (*none, error) {
	if err := in.Body.Validate(); err != nil {
		return nil, fault.Wrap(fault.Invalid, "the batch is not one that a server makes", err)
	}
	oldest, newest := day.Today().Add(-maxAge), day.Today().Add(maxAhead)
	for _, r := range in.Body.Records {
		if r.Date < oldest || r.Date > newest {
			return nil, fault.New(fault.Invalid, "a record's date is too far from today").
				WithHint("compare the clocks of the server and of the control plane")
		}
	}
	id, _ := ctx.Value(serverKey{}).(string) // set by the gate
	return nil, n.Usage.AcceptUsage(ctx, id, in.Body)
}

// bundle serves one file of the bundle. The name must have the form of a
// bundle's file and the file must be a regular one inside the directory, however
// links are laid.
func (n *nodeAPI) bundle(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("path")
	missing := fault.New(fault.NotFound, "the bundle has no such file")
	if !bundleForm.MatchString(name) {
		return missing
	}
	root, err := os.OpenRoot(n.Bundles)
	if err != nil {
		return fault.Wrap(fault.Unavailable, "there is no bundle yet", err)
	}
	defer root.Close()
	info, err := root.Lstat(name)
	if err != nil || !info.Mode().IsRegular() {
		return missing
	}
	f, err := root.Open(name)
	if err != nil {
		return missing
	}
	defer f.Close()
	// The server's deadline is meant for small answers; a slow line gets 64 KiB/s.
	if d, ok := w.(interface{ SetWriteDeadline(time.Time) error }); ok {
		_ = d.SetWriteDeadline(time.Now().Add(time.Minute + time.Duration(info.Size()>>16)*time.Second))
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", time.Time{}, f) // no time: nothing tells when a bundle was made
	return nil
}
