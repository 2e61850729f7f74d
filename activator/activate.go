package activator

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"

	"lethe/attest"
	"lethe/fault"
	"lethe/private"
	"lethe/secret"
)

// Timeouts of talking to a server. A TPM may take seconds for a quote.
const (
	dialTimeout   = 5 * time.Second
	answerTimeout = 30 * time.Second
)

// link is a connection to a server. TLS gives it a name, the key that the server shows; who that is, is
// for the attestation to say.
type link struct {
	client  *http.Client
	base    string
	channel *attest.Channel
}

func errUnreachable(err error) error {
	return fault.Wrap(fault.Unavailable, "the server does not answer", err).WithHint("it answers while its image runs, and its firewall lets this machine in")
}

// dial connects. All that is asked afterwards goes to the same key, or fails.
func dial(address netip.AddrPort) *link {
	l := &link{base: "https://" + address.String()}
	l.client = &http.Client{
		Timeout: answerTimeout,
		Transport: &http.Transport{
			DialContext: (&net.Dialer{Timeout: dialTimeout}).DialContext, TLSHandshakeTimeout: dialTimeout, MaxConnsPerHost: 1,
			MaxResponseHeaderBytes: 8 << 10,
			TLSClientConfig: &tls.Config{
				MinVersion: tls.VersionTLS13,
				// There is nobody who could sign for a server's key of this boot: its TPM will.
				InsecureSkipVerify: true,
				VerifyConnection: func(s tls.ConnectionState) error {
					c := attest.ChannelOf(s.PeerCertificates[0])
					if l.channel != nil && *l.channel != c {
						return errors.New("the server's key has changed")
					}
					l.channel = &c
					return nil
				},
			},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return l
}

func (l *link) close() { l.client.CloseIdleConnections() }

// call sends a message and returns the answer.
func (l *link) call(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, method, l.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, errUnreachable(err)
	}
	r.Header.Set("Content-Type", attest.MediaType)
	rsp, err := l.client.Do(r)
	if err != nil {
		return nil, errUnreachable(err)
	}
	defer rsp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(rsp.Body, attest.MaxMessage+1))
	if err != nil {
		return nil, errUnreachable(err)
	}
	switch rsp.StatusCode {
	case http.StatusOK:
		return b, nil
	case http.StatusConflict:
		return nil, fault.New(fault.Conflict, "the server refuses this activator: it has seen another one, or a later record").
			WithHint("restore the newest record, or start the server again")
	}
	return nil, fault.New(fault.Unavailable, "the server answers "+rsp.Status)
}

// Outcome is what one visit came to.
type Outcome struct {
	Server  string    `json:"server"`
	Version uint64    `json:"version"` // of the release that it runs
	Until   time.Time `json:"until"`   // when its certificates end
}

// Enrol asks the machine at an address which TPM it has, lets the TPM prove that, and writes down that it was
// seen. The log is the firmware's: what a profile is made from. An operator must confirm the
// server before anything else becomes of it.
func (a *Activator) Enrol(ctx context.Context, id string, e Enrolment, now time.Time) (*Server, []byte, error) {
	l := dial(e.Address)
	defer l.close()
	identity, err := l.call(ctx, http.MethodGet, attest.PathIdentity, nil)
	if err != nil {
		return nil, nil, err
	}
	var v *attest.Verifier
	if err := a.Store.View(func(s *State) error { v = a.verifier(s, now); return nil }); err != nil {
		return nil, nil, err
	}
	session, err := v.Identify(nil, *l.channel, identity)
	if err != nil {
		return nil, nil, err
	}
	evidence, err := l.call(ctx, http.MethodPost, attest.PathEvidence, session.Challenge())
	if err != nil {
		return nil, nil, err
	}
	log, err := session.Genuine(evidence)
	if err != nil {
		return nil, nil, err
	}
	var says attest.Identity
	if err := attest.Decode(identity, &says); err != nil {
		return nil, nil, err
	}
	e.EK, e.EKCertificate = attest.Digest(says.EK), says.EKCertificate
	if e.Profile == "" { // the log is for making one
		return &Server{ID: id, Enrolment: e}, log, nil
	}
	err = a.Store.Append(now, func(*State) (*Record, error) {
		return &Record{Kind: Enrolled, Server: id, Enrol: &e}, nil
	})
	return &Server{ID: id, Enrolment: e, Enrolled: now}, log, err
}

func (a *Activator) verifier(s *State, now time.Time) *attest.Verifier {
	return s.verifier(now, a.cfg.Phases, a.roots, s.head().Sign(a.Store.key))
}

// Activate attests a server, writes down the decision, and grants secrets when it is accepted. A server
// that has secrets already is attested all the same: so they are renewed.
func (a *Activator) Activate(ctx context.Context, id string, now func() time.Time) (*Outcome, error) {
	address, err := a.address(id)
	if err != nil {
		return nil, err
	}
	l := dial(address)
	defer l.close()
	identity, err := l.call(ctx, http.MethodGet, attest.PathIdentity, nil)
	if err != nil {
		return nil, err
	}
	return a.activate(ctx, l, id, identity, now)
}

