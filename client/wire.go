package client

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"

	"lethe/account"
	"lethe/fault"
	"lethe/location"
	"lethe/private"
)

// The helper protocol: one JSON object per line over a Unix stream socket. The app sends one
// [Request]; the helper answers with one [Reply], or to watch with one Reply for every change until
// the app hangs up.

// WireVersion is the version of the helper protocol; both sides refuse any other.
const WireVersion = 1

// MaxLine is the longest line of the helper protocol in bytes.
const MaxLine = 1 << 20

// Op is what an app asks of the helper.
type Op string

// The operations.
const (
	OpStatus     Op = "status"     // say the status once
	OpWatch      Op = "watch"      // say the status now and at every change
	OpConnect    Op = "connect"    // raise the lock and start connecting; answers at once
	OpDisconnect Op = "disconnect" // take tunnel and lock down; answers when it is done
)

// Auto leaves a choice to the helper: it races what is left and takes the first that comes up.
const Auto = "auto"

// Protocol is the VPN protocol that a customer wants.
type Protocol string

// The protocols, beside [Auto].
const (
	OpenVPN Protocol = "openvpn"
	IKEv2   Protocol = "ikev2" // over UDP only
)

// Transport is how a customer wants packets carried.
type Transport string

// The transports, beside [Auto].
const (
	UDP Transport = "udp"
	TCP Transport = "tcp"
)

// Target is where to connect and as whom.
type Target struct {
	Location   location.Location
	Servers    []location.Server // of that location, in the order to try
	Protocol   Protocol          // empty for Auto
	Transport  Transport
	Credential account.Credential
	Slot       *Slot // to keep while connected; nil for none
}

// Request is one line from app to helper. Target is set for OpConnect only.
type Request struct {
	Op     Op
	Target *Target
}

// Status is what the helper says of itself.
type Status struct {
	State     State        `json:"state"`              // see State
	Lock      bool         `json:"lock"`               // the network lock is up
	Location  string       `json:"location,omitempty"` // code of the location asked for
	Country   string       `json:"country,omitempty"`  // its country's code
	City      string       `json:"city,omitempty"`
	Server    string       `json:"server,omitempty"`    // id of the server in use or being tried
	Protocol  Protocol     `json:"protocol,omitempty"`  // of the present tunnel
	Transport Transport    `json:"transport,omitempty"` // likewise
	IPv6      bool         `json:"ipv6"`                // IPv6 goes through the tunnel; when false it is blocked
	Addresses []netip.Addr `json:"addresses,omitempty"` // this machine's inside the tunnel
	Attempts  int          `json:"attempts"`            // servers tried since the last tunnel
	Seconds   int64        `json:"seconds"`             // age of the present tunnel; only this machine knows it
	Received  uint64       `json:"received"`            // bytes through the present tunnel
	Sent      uint64       `json:"sent"`
	Slot      SlotState    `json:"slot,omitempty"`    // what the service last said to a heartbeat of this device's slot
	Problem   *Problem     `json:"problem,omitempty"` // why there is no tunnel, when that is known
}

// Problem is an error as it crosses the socket and as --json prints it.
type Problem struct {
	Kind string `json:"kind"` // name of a fault.Kind
	Text string `json:"text"`
	Hint string `json:"hint,omitempty"`
}

// ProblemOf returns err in the form that may be shown. Of an error that nobody classified nothing
// is shown but that there was one.
func ProblemOf(err error) *Problem {
	var e *fault.Error
	if !errors.As(err, &e) {
		e = fault.New(fault.Internal, "internal error")
	}
	return &Problem{Kind: e.Kind.String(), Text: e.Text, Hint: e.Hint}
}

// Err returns p as an error again.
func (p *Problem) Err() error {
	return fault.New(fault.Parse(p.Kind), p.Text).WithHint(p.Hint)
}

// Reply is one line from helper to app: a status or a problem.
type Reply struct {
	Version int      `json:"v"`
	Status  *Status  `json:"status,omitempty"`
	Error   *Problem `json:"error,omitempty"`
}

type wireTarget struct {
	Location  location.Location `json:"location"`
	Servers   []location.Server `json:"servers"`
	Protocol  Protocol          `json:"protocol,omitempty"`
	Transport Transport         `json:"transport"`
	Username  string            `json:"username"`
	Password  string            `json:"password"`
	Slot      *wireSlot         `json:"slot,omitempty"`
}

type wireRequest struct {
	Version int         `json:"v"`
	Op      Op          `json:"op"`
	Target  *wireTarget `json:"target,omitempty"`
}

