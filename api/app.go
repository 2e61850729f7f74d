package api

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/danielgtaylor/huma/v2"

	"lethe/account"
	"lethe/event"
	"lethe/fault"
	"lethe/location"
)

// AppDeps is what the app API stands on. All are required; a nil Limiter is a
// defect of the caller and lets nobody in.
type AppDeps struct {
	Accounts  Accounts
	Slots     Slots
	Directory Directory
	Limiter   Limiter
}

type signUpInput struct {
	Body struct {
		Email    string `json:"email" doc:"E-mail address, the name to log in with" example:"ada@example.org" minLength:"3" maxLength:"254" pattern:"^[^\\s@\\x00-\\x1f\\x7f]+@[^\\s@\\x00-\\x1f\\x7f]+$" patternDescription:"an e-mail address"`
		Password secret `json:"password" doc:"Password of the account; unrelated to the VPN password" minLength:"10" maxLength:"256"`
	} `nameHint:"SignUp"`
}

type loginInput struct {
	Body struct {
		Email    string      `json:"email" doc:"E-mail address of the account" example:"ada@example.org" maxLength:"254"`
		Password secret      `json:"password" doc:"Password of the account" maxLength:"256"`
		App      account.App `json:"app" doc:"The app that logs in; only the latest one is kept"`
	} `nameHint:"Login"`
}

type none struct{}

type tokenOutput struct {
	Body struct {
		Token string `json:"token" doc:"Bearer token for the Authorization field; a secret"`
	} `nameHint:"Token"`
}

type licenceOutput struct {
	Body account.Licence
}

type credentialOutput struct {
	Body struct {
		Username string `json:"username" doc:"VPN user name, random"`
		Password string `json:"password" doc:"VPN password, random; a secret"`
	} `nameHint:"Credential"`
}

type takeInput struct {
	Body struct {
		InsteadOf secret `json:"instead_of,omitempty" doc:"Token of the slot that this device had before, if any: it ends, so that a device never stands in its own way" maxLength:"128"`
	} `nameHint:"TakeSlot"`
}

type slotOutput struct {
	Body struct {
		Token string `json:"token" doc:"Bearer token of the slot for /v1/slots/current; a secret of this device, random, says nothing"`
	} `nameHint:"Slot"`
}

type directoryInput struct {
	Match string `header:"If-None-Match" doc:"ETag of the copy that the app has"`
}

type directoryOutput struct {
	Status       int
	ContentType  string `header:"Content-Type" hidden:"true"`
	CacheControl string `header:"Cache-Control" hidden:"true"`
	ETag         string `header:"ETag" doc:"Name of this state of the directory, the same for every customer"`
	Body         []byte
}

type healthOutput struct {
	Body struct {
		Status string `json:"status" doc:"Always ok: a service that is not well answers 503" enum:"ok"`
	} `nameHint:"Health"`
}

// appAPI implements the operations.
type appAPI struct {
	AppDeps
	cache directoryCache
}

// NewApp returns the app API. It logs failures (never requests) to log, which
// may be nil.
func NewApp(deps AppDeps, log *event.Logger) http.Handler {
	mux := http.NewServeMux()
	serveDocument(mux, "/v1/openapi", describeApp(mux, deps, log))
	if deps.Limiter == nil {
		deps.Limiter = nobody{}
	}
	return &guard{next: mux, limiter: deps.Limiter, purpose: appPurpose, body: MaxAppBody, part: event.AppAPI, log: log}
}

func appPurpose(r *http.Request) string {
	switch {
	case r.Method == http.MethodPost && r.URL.Path == "/v1/accounts":
		return PurposeSignUp
	case r.Method == http.MethodPost && r.URL.Path == "/v1/tokens":
		return PurposeLogin
	case r.URL.Path == "/v1/slots/current":
		return PurposeBeat
	}
	return PurposeApp
}