func (a *Activator) address(id string) (address netip.AddrPort, err error) {
	err = a.Store.View(func(s *State) error {
		server := s.servers[id]
		if server == nil {
			return fault.New(fault.NotFound, "no server has this name").WithHint("`lethe-activator list` shows them")
		}
		address = server.Address
		return nil
	})
	return address, err
}

// activate is the way from an identity to a receipt.
func (a *Activator) activate(ctx context.Context, l *link, id string, identity []byte, now func() time.Time) (*Outcome, error) {
	var v *attest.Verifier
	var server *attest.Server
	var public []netip.Addr
	err := a.Store.View(func(s *State) error {
		v, server, public = a.verifier(s, now()), s.attested(id), s.servers[id].Public
		return nil
	})
	if err != nil {
		return nil, err
	}
	session, result, err := a.judge(ctx, l, v, server, identity)
	if err != nil {
		return nil, a.refused(id, identity, err, now())
	}
	until := now().Add(time.Duration(a.cfg.Life)).UTC().Truncate(time.Second)
	secrets, err := a.secrets(id, public, result, now(), until)
	if err != nil {
		return nil, err
	}
	defer clear(secrets)
	// First the record, then the secrets.
	err = a.Store.Append(now(), func(s *State) (*Record, error) {
		if was, is := server.Memory, s.attested(id).Memory; (was == nil) != (is == nil) || was != nil && *was != *is {
			return nil, fault.New(fault.Conflict, "the server was activated by somebody else meanwhile")
		}
		if r := s.releases[result.Release]; r == nil || r.Revoked || result.Release < s.floor {
			return nil, fault.New(fault.Conflict, "the server's release was revoked meanwhile")
		}
		return &Record{Kind: Accepted, Server: id, Version: result.Release, Accept: &Acceptance{Memory: result.Memory, Until: until}}, nil
	})
	if err != nil {
		return nil, err
	}
	var head []byte
	if err := a.Store.View(func(s *State) error { head = s.head().Sign(a.Store.key); return nil }); err != nil {
		return nil, err
	}
	grant, expected, err := session.Grant(secrets, head)
	if err != nil {
		return nil, err
	}
	// What is decided is carried out, also when the program is told to stop meanwhile.
	receipt, err := l.call(context.WithoutCancel(ctx), http.MethodPost, attest.PathSecrets, grant)
	if err != nil {
		err = errors.Join(attest.Refuse(attest.NoReceipt, "no answer"), err)
	} else {
		err = attest.Received(receipt, expected)
	}
	if err != nil {
		return nil, a.refused(id, identity, err, now())
	}
	return &Outcome{id, result.Release, until}, nil
}

// judge asks for evidence and appraises it.
func (a *Activator) judge(ctx context.Context, l *link, v *attest.Verifier, server *attest.Server, identity []byte) (*attest.Session, *attest.Result, error) {
	session, err := v.Identify(server, *l.channel, identity)
	if err != nil {
		return nil, nil, err
	}
	evidence, err := l.call(ctx, http.MethodPost, attest.PathEvidence, session.Challenge())
	if err != nil {
		return nil, nil, err
	}
	result, err := session.Appraise(evidence)
	return session, result, err
}

// refused writes down why, if err is a refusal, and returns it. An activator that learns that it was
// restored from an old backup writes nothing: it keeps the head, which stops it.
func (a *Activator) refused(id string, identity []byte, err error, now time.Time) error {
	reason, detail := attest.ReasonOf(err)
	if reason == 0 {
		return err
	}
	if reason == attest.ActivatorRestored {
		var says attest.Identity
		if e := attest.Decode(identity, &says); e != nil {
			return errors.Join(err, e)
		}
		return errors.Join(err, a.Store.seen(says.Head))
	}
	e := a.Store.Append(now, func(*State) (*Record, error) {
		return &Record{Kind: Refused, Server: id, Refuse: &RefusalRecorded{reason.Code(), detail}}, nil
	})
	return errors.Join(err, e)
}

// secrets returns what the server is granted, in the form of package secret without private keys.
func (a *Activator) secrets(id string, public []netip.Addr, r *attest.Result, now, until time.Time) ([]byte, error) {
	vpn, err := a.vpn.vpn(id, public, r.VPNKey, now, until)
	if err != nil {
		return nil, err
	}
	api, err := a.api.api(id, r.APIKey, now, until)
	if err != nil {
		return nil, err
	}
	f := a.node.Reveal()
	n := secret.Node{Server: id, VPNCertificate: private.Of(vpn), TLSCrypt: a.tlsCrypt, ControlURL: a.cfg.ControlURL, Control: a.cfg.Control, ControlCA: a.controlCA,
		APICertificate: private.Of(api), Salt: private.Of([32]byte(f.Salt)), Seal: private.Of([32]byte(f.Seal)), TrustRoot: f.TrustRoot}
	return n.Encode()
}

// Authorities returns the certificates that customers and the control plane verify servers with, in PEM, and
// OpenVPN's tls-crypt key, which every customer has.
func (a *Activator) Authorities() (vpn, api string, tlsCrypt private.Value[string]) {
	text := func(c *x509.Certificate) string { s, _ := encoded(c, nil); return s }
	return text(a.vpn.cert), text(a.api.cert), a.tlsCrypt
}
