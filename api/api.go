// Package api is what Lethe's control plane says over HTTP: the app API under
// /v1, which customers' apps call, and the node API under /node/v1, which VPN
// servers call with a client certificate.
//
// Start reading at [NewApp] and [NewNode]. Both describe their operations as Go
// types; the same types produce the OpenAPI 3.1 documents (served, and kept in
// doc/openapi.json and doc/openapi-node.json) and check every request.
//
// A request passes through
//
//	Server    TLS 1.3, timeouts, size of the header; its own log goes nowhere
//	guard     asks the Limiter about the peer's address and then forgets it: what follows
//	          sees no address, no forwarding header, no user agent, and the bearer token only
//	          as a private.Value; bounds the body; turns every failure into a problem
//	huma      decodes strictly and validates against the schema
//	operation app.go, profile.go, node.go: one call of an interface of this file
//
// There is no access log and no way to switch one on. A failure is told as a
// problem document (RFC 9457) with the fault's kind, text and hint; its cause
// never leaves the process. Responses carry no Date and no Server field: a
// saved response does not say when it was made.
package api

//go:generate go test . -run TestDocuments -update

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"net/netip"
	"time"

	"lethe/account"
	"lethe/event"
	"lethe/location"
	"lethe/private"
	"lethe/usage"
)

// Accounts is what the app API needs to know of customers. Its errors are of
// package fault; anything else is told as an internal failure.
type Accounts interface {
	// SignUp makes an account. Conflict when there is one with that e-mail address.
	SignUp(ctx context.Context, email string, password private.Value[string]) error
	// Login checks a password, records the app and returns a new token.
	Login(ctx context.Context, email string, password private.Value[string], app account.App) (account.Token, error)
	// Logout ends a token; one that is unknown or ended is Unauthenticated.
	Logout(ctx context.Context, token account.Token) error
	// Authenticate returns whose token it is, or Unauthenticated.
	Authenticate(ctx context.Context, token account.Token) (account.ID, error)
	// Licence returns the licence of an account.
	Licence(ctx context.Context, id account.ID) (account.Licence, error)
	// Credential returns the VPN credential of an account.
	Credential(ctx context.Context, id account.ID) (account.Credential, error)
	// ReplaceCredential makes a new VPN credential; the old one ends.
	ReplaceCredential(ctx context.Context, id account.ID) (account.Credential, error)
}

// Slots counts how many devices of a licence are connected at this moment. A
// slot's token is a secret of the device that holds it. Package slot has one.
type Slots interface {
	// Take gives a device of an account a slot and returns its token; the slot
	// old, which may be zero, ends in the same step. TooMany when as many
	// devices are connected as the licence allows, Denied or Expired when it
	// allows none.
	Take(ctx context.Context, id account.ID, old private.Value[string]) (private.Value[string], error)
	// Beat keeps a slot, or makes it again when it has ended and there is room.
	Beat(ctx context.Context, slot private.Value[string]) error
	// Release gives a slot back.
	Release(ctx context.Context, slot private.Value[string]) error
}

// Directory gives the locations and servers. The slices of what it returns are
// not written to afterwards by either side.
type Directory interface {
	Directory(ctx context.Context) (location.Directory, error)
}

// UsageSink takes a server's usage. It returns nil only when the batch is kept
// for good, and accepts a repeated delivery of the last batch without counting
// it again.
type UsageSink interface {
	AcceptUsage(ctx context.Context, server string, b usage.Batch) error
}

// Limiter decides whether a peer may make one more call of a purpose. It must
// not keep the address (a keyed hash in memory is what it is meant to keep) and
// be safe for concurrent use. For IPv6 it is asked about the first address of
// the peer's /64, which is what one subscriber has.
type Limiter interface {
	Allow(purpose string, addr netip.Addr) bool
}

// What a [Limiter] is asked about.
const (
	PurposeSignUp = "sign-up" // POST /v1/accounts
	PurposeLogin  = "login"   // POST /v1/tokens
	PurposeBeat   = "beat"    // PUT and DELETE /v1/slots/current, which come from VPN servers' addresses
	PurposeApp    = "app"     // every other request to the app API
)

// Limits of a request.
const (
	MaxAppBody  = 8 << 10          // bytes of a body that the app API reads
	MaxNodeBody = 1 << 20          // bytes of a body that the node API reads
	MaxHeader   = 8 << 10          // bytes of a header, to which net/http adds 4096
	MaxHandling = 20 * time.Second // time for handling one request, its body read and the answer unsent
)

// Server returns an HTTP server with every limit set, for
// [http.Server.ServeTLS] with empty file names. The configuration is copied;
// whatever it says, the copy refuses TLS below 1.3 and hands out no session
// tickets, which would tie a customer's calls together. Go's default key
// exchange, X25519MLKEM768 first, is left alone. Only HTTP/1.1 is spoken: a
// customer's app makes a handful of calls, and HTTP/2 is mostly ways to be
// flooded.
func Server(h http.Handler, conf *tls.Config, log *event.Logger) *http.Server {
	if log == nil {
		log = event.New(io.Discard)
	}
	conf = conf.Clone()
	conf.MinVersion = tls.VersionTLS13
	conf.SessionTicketsDisabled = true
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &http.Server{
		Handler:                      h,
		TLSConfig:                    conf,
		Protocols:                    protocols,
		DisableGeneralOptionsHandler: true,
		ReadHeaderTimeout:            5 * time.Second, // covers the TLS handshake too
		ReadTimeout:                  15 * time.Second,
		WriteTimeout:                 40 * time.Second,
		IdleTimeout:                  60 * time.Second,
		MaxHeaderBytes:               MaxHeader,
		ErrorLog:                     log.Stray(), // what net/http says holds addresses
	}
}

// AppTLS returns the TLS configuration of the app API.
func AppTLS(cert tls.Certificate) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}
}

// NodeTLS returns the TLS configuration of the node API: a client must have a
// certificate for client authentication that verifies against the pool.
func NodeTLS(cert tls.Certificate, clients *x509.CertPool) *tls.Config {
	conf := AppTLS(cert)
	conf.ClientAuth = tls.RequireAndVerifyClientCert
	conf.ClientCAs = clients
	return conf
}