// describeApp registers the operations on mux and returns their description.
func describeApp(mux *http.ServeMux, deps AppDeps, log *event.Logger) *huma.OpenAPI {
	a := &appAPI{AppDeps: deps}
	d := newDocument(mux, "Lethe app API", "What a customer's app asks of the service.", event.AppAPI, log)
	d.api.OpenAPI().Components.SecuritySchemes = map[string]*huma.SecurityScheme{
		"token": {Type: "http", Scheme: "bearer", Description: "Token of POST /v1/tokens"},
		"slot":  {Type: "http", Scheme: "bearer", Description: "Token of POST /v1/slots"},
	}
	const open, customer, device = "", "token", "slot"
	add(d, operation(open, "signUp", "POST", "/v1/accounts", 201, "Make an account",
		fault.Conflict), a.signUp)
	add(d, operation(open, "login", "POST", "/v1/tokens", 200, "Log in: get a token and record which app is in use",
		fault.Unauthenticated), a.login)
	add(d, operation(customer, "logout", "DELETE", "/v1/tokens/current", 204, "Log out: end the token"), a.logout)
	add(d, operation(customer, "licence", "GET", "/v1/licence", 200, "Tell what is paid for"), a.licence)
	add(d, operation(customer, "credential", "GET", "/v1/credentials", 200, "Get the VPN credential",
		fault.Expired), a.credential)
	add(d, operation(customer, "replaceCredential", "POST", "/v1/credentials", 200, "Replace the VPN credential by a new one",
		fault.Expired), a.replaceCredential)
	add(d, operation(customer, "takeSlot", "POST", "/v1/slots", 201, "Take a connection slot of the licence, before connecting",
		fault.Denied, fault.Expired), a.takeSlot)
	add(d, operation(device, "beat", "PUT", "/v1/slots/current", 204,
		"Keep the slot: send this every 30 s through the tunnel; without it a slot is free after 90 s",
		fault.Denied, fault.Expired), a.beat)
	add(d, operation(device, "releaseSlot", "DELETE", "/v1/slots/current", 204, "Give the slot back, at disconnect"), a.releaseSlot)
	op := operation(customer, "directory", "GET", "/v1/directory", 200, "Get all locations and servers; the same for every customer")
	op.Responses = map[string]*huma.Response{
		"200": d.response("Every location and server", location.Directory{}),
		"304": {Description: "The copy named by If-None-Match is still right"},
	}
	add(d, op, a.directory)
	add(d, profileOperation(customer), a.profile)
	add(d, operation(open, "health", "GET", "/v1/health", 200, "Tell whether the service works"), a.health)
	return d.api.OpenAPI()
}

func (a *appAPI) signUp(ctx context.Context, in *signUpInput) (*none, error) {
	return nil, a.Accounts.SignUp(ctx, in.Body.Email, in.Body.Password.Value)
}

func (a *appAPI) login(ctx context.Context, in *loginInput) (*tokenOutput, error) {
	t, err := a.Accounts.Login(ctx, in.Body.Email, in.Body.Password.Value, in.Body.App)
	out := &tokenOutput{}
	out.Body.Token = t.Reveal()
	return out, err
}

func (a *appAPI) logout(ctx context.Context, _ *none) (*none, error) {
	t, err := token(ctx)
	if err != nil {
		return nil, err
	}
	return nil, a.Accounts.Logout(ctx, t)
}

// customer returns whose token the request carries.
func (a *appAPI) customer(ctx context.Context) (account.ID, error) {
	t, err := token(ctx)
	if err != nil {
		return "", err
	}
	id, err := a.Accounts.Authenticate(ctx, t)
	if err == nil && id == "" {
		err = fault.New(fault.Internal, "authenticate: no error and no account")
	}
	return id, err
}

func (a *appAPI) licence(ctx context.Context, _ *none) (*licenceOutput, error) {
	id, err := a.customer(ctx)
	if err != nil {
		return nil, err
	}
	l, err := a.Accounts.Licence(ctx, id)
	return &licenceOutput{Body: l}, err
}

func (a *appAPI) credential(ctx context.Context, _ *none) (*credentialOutput, error) {
	return a.credentialBy(ctx, a.Accounts.Credential)
}

func (a *appAPI) replaceCredential(ctx context.Context, _ *none) (*credentialOutput, error) {
	return a.credentialBy(ctx, a.Accounts.ReplaceCredential)
}

