package api

import (
	"bytes"
	"context"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/netip"
	"path"
	"strings"
	"time"

	"lethe/account"
	"lethe/event"
	"lethe/fault"
	"lethe/private"
)

// guard is the outermost handler. It is the only code that sees a peer's
// address.
type guard struct {
	next    http.Handler
	limiter Limiter                      // nil: no limit
	purpose func(r *http.Request) string // what the limiter is asked about
	body    int64                        // largest body in bytes
	part    event.Part
	log     *event.Logger
}

// passed are the request fields that operations may see; all others, among
// them every field in which a proxy could name the client, are dropped.
var passed = [...]string{"Content-Type", "If-None-Match", "Range", "If-Range"}

func (g *guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	out := &writer{to: w, tokens: g.part == event.AppAPI}
	harden(w.Header())
	defer g.recover(out)
	if g.limiter != nil && !g.allowed(r) {
		refusal(http.StatusTooManyRequests, fault.TooMany, "too many requests from this network").write(out)
		return
	}
	ctx, cancel := context.WithTimeout(quiet{r.Context()}, MaxHandling)
	defer cancel()
	body, p := g.read(r)
	defer clear(body)
	if p != nil {
		// Whatever is left of the body is not read.
		w.Header().Set("Connection", "close")
		p.write(out)
		return
	}
	g.next.ServeHTTP(out, anonymous(ctx, r, body))
}

// allowed asks the limiter. A peer whose address is unknown is not allowed.
func (g *guard) allowed(r *http.Request) bool {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return false
	}
	addr := peer.Addr().Unmap().WithZone("")
	if addr.Is6() {
		addr = netip.PrefixFrom(addr, 64).Masked().Addr()
	}
	return g.limiter.Allow(g.purpose(r), addr)
}

// read returns the request's body, or why the request is refused.
func (g *guard) read(r *http.Request) ([]byte, *Problem) {
	switch {
	case path.Clean("/"+r.URL.Path) != r.URL.Path:
		return nil, statusProblem(http.StatusNotFound) // http.ServeMux would redirect
	case r.URL.RawQuery != "":
		return nil, refusal(http.StatusUnprocessableEntity, fault.Invalid, "no call takes query parameters")
	case r.ContentLength > g.body:
		return nil, statusProblem(http.StatusRequestEntityTooLarge)
	case r.ContentLength == 0:
		return nil, nil
	}
	kind, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "application/json" || (params["charset"] != "" && !strings.EqualFold(params["charset"], "utf-8")) {
		return nil, statusProblem(http.StatusUnsupportedMediaType)
	}
	r.Header.Set("Content-Type", kind)
	var b bytes.Buffer
	b.Grow(int(max(r.ContentLength, 0)) + bytes.MinRead) // one buffer, so that wiping it leaves no copy
	_, err = b.ReadFrom(io.LimitReader(r.Body, g.body+1))
	body := b.Bytes()
	var late interface{ Timeout() bool }
	switch {
	case errors.As(err, &late) && late.Timeout():
		return body, statusProblem(http.StatusRequestTimeout)
	case err != nil:
		return body, statusProblem(http.StatusBadRequest)
	case int64(len(body)) > g.body:
		return body, statusProblem(http.StatusRequestEntityTooLarge)
	}
	return body, nil
}

// anonymous returns a request that says what is asked and not by whom.
func anonymous(ctx context.Context, r *http.Request, body []byte) *http.Request {
	header := http.Header{}
	for _, name := range passed {
		if v := r.Header.Get(name); v != "" {
			header.Set(name, v)
		}
	}
	if token, ok := bearer(r.Header.Values("Authorization")); ok {
		ctx = context.WithValue(ctx, tokenKey{}, private.Of(token))
	}
	bare := &http.Request{
		Method: r.Method, URL: r.URL, Proto: r.Proto, ProtoMajor: r.ProtoMajor, ProtoMinor: r.ProtoMinor,
		Header: header, Host: r.Host, TLS: r.TLS,
		Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)),
	}
	return bare.WithContext(ctx)
}

// bearer returns the token of an Authorization field (RFC 6750, 2.1).
func bearer(fields []string) (string, bool) {
	if len(fields) != 1 {
		return "", false
	}
	scheme, token, ok := strings.Cut(fields[0], " ")
	ok = ok && strings.EqualFold(scheme, "Bearer") && token != "" && len(token) <= 128
	for _, c := range []byte(token) {
		ok = ok && c > ' ' && c < 0x7f
	}
	return token, ok
}

type tokenKey struct{}

// token returns the bearer token of a request, or Unauthenticated.
func token(ctx context.Context) (account.Token, error) {
	t, ok := ctx.Value(tokenKey{}).(account.Token)
	if !ok {
		return t, fault.New(fault.Unauthenticated, "no token was sent").WithHint("log in first")
	}
	return t, nil
}

// quiet is a context without what net/http keeps in it: the server, and the
// address that the client connected to.
type quiet struct{ context.Context }

func (q quiet) Value(key any) any {
	if key == http.ServerContextKey || key == http.LocalAddrContextKey {
		return nil
	}
	return q.Context.Value(key)
}

// harden sets the fields of every response. A nil Date keeps net/http from
// setting one.
func harden(h http.Header) {
	h["Date"] = nil
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Strict-Transport-Security", "max-age=63072000")
	h.Set("X-Content-Type-Options", "nosniff")
}

// recover turns a panic into an internal failure. What was panicked with is
// not looked at. A response that has begun is cut off, so that nobody takes
// it for complete.
func (g *guard) recover(out *writer) {
	if recover() == nil {
		return
	}
	g.log.Log(event.Trouble{Part: g.part, Kind: fault.Internal})
	if out.wrote {
		panic(http.ErrAbortHandler)
	}
	problem(nil).write(out)
}

// writer is the response as operations see it: it has none of the optional
// methods by which the connection, and so the peer's address, can be had. An
// error status that comes without a problem document gets one.
type writer struct {
	to       http.ResponseWriter
	tokens   bool // callers authenticate by token
	wrote    bool
	replaced bool // the body is a problem; what the operation writes is dropped
}

func (w *writer) Header() http.Header { return w.to.Header() }

func (w *writer) WriteHeader(status int) {
	switch {
	case w.wrote:
	case status >= 400 && w.Header().Get("Content-Type") != problemType:
		statusProblem(status).write(w)
		w.replaced = true
	default:
		switch status {
		case http.StatusUnauthorized:
			if w.tokens {
				w.Header().Set("WWW-Authenticate", "Bearer") // RFC 9110, 11.6.1
			}
		case http.StatusTooManyRequests:
			w.Header().Set("Retry-After", "60")
		}
		w.wrote = true
		w.to.WriteHeader(status)
	}
}

func (w *writer) Write(p []byte) (int, error) {
	if w.replaced {
		return len(p), nil
	}
	if !w.wrote {
		w.WriteHeader(http.StatusOK)
	}
	return w.to.Write(p)
}

// SetWriteDeadline gives a large response more time.
func (w *writer) SetWriteDeadline(t time.Time) error {
	return http.NewResponseController(w.to).SetWriteDeadline(t)
}
