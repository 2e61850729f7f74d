// Package client calls the app API (see package api and doc/openapi.json). It
// is what the app, lethe, speaks to the control plane with.
//
// A [Client] holds no state of a customer: the token is an argument of every
// method that needs one. Every failure is a fault.Error; its text and hint are
// the service's own where the service could be asked, made safe to print. What
// was sent (passwords, tokens, addresses) is in no error text.
package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"lethe/account"
	"lethe/fault"
	"lethe/location"
	"lethe/private"
)

// Config says where the service is and how to reach it.
type Config struct {
	// URL is the service's address: https, a host, an optional port, nothing else.
	URL string
	// TLS is copied; nil means the system's roots. Whatever it says, TLS is at
	// least 1.3, certificates are verified and no session is resumed.
	TLS *tls.Config
	// Dial connects; nil means the system's way. An app with a network lock
	// dials through it.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Timeout bounds each call beside its context; 0 means 15 s.
	Timeout time.Duration
}

// Client calls the app API. It is safe for concurrent use.
type Client struct {
	base    string
	http    *http.Client
	timeout time.Duration
}

// Largest answers that are read, in bytes.
const (
	maxAnswer    = 64 << 10
	maxDirectory = 32 << 20
)

// New returns a client. Proxies of the environment are not used: who calls the
// service is nobody else's business. An URL that is not as [Config] says is
// Invalid.
func New(c Config) (*Client, error) {
	u, err := url.Parse(c.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, fault.New(fault.Invalid, "the service's address must be of the form https://host or https://host:port")
	}
	conf := c.TLS.Clone() // of nil: nil
	if conf == nil {
		conf = &tls.Config{}
	}
	conf.MinVersion, conf.InsecureSkipVerify, conf.SessionTicketsDisabled, conf.ClientSessionCache = tls.VersionTLS13, false, true, nil
	if c.Timeout == 0 {
		c.Timeout = 15 * time.Second
	}
	if c.Dial == nil {
		c.Dial = (&net.Dialer{Timeout: 5 * time.Second}).DialContext
	}
	return &Client{
		base:    "https://" + u.Host,
		timeout: c.Timeout,
		http: &http.Client{
			Transport: &http.Transport{
				DialContext: c.Dial, TLSClientConfig: conf, TLSHandshakeTimeout: 10 * time.Second,
				MaxIdleConnsPerHost: 2, IdleConnTimeout: 30 * time.Second, MaxResponseHeaderBytes: 16 << 10,
				DisableCompression: true,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// SignUp makes an account. Conflict when there is one with that address.
func (c *Client) SignUp(ctx context.Context, email string, password private.Value[string]) error {
	type signUp struct {
		Email    string `json:"email"`
		Password string `json:"password"`
	}
	return c.call(ctx, "POST", "/v1/accounts", nil, signUp{email, password.Reveal()}, nil)
}

// Login returns a new token. Unauthenticated when the address or the password
// is wrong.
func (c *Client) Login(ctx context.Context, email string, password private.Value[string], app account.App) (account.Token, error) {
	type login struct {
		Email    string      `json:"email"`
		Password string      `json:"password"`
		App      account.App `json:"app"`
	}
	var out struct {
		Token string `json:"token"`
	}
	err := c.call(ctx, "POST", "/v1/tokens", nil, login{email, password.Reveal(), app}, &out)
	if err == nil && out.Token == "" {
		err = strange("an answer without a token")
	}
	return private.Of(out.Token), err
}

// Logout ends a token.
func (c *Client) Logout(ctx context.Context, token account.Token) error {
	return c.call(ctx, "DELETE", "/v1/tokens/current", &token, nil, nil)
}

// Licence returns what is paid for.
func (c *Client) Licence(ctx context.Context, token account.Token) (l account.Licence, err error) {
	err = c.call(ctx, "GET", "/v1/licence", &token, nil, &l)
	return l, err
}

// Credential returns the VPN credential.
func (c *Client) Credential(ctx context.Context, token account.Token) (account.Credential, error) {
	return c.credential(ctx, "GET", token)
}

// ReplaceCredential makes a new VPN credential and returns it; the old one
// ends.
func (c *Client) ReplaceCredential(ctx context.Context, token account.Token) (account.Credential, error) {
	return c.credential(ctx, "POST", token)
}

func (c *Client) credential(ctx context.Context, method string, token account.Token) (account.Credential, error) {
	var out struct {
		Username string `json:"username"`
		Password string `json:"password"`
	}
	err := c.call(ctx, method, "/v1/credentials", &token, nil, &out)
	if err == nil && (out.Username == "" || out.Password == "") {
		err = strange("an answer without a credential")
	}
	return account.Credential{Username: private.Of(out.Username), Password: private.Of(out.Password)}, err
}

// TakeSlot takes a connection slot of the licence and returns its token. The
// slot old, which may be zero, ends in the same step. TooMany when as many
// devices are connected as the licence allows.
func (c *Client) TakeSlot(ctx context.Context, token account.Token, old private.Value[string]) (private.Value[string], error) {
	type take struct {
		InsteadOf string `json:"instead_of,omitempty"`
	}
	var out struct {
		Token string `json:"token"`
	}
	err := c.call(ctx, "POST", "/v1/slots", &token, take{old.Reveal()}, &out)
	if err == nil && out.Token == "" {
		err = strange("an answer without a slot")
	}
	return private.Of(out.Token), err
}

// Beat keeps a slot. TooMany when it had ended and as many other devices are
// connected as the licence allows.
func (c *Client) Beat(ctx context.Context, slot private.Value[string]) error {
	return c.call(ctx, "PUT", "/v1/slots/current", &slot, nil, nil)
}

// ReleaseSlot gives a slot back.
func (c *Client) ReleaseSlot(ctx context.Context, slot private.Value[string]) error {
	return c.call(ctx, "DELETE", "/v1/slots/current", &slot, nil, nil)
}

// Directory returns all locations and servers, validated, and the tag of their
// state. With the tag of a copy that is still right it returns changed ==
// false and no directory.
func (c *Client) Directory(ctx context.Context, token account.Token, have string) (d location.Directory, tag string, changed bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	a, err := c.exchange(ctx, request{method: "GET", path: "/v1/directory", token: &token, match: have, limit: maxDirectory})
	switch {
	case err != nil:
		return d, "", false, err
	case a.status == http.StatusNotModified && have != "":
		return d, have, false, nil
	}
	if err := a.decode(&d); err != nil {
		return location.Directory{}, "", false, err
	}
	if err := d.Validate(); err != nil {
		return location.Directory{}, "", false, fault.Wrap(fault.Untrusted, "the service sent a directory that makes no sense", err)
	}
	return d, a.tag, true, nil
}

// Profile is a file by which a system's own VPN client connects.
type Profile struct {
	Name      string // to save it as; a plain file name, never a path
	MediaType string
	Text      []byte
}

var fileForm = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{1,62}\.[a-z0-9]{2,16}$`)

// Profile returns the file of a server of a location in a format of package
// profile. NotFound, with a hint, when there is none.
func (c *Client) Profile(ctx context.Context, token account.Token, code, format string) (Profile, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	path := "/v1/locations/" + url.PathEscape(code) + "/profiles/" + url.PathEscape(format)
	a, err := c.exchange(ctx, request{method: "GET", path: path, token: &token, limit: maxAnswer})
	if err != nil {
		return Profile{}, err
	}
	_, params, err := mime.ParseMediaType(a.disposition)
	if err != nil || !fileForm.MatchString(params["filename"]) || len(a.body) == 0 {
		return Profile{}, strange("an answer that is not a file")
	}
	return Profile{params["filename"], a.mediaType, a.body}, nil
}

// Health returns nil when the service says that it works.
func (c *Client) Health(ctx context.Context) error {
	return c.call(ctx, "GET", "/v1/health", nil, nil, nil)
}

type request struct {
	method, path string
	token        *account.Token
	match        string // If-None-Match
	body         []byte
	limit        int64 // largest answer in bytes
}

// call makes one call of which only the answer's body matters.
func (c *Client) call(ctx context.Context, method, path string, token *account.Token, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	req := request{method: method, path: path, token: token, limit: maxAnswer}
	if in != nil {
		var b bytes.Buffer
		if err := json.NewEncoder(&b).Encode(in); err != nil {
			return fault.Wrap(fault.Invalid, "the request cannot be encoded", err)
		}
		req.body = b.Bytes()
		defer clear(req.body)
	}
	a, err := c.exchange(ctx, req)
	if err != nil || out == nil {
		return err
	}
	return a.decode(out)
}

// exchange sends a request and returns a good answer. A GET whose connection
// fails is sent once more: the service may just have been restarted.
func (c *Client) exchange(ctx context.Context, req request) (answer, error) {
	a, err := c.once(ctx, req)
	if err != nil && req.method == http.MethodGet && ctx.Err() == nil && !distrusted(err) && !errors.Is(err, errTooLong) {
		a, err = c.once(ctx, req)
	}
	if err != nil {
		return a, unreachable(ctx, err)
	}
	switch {
	case a.status == http.StatusOK, a.status == http.StatusCreated, a.status == http.StatusNoContent:
		return a, nil
	case a.status == http.StatusNotModified && req.match != "":
		return a, nil
	}
	return a, a.problem()
}

type answer struct {
	status      int
	mediaType   string
	disposition string // Content-Disposition
	tag         string
	body        []byte
}

var errTooLong = errors.New("answer too long")

// once sends a request once.
func (c *Client) once(ctx context.Context, req request) (answer, error) {
	r, err := http.NewRequestWithContext(ctx, req.method, c.base+req.path, bytes.NewReader(req.body))
	if err != nil {
		return answer{}, err
	}
	r.Header.Set("User-Agent", "") // none is sent
	r.Header.Set("Accept", "application/json, application/problem+json")
	if req.body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	if req.token != nil {
		r.Header.Set("Authorization", "Bearer "+req.token.Reveal())
	}
	if req.match != "" {
		r.Header.Set("If-None-Match", req.match)
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, req.limit+1))
	if err == nil && int64(len(body)) > req.limit {
		err = errTooLong
	}
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")) // an odd one is no known one
	return answer{status: resp.StatusCode, mediaType: kind, tag: resp.Header.Get("ETag"), body: body,
		disposition: resp.Header.Get("Content-Disposition")}, err
}

// decode reads the answer's body. Fields that this client does not know are
// left alone: the service may be newer.
func (a answer) decode(out any) error {
	if a.mediaType != "application/json" {
		return strange("an answer that is not JSON")
	}
	if err := json.Unmarshal(a.body, out); err != nil {
		return fault.Wrap(fault.Unavailable, "the service sent an answer that is not as agreed", err)
	}
	return nil
}

// problem returns the fault that a refusing answer describes. An answer that is
// no problem document did not come from the service.
func (a answer) problem() error {
	var p struct {
		Kind   string `json:"kind"`
		Detail string `json:"detail"`
		Hint   string `json:"hint"`
		Fields []struct {
			Name    string `json:"name"`
			Message string `json:"message"`
		} `json:"fields"`
	}
	if a.mediaType != "application/problem+json" || json.Unmarshal(a.body, &p) != nil || p.Detail == "" {
		return strange("an answer that is neither a result nor a refusal")
	}
	text := printable(p.Detail)
	for _, f := range p.Fields {
		text += "; " + printable(f.Name) + ": " + printable(f.Message)
		if len(text) > 600 {
			break
		}
	}
	return fault.New(fault.Parse(p.Kind), text).WithHint(printable(p.Hint))
}

// printable returns s as it may be shown on a terminal: without control and
// formatting characters, and not long.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsGraphic(r) || r == utf8.RuneError {
			return -1
		}
		return r
	}, s)
	if len(s) > 300 {
		s = strings.ToValidUTF8(s[:300], "") + "…"
	}
	return s
}

func strange(what string) error {
	return fault.New(fault.Unavailable, "the service sent "+what).
		WithHint("something between this machine and the service may be answering for it")
}

// distrusted reports whether err is a certificate that does not verify.
func distrusted(err error) bool {
	var cert *tls.CertificateVerificationError
	return errors.As(err, &cert)
}

// unreachable classifies a failed exchange. The cause holds addresses and stays
// inside.
func unreachable(ctx context.Context, err error) error {
	switch {
	case distrusted(err):
		return fault.Wrap(fault.Untrusted, "the service's certificate does not verify", err).
			WithHint("somebody may be answering in the service's place; check the clock and the network")
	case errors.Is(err, errTooLong):
		return fault.Wrap(fault.Unavailable, "the service's answer is too long", err)
	case errors.Is(ctx.Err(), context.Canceled):
		return fault.Wrap(fault.Unavailable, "the call was interrupted", err)
	case ctx.Err() != nil:
		return fault.Wrap(fault.Unavailable, "the service did not answer in time", err).WithHint("try again later")
	default:
		return fault.Wrap(fault.Unavailable, "the service cannot be reached", err).WithHint("check the network connection")
	}
}