func (a *appAPI) credentialBy(ctx context.Context, get func(context.Context, account.ID) (account.Credential, error)) (*credentialOutput, error) {
	id, err := a.customer(ctx)
	if err != nil {
		return nil, err
	}
	c, err := get(ctx, id)
	out := &credentialOutput{}
	out.Body.Username, out.Body.Password = c.Username.Reveal(), c.Password.Reveal()
	return out, err
}

func (a *appAPI) takeSlot(ctx context.Context, in *takeInput) (*slotOutput, error) {
	id, err := a.customer(ctx)
	if err != nil {
		return nil, err
	}
	t, err := a.Slots.Take(ctx, id, in.Body.InsteadOf.Value)
	out := &slotOutput{}
	out.Body.Token = t.Reveal()
	return out, err
}

func (a *appAPI) beat(ctx context.Context, _ *none) (*none, error) {
	t, err := token(ctx)
	if err != nil {
		return nil, err
	}
	return nil, a.Slots.Beat(ctx, t)
}

func (a *appAPI) releaseSlot(ctx context.Context, _ *none) (*none, error) {
	t, err := token(ctx)
	if err != nil {
		return nil, err
	}
	return nil, a.Slots.Release(ctx, t)
}

func (a *appAPI) directory(ctx context.Context, in *directoryInput) (*directoryOutput, error) {
	if _, err := a.customer(ctx); err != nil {
		return nil, err
	}
	d, err := a.Directory.Directory(ctx)
	if err != nil {
		return nil, err
	}
	body, tag, err := a.cache.encode(d)
	out := &directoryOutput{Status: http.StatusOK, ContentType: "application/json", CacheControl: "private, no-cache", ETag: tag, Body: body}
	if matches(in.Match, tag) {
		out.Status, out.Body, out.ContentType = http.StatusNotModified, nil, ""
	}
	return out, err
}

func (a *appAPI) health(ctx context.Context, _ *none) (*healthOutput, error) {
	out := &healthOutput{}
	out.Body.Status = "ok"
	if _, err := a.Directory.Directory(ctx); err != nil {
		return nil, fault.Wrap(fault.Unavailable, "the service does not work at the moment", err)
	}
	return out, nil
}

// matches reports whether an If-None-Match field names the tag (RFC 9110,
// 13.1.2; comparison is weak).
func matches(field, tag string) bool {
	for part := range strings.SplitSeq(field, ",") {
		part = strings.TrimPrefix(strings.TrimSpace(part), "W/")
		if part == tag || part == "*" {
			return true
		}
	}
	return false
}

// directoryCache keeps the encoding of the last directory: comparing a
// directory with it costs a hundredth of encoding and hashing it.
type directoryCache struct {
	mu   sync.Mutex
	last location.Directory
	body []byte
	tag  string
}

func (c *directoryCache) encode(d location.Directory) (body []byte, tag string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.body != nil && sameDirectory(c.last, d) {
		return c.body, c.tag, nil
	}
	body, err = json.Marshal(complete(d))
	if err != nil {
		return nil, "", err
	}
	sum := sha256.Sum256(body)
	c.last, c.body, c.tag = d, body, `"`+base64.RawURLEncoding.EncodeToString(sum[:16])+`"`
	return c.body, c.tag, nil
}

// complete returns d with empty lists where it has none: the schema has no
// null.
func complete(d location.Directory) location.Directory {
	d.Locations, d.Servers = slices.Clone(d.Locations), slices.Clone(d.Servers)
	if d.Locations == nil {
		d.Locations = []location.Location{}
	}
	if d.Servers == nil {
		d.Servers = []location.Server{}
	}
	return d
}

func sameDirectory(a, b location.Directory) bool {
	return slices.Equal(a.Locations, b.Locations) && slices.EqualFunc(a.Servers, b.Servers, func(x, y location.Server) bool {
		return x.ID == y.ID && x.Location == y.Location && x.Enabled == y.Enabled && x.CA == y.CA && x.TLSCrypt == y.TLSCrypt &&
			slices.Equal(x.Addresses, y.Addresses) && slices.Equal(x.Endpoints, y.Endpoints)
	})
}
