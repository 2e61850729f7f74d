// Package radius lets a VPN daemon of this server ask who may log in, by RADIUS on
// the loopback interface and EAP-MSCHAPv2, with the user names and passwords that
// OpenVPN's customers have too.
//
// strongSwan's eap-radius plugin is the client. A login takes three round trips:
//
//	daemon                                        this package
//	  Access-Request, EAP Identity           ->
//	                                         <-   Access-Challenge, MSCHAPv2 Challenge
//	  Access-Request, MSCHAPv2 Response      ->   Core.Check
//	                                         <-   Access-Challenge, MSCHAPv2 Success or Failure
//	  Access-Request, MSCHAPv2 Success       ->   Core.Admit
//	                                         <-   Access-Accept, keys, tunnel addresses, Class
//	  Accounting-Request, Start or Interim   ->   Core.Established
//	  Accounting-Request, Stop               ->   Core.End
//
// The number of a client ([session.Ref]) is its NAS-Port, which for strongSwan is the IKE SA's
// unique id, the one that vici shows as well. The Class attribute carries it through
// accounting, where NAS-Port changes when an IKE SA is rekeyed. A daemon whose sessions are followed
// by other means need not account.
//
// Packets are RFC 2865, 2866 and 3579; EAP is RFC 3748; the method is
// draft-kamath-pppext-eap-mschapv2-02 with RFC 2759 and RFC 3079; keys travel by RFC 2548. Every
// Access-Request must carry a right Message-Authenticator and every answer has one in front
// (CVE-2024-3596). What is not signed by the daemon gets no answer. What is signed but senseless
// ends the login. Requests that come twice get the same answer twice (RFC 5080, section 2.2.2).
//
// One goroutine does all the work of a [Server], a login in some tens of microseconds, and owns
// its state: there is no lock. Half-open logins are bounded in number and time.
//
// Nothing personal leaves here but into the core. The user name, the client's address and what
// the keys are made of are wiped when a login ends; no event speaks of a login.
//
// What the package leaves out: EAP-Start (strongSwan's eap_start, which would log in by IKE
// identity), other methods, changing passwords, byte counts (the kernel counts by tunnel address,
// see package firewall), proxies. MS-CHAPv2 without EAP, as pppd speaks it, would be
// a branch of access that calls the same Check and Admit with the same proof.
//
// There is a Go library for RADIUS (layeh.com/radius). It was tried: it has been dormant since 2023,
// has neither Message-Authenticator nor EAP, and its MS-CHAPv2 wants the password where
// a server has the hash; what remains of it is the packet format.
package radius

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/net/ipv4"

	"lethe/event"
	"lethe/fault"
	"lethe/private"
	"lethe/protocol"
	"lethe/session"
)

// Core is the part of a server's core that a [Server] calls, from one goroutine; [session.Registry]
// has it. See [session.Core] for what the methods do. An error of Check or Admit is told the client as far
// as its kind is fault.Unauthenticated, Expired or Denied; any other ends the login without a reason.
type Core interface {
	// Check decides about a login whose Proof is set, and opens nothing.
	Check(session.Login) error
	// Admit opens the session of a client that Check let pass.
	Admit(session.Ref, session.Login) (session.Grant, error)
	Established(session.Ref)
	// End is called when accounting stops, and half a minute after a client was admitted that
	// was not accounted for until then: it never got as far as a tunnel. Where the daemon does not
	// account, that call comes for every client, and the Core has to know which are up.
	End(session.Ref)
}

// Config is what a [Server] works with.
type Config struct {
	// Secret is what daemon and server share: at least 16 random bytes, new with each start of
	// the daemon. An agent that adopts a running daemon needs the daemon's.
	Secret   private.Value[[]byte]
	Daemon   uint8        // index of the daemon; its clients get addresses of [session.SubnetsOf]
	Protocol protocol.ID  // what the daemon speaks
	DNS      []netip.Addr // resolvers that clients are told, at most one of each family
	Core     Core
	Log      *event.Logger
}

// MinSecret is the least length of a secret in bytes.
const MinSecret = 16

