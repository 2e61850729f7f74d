package activation

import (
	"crypto/tls"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// gate is a listener that bounds its connections and speaks TLS on them. They are not *[tls.Conn]
// for net/http, which would talk HTTP in the clear to whoever begins so.
type gate struct {
	net.Listener
	tls *tls.Config

	mu   sync.Mutex
	open []*conn // the oldest first
}

// conn is a connection with an end that nothing puts off.
type conn struct {
	net.Conn
	gate *gate
	from netip.Prefix // where it comes from, while it lasts
	end  time.Time
}

// Accept implements [net.Listener].
func (g *gate) Accept() (net.Conn, error) {
	raw, err := g.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: tls.Server(raw, g.tls), gate: g, from: source(raw.RemoteAddr()), end: time.Now().Add(lifetime)}
	for _, old := range g.admit(c) {
		_ = old.Conn.(*tls.Conn).NetConn().Close() // without a word, which could block
	}
	_ = c.Conn.SetDeadline(c.end)
	return c, nil
}

// admit takes c among the open connections and returns those that end for it.
func (g *gate) admit(c *conn) (ended []*conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = append(g.open, c)
	same := 0
	for _, o := range g.open {
		if o.from == c.from {
			same++
		}
	}
	oldest := -1
	if same > SlotsEach {
		oldest = slices.IndexFunc(g.open, func(o *conn) bool { return o.from == c.from })
	} else if len(g.open) > Slots {
		oldest = 0
	}
	if oldest >= 0 {
		ended = append(ended, g.open[oldest])
		g.open = slices.Delete(g.open, oldest, oldest+1)
	}
	return ended
}

// source returns what counts as one source: an IPv4 address, or the network of an IPv6 one.
func source(a net.Addr) netip.Prefix {
	at, _ := netip.ParseAddrPort(a.String()) // the zero value, one source, where there are no addresses
	bits := 64
	if at.Addr().Unmap().Is4() {
		bits = 32
	}
	p, _ := at.Addr().Unmap().WithZone("").Prefix(bits)
	return p
}

// Close implements [net.Conn].
func (c *conn) Close() error {
	g := c.gate
	g.mu.Lock()
	g.open = slices.DeleteFunc(g.open, func(o *conn) bool { return o == c })
	g.mu.Unlock()
	return c.Conn.Close()
}

// SetReadDeadline implements [net.Conn], as SetWriteDeadline does; net/http sets no other.
func (c *conn) SetReadDeadline(t time.Time) error  { return c.Conn.SetReadDeadline(c.until(t)) }
func (c *conn) SetWriteDeadline(t time.Time) error { return c.Conn.SetWriteDeadline(c.until(t)) }

// until returns t or the connection's end, whichever comes first; the zero time is no deadline.
func (c *conn) until(t time.Time) time.Time {
	if t.IsZero() || t.After(c.end) {
		return c.end
	}
	return t
}
