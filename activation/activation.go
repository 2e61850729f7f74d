// Package activation is the one port of a server that anybody may ask: in which state it is and what
// it runs. A server that has no secrets listens there and nowhere else; later, the
// activator proves over this port that the machine is the right one and hands the secrets over.
//
//	GET /v1/state -> 200, a [State] as JSON
//
// On a machine with a TPM an activator attests it, and grants secrets, over the paths of package attest.
// Everything else is refused with a status and no body. The port stays when the server
// is active: certificates are renewed over it, and a prober sees the difference. What it says
// is the same for everybody and never about a customer, and it keeps and logs nothing of who asked.
//
// TLS 1.3 only, with a self-signed certificate over a key that is made when the process
// starts and that never leaves its memory, not even to the service manager: what a peer
// proved or was told over a connection is bound to this instance of the agent. Whoever pins the key notices a
// restart and begins anew; nothing that was recorded or handed to another instance is of use here. The certificate
// says nothing by itself (its dates and its name are constants): evidence names the key.
//
// Bounds: [Slots] connections, [SlotsEach] of one source (an IPv4 address or an IPv6 /64), one request and
// [lifetime] for each. When there are more, the oldest ends: whoever floods the
// port from many places ends mostly connections of its own, and a peer that does its
// work in a second or two gets through. How many come at all the firewall limits (package firewall).
//
// In programs built for the lab (tag lab) the port takes secrets from anybody, once:
//
//	POST /v1/secrets, body as package secret writes it -> 204; 400 and the reason; 409 when the server has secrets
//
// A program that ships has no such code: handover.go is what it has in its place.
package activation

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"lethe/event"
	"lethe/secret"
)

// Phase is where a server is in its life.
type Phase string

// The phases.
const (
	Awaiting Phase = "awaiting-activation" // it has no secrets, and its firewall is closed but for this port
	Active   Phase = "active"              // it has its secrets; whether it takes customers is another question
)

// State is what the port says.
type State struct {
	Phase   Phase           `json:"state"`
	Release Release         `json:"release"`
	Sealed  json.RawMessage `json:"sealed,omitempty"`  // lethe-seal's report; absent outside the image
	Drivers *Drivers        `json:"drivers,omitempty"` // programs built for the lab only, once the drivers run
}

// Drivers says what carries customers' packets.
type Drivers struct {
	OpenVPN string `json:"openvpn"` // "ovpn-dco": the kernel; "tun": OpenVPN itself
	IKEv2   string `json:"ikev2"`   // "xfrm": the kernel; "libipsec": charon itself
}

const (
	// Slots and SlotsEach bound the connections, and those of one source.
	Slots     = 128
	SlotsEach = 16
	// lifetime bounds a connection, handshake and answer included.
	lifetime = 10 * time.Second
	// maxHeader bounds a request's head in bytes; net/http adds 4096.
	maxHeader = 4096
	// maxSealed bounds lethe-seal's report in bytes.
	maxSealed = 1 << 16
)

// Server answers on the port. Its methods are safe for concurrent use.
type Server struct {
	tls    *tls.Config
	log    *event.Logger
	handed chan *Handed // capacity 1

	renewed  chan *Handed // capacity 1
	attester http.Handler // nil where nobody can attest the machine

	mu    sync.Mutex
	state State
}

// Handed is what a server was told.
type Handed struct {
	Secrets *secret.Node
	Kept    *os.File // the same for the next instance of the agent, see [secret.Keep]; the receiver closes it
	Head    []byte   // of the activator's record, to be kept beside the secrets; nil when nobody attested the machine
}

// New makes the key and reads what there is to say: release, the os-release(5) file of
// the system, and sealed, lethe-seal's report. A report that is not there is
// none; one that cannot be read is an error.
func New(release, sealed string, log *event.Logger) (*Server, error) {
	s := &Server{log: log, handed: make(chan *Handed, 1), renewed: make(chan *Handed, 1), state: State{Phase: Awaiting, Release: releaseOf(release)}}
	report, err := readSealed(sealed)
	if err != nil {
		return nil, err
	}
	s.state.Sealed = report
	cert, err := newCertificate()
	if err != nil {
		return nil, fmt.Errorf("activation: make the boot key: %w", err)
	}
	s.tls = &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert},
		// No state of one connection in another, and nothing but HTTP/1.1.
		SessionTicketsDisabled: true, NextProtos: []string{"http/1.1"},
	}
	return s, nil
}

func readSealed(path string) (json.RawMessage, error) {
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("activation: report of lethe-seal: %w", err)
	case len(b) > maxSealed || !json.Valid(b):
		return nil, fmt.Errorf("activation: report of lethe-seal: want JSON of at most %d bytes", maxSealed)
	}
	return b, nil
}

// The dates of the certificate say nothing, not even what the server takes for the time.
var (
	notBefore = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	notAfter  = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC) // RFC 5280, section 4.1.2.5: no end
)

// newCertificate makes a key and a certificate of its own signature.
func newCertificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "lethe"},
		NotBefore: notBefore, NotAfter: notAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// Listen listens on a TCP port of every address, IPv4 and IPv6; the firewall leaves the uplinks'.
func Listen(port uint16) (net.Listener, error) {
	l, err := net.Listen("tcp", net.JoinHostPort("", strconv.Itoa(int(port))))
	if err != nil {
		return nil, fmt.Errorf("activation: listen: %w", err)
	}
	return l, nil
}

// Serve answers on l until ctx ends, and closes it. It returns nil then, else what is wrong with l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	hs := &http.Server{
		Handler: http.HandlerFunc(s.answer), ErrorLog: s.log.Stray(),
		ReadTimeout: lifetime, WriteTimeout: lifetime, MaxHeaderBytes: maxHeader,
		DisableGeneralOptionsHandler: true,
	}
	hs.SetKeepAlivesEnabled(false)
	stop := context.AfterFunc(ctx, func() { _ = hs.Close() })
	defer stop()
	err := hs.Serve(&gate{Listener: l, tls: s.tls})
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("activation: serve: %w", err)
}

// answer answers one request.
func (s *Server) answer(w http.ResponseWriter, r *http.Request) {
	w.Header()["Date"] = nil // what the server takes for the time is nobody's business
	switch {
	case s.attest(w, r):
	case s.handover(w, r):
	case r.RequestURI != "/v1/state":
		w.WriteHeader(http.StatusNotFound)
	case r.Method != http.MethodGet:
		w.Header().Set("Allow", http.MethodGet)
		w.WriteHeader(http.StatusMethodNotAllowed)
	case r.ContentLength != 0:
		w.WriteHeader(http.StatusBadRequest)
	default:
		body, err := json.Marshal(s.State())
		if err != nil {
			panic("activation: internal error: a state that is no JSON")
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		_, _ = w.Write(body) // a peer may go away
	}
}

// State returns what the port says now.
func (s *Server) State() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

// Activate makes the state [Active] and reports whether it was not before. The caller who
// is told yes is the one whose secrets count.
func (s *Server) Activate() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	first := s.state.Phase == Awaiting
	s.state.Phase = Active
	return first
}

// Wait waits until the server has been handed its secrets. The error is that of ctx.
func (s *Server) Wait(ctx context.Context) (*Handed, error) {
	select {
	case h := <-s.handed:
		return h, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
