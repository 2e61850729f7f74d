package client

import (
	"net/netip"

	"lethe/account"
	"lethe/vici"
)

// Dialogue opens the management dialogue to its fuzz test.
type Dialogue struct{ d dialogue }

// NewDialogue returns a dialogue of a customer.
func NewDialogue(c account.Credential) *Dialogue {
	return &Dialogue{dialogue{credential: c, env: map[string]string{}}}
}

// Hear takes one line; up are the tunnel's addresses and resolvers when it is up.
func (d *Dialogue) Hear(line string) (say string, up []netip.Addr, err error) {
	say, f, err := d.d.hear(line)
	if f != nil {
		up = append(f.addrs(), f.dns...)
	}
	return say, up, err
}

// Ended is what the end of the process means.
func (d *Dialogue) Ended() error { return d.d.ended() }

// Verdict is what lines of charon's log say of a login, nil when nothing.
func Verdict(lines ...string) error {
	var v verdict
	for _, l := range lines {
		v.hear(new(vici.Message).Set("msg", l))
	}
	if why := v.why.Load(); why != nil {
		return why
	}
	return nil
}

// LockRules returns the lock for one portal of each kind and a tunnel.
func LockRules(tunnel bool) string {
	var f *face
	if tunnel {
		f = &face{device: "lethe-udp", v4: netip.MustParsePrefix("10.64.0.2/16"), v6: netip.MustParsePrefix("fd00::2/128")}
	}
	return lockRules([]portal{{netip.MustParseAddr("198.51.100.21"), "udp", 1194}, {netip.MustParseAddr("2001:db8::21"), "tcp", 443}}, f)
}

// StatusText returns a status as `lethe status` and `lethe status --watch` print it.
func StatusText(s Status) (text, line string) { return statusText(s, true), statusLine(s) }

// MaxQR is maxQR.
const MaxQR = maxQR

// DrawQR returns the QR code of a text as a terminal and as an image shows it.
func DrawQR(text []byte) (terminal, picture []byte, columns int, err error) {
	q, err := newQR(text)
	if err != nil {
		return nil, nil, 0, err
	}
	picture, err = q.png()
	return q.terminal(), picture, q.columns(), err
}