// Server answers one daemon.
type Server struct {
	cfg     Config
	dropped atomic.Uint64

	// The rest belongs to the goroutine in Serve.
	hashes   *hashes
	trusted  bool            // the last packet was the daemon's
	page     [512]byte       // random bytes
	lot      []byte          // those not used yet
	room     [maxPacket]byte // for an EAP packet in pieces
	now      conversation    // the one that is at work
	answers  *table[question, answered]
	open     *table[[stateSize]byte, conversation]
	admitted *table[session.Ref, struct{}] // not yet accounted for
}

// New returns a server.
func New(cfg Config) (*Server, error) {
	secret := cfg.Secret.Reveal()
	if len(secret) < MinSecret {
		return nil, fault.New(fault.Invalid, "the RADIUS secret is too short")
	}
	for i, a := range cfg.DNS {
		if i > 0 && a.Is4() == cfg.DNS[0].Is4() || !a.IsValid() {
			return nil, fault.New(fault.Invalid, "more than one resolver of a family for RADIUS")
		}
	}
	return &Server{
		cfg: cfg, hashes: newHashes(secret), trusted: true,
		answers:  newTable[question, answered](answerLife, maxEntries, nil),
		open:     newTable[[stateSize]byte, conversation](lifetime, maxEntries, nil),
		admitted: newTable[session.Ref, struct{}](lifetime, maxEntries, cfg.Core.End),
	}, nil
}

// Listen opens a UDP socket on 127.0.0.1 for [Server.Serve]. A port of 0 is one of the system's
// choice. The same port is for authentication and for accounting.
func Listen(port uint16) (*net.UDPConn, error) {
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback, port)))
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, "the RADIUS port cannot be opened", err)
	}
	_ = conn.SetReadBuffer(receiveBuffer) // a smaller one only drops requests earlier, which come again
	return conn, nil
}

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// receiveBuffer is room for a thousand requests that wait while the agent does something else.
const receiveBuffer = 1 << 20

// sweep is how often the tables are looked through.
const sweep = time.Second

// batch is how many requests one system call reads at most, and how many answers one sends.
// With one of each, system calls were 60 % of the work of a login.
const batch = 32

// Serve answers on conn until ctx ends; it closes conn. It refuses to serve on anything
// but a loopback address and may be called once.
func (s *Server) Serve(ctx context.Context, conn *net.UDPConn) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	defer conn.Close()
	if a, ok := conn.LocalAddr().(*net.UDPAddr); !ok || !a.IP.IsLoopback() {
		return fault.New(fault.Invalid, "RADIUS is for the loopback interface")
	}
	var in, out [batch]ipv4.Message
	for i := range in {
		in[i].Buffers = [][]byte{make([]byte, maxPacket+1)} // one byte more shows what is too long
		out[i].Buffers = [][]byte{make([]byte, 0, maxReply)}
	}
	packets := ipv4.NewPacketConn(conn)
	var next time.Time
	for {
		now := time.Now()
		if !now.Before(next) {
			next = now.Add(sweep)
			_ = conn.SetReadDeadline(next) // fails only when closed, like the read
			s.expire(now)
		}
		n, err := packets.ReadBatch(in[:], 0)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			continue
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fault.Wrap(fault.Unavailable, "RADIUS requests cannot be read", err)
		}
		now, answers := time.Now(), 0
		for _, m := range in[:n] {
			datagram := m.Buffers[0][:m.N]
			if b := s.handle(now, m.Addr.(*net.UDPAddr).AddrPort(), datagram); b != nil {
				out[answers].Buffers[0] = append(out[answers].Buffers[0][:0], b...)
				out[answers].Addr = m.Addr
				answers++
			}
			clear(datagram)
		}
		for rest := out[:answers]; len(rest) > 0; {
			sent, err := packets.WriteBatch(rest, 0)
			if err != nil {
				sent = 1 // that one cannot be sent; it is asked for again
			}
			rest = rest[sent:]
		}
		for _, m := range out[:answers] {
			clear(m.Buffers[0])
		}
	}
}

// expire forgets what is over: answers, half-open logins, and sessions that did not come about,
// which the core is told of.
func (s *Server) expire(now time.Time) {
	s.answers.expire(now)
	s.open.expire(now)
	s.admitted.expire(now)
}

// Dropped returns how many packets got no answer because they were not the daemon's.
func (s *Server) Dropped() uint64 { return s.dropped.Load() }