// Encode returns the line that stands for r, with its line feed. It holds the password when r has
// a target.
func (r Request) Encode() ([]byte, error) {
	w := wireRequest{Version: WireVersion, Op: r.Op}
	if t := r.Target; t != nil {
		w.Target = &wireTarget{t.Location, t.Servers, t.Protocol, t.Transport, t.Credential.Username.Reveal(), t.Credential.Password.Reveal(), t.Slot.wire()}
	}
	b, err := json.Marshal(w)
	return append(b, '\n'), err
}

// ParseRequest reads a line from an app. It trusts nothing: certificates and keys are taken apart
// and put together again, so that what reaches OpenVPN's configuration is what was checked. All
// errors are fault.Invalid and quote nothing of the line.
func ParseRequest(line []byte) (Request, error) {
	var w wireRequest
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&w); err != nil || d.More() {
		return Request{}, fault.Wrap(fault.Invalid, "helper: not a request", err)
	}
	if w.Version != WireVersion {
		return Request{}, fault.New(fault.Invalid, fmt.Sprintf("helper: protocol version %d, want %d", w.Version, WireVersion)).
			WithHint("app and helper are of different versions: restart the helper")
	}
	r := Request{Op: w.Op}
	switch {
	case w.Op != OpConnect && w.Op != OpStatus && w.Op != OpWatch && w.Op != OpDisconnect:
		return Request{}, fault.New(fault.Invalid, "helper: no such operation")
	case (w.Op == OpConnect) != (w.Target != nil):
		return Request{}, fault.New(fault.Invalid, "helper: connect and nothing else has a target")
	case w.Target != nil:
		t, err := w.Target.check()
		if err != nil {
			return Request{}, fault.Wrap(fault.Invalid, "helper: the target is not valid", err)
		}
		r.Target = t
	}
	return r, nil
}

const maxServers = 64

func (w *wireTarget) check() (*Target, error) {
	if len(w.Servers) == 0 || len(w.Servers) > maxServers {
		return nil, fmt.Errorf("%d servers, want 1 to %d", len(w.Servers), maxServers)
	}
	d := location.Directory{Locations: []location.Location{w.Location}, Servers: w.Servers}
	if err := d.Validate(); err != nil {
		return nil, err
	}
	for _, s := range []string{w.Username, w.Password} {
		if !credentialForm.MatchString(s) {
			return nil, errors.New("user name and password: want 1 to 128 printable ASCII characters")
		}
	}
	if !w.Protocol.known() || !w.Transport.known() {
		return nil, errors.New("no such protocol or transport")
	}
	t := &Target{Location: w.Location, Protocol: w.Protocol, Transport: w.Transport, Credential: account.Credential{
		Username: private.Of(w.Username), Password: private.Of(w.Password),
	}}
	var err error
	if t.Slot, err = w.Slot.check(); err != nil {
		return nil, err
	}
	for _, s := range w.Servers {
		ca, err := cleanCA(s.CA)
		if err != nil {
			return nil, err
		}
		key := staticKey.FindStringSubmatch(strings.ReplaceAll(s.TLSCrypt, "\r", ""))
		if key == nil {
			return nil, errors.New("tls-crypt: not an OpenVPN static key")
		}
		s.CA, s.TLSCrypt = ca, key[1]
		t.Servers = append(t.Servers, s)
	}
	if len(routesTo(t)) == 0 {
		return nil, fmt.Errorf("no server speaks %q over transport %q", w.Protocol, w.Transport)
	}
	return t, nil
}

var (
	credentialForm = regexp.MustCompile(`^[ -~]{1,128}$`)
	staticKey      = regexp.MustCompile(`^(?:#[^\n]*\n|\s)*(-----BEGIN OpenVPN Static key V1-----\n(?:[0-9a-fA-F]{32}\n){16}-----END OpenVPN Static key V1-----)\s*$`)
)

// cleanCA returns the certificates of a PEM text and nothing else of it.
func cleanCA(text string) (string, error) {
	var out strings.Builder
	for rest := []byte(text); len(bytes.TrimSpace(rest)) > 0; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil || b.Type != "CERTIFICATE" {
			return "", errors.New("ca: not a PEM certificate")
		}
		if _, err := x509.ParseCertificate(b.Bytes); err != nil {
			return "", errors.New("ca: not a certificate")
		}
		out.Write(pem.EncodeToMemory(&pem.Block{Type: b.Type, Bytes: b.Bytes}))
	}
	if out.Len() == 0 {
		return "", errors.New("ca: no certificate")
	}
	return out.String(), nil
}

func (p Protocol) known() bool { return p == "" || p == Auto || p == OpenVPN || p == IKEv2 }

func (t Transport) known() bool { return t == Auto || t == UDP || t == TCP }

// wants reports whether t includes a kind of tunnel.
func (t *Target) wants(k kind) bool {
	return (t.Protocol == "" || t.Protocol == Auto || t.Protocol == k.protocol) && (t.Transport == Auto || t.Transport == k.transport)
}
