// Package valkey keeps slots in the memory of a Valkey server (or Redis, which
// speaks the same), for a provider with many control planes.
//
// A licence with live slots is one sorted set: the members are the slots' ids,
// the scores the milliseconds, by the server's clock, at which they end. Its
// key is a keyed hash that says nothing without the control planes' key, and it
// expires with its last slot. Each operation is one script, and so one atomic
// step.
//
// The counter is of this moment only, so the server may not be one that
// remembers: check.go asks on every new connection, the first and all later
// ones, and refuses a server that writes to a disk, keeps a log of slow
// commands or copies to one that does either. Connections live for a minute, so a
// server whose settings change is found out within it. What cannot be seen from
// here is an operator who types SAVE or MONITOR.
package valkey

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"net"
	"net/netip"
	"net/url"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"lethe/fault"
	"lethe/private"
	"lethe/slot"
)

// Config says where the server is.
type Config struct {
	// URL is unix:///path, rediss://host:port (TLS), or redis://address:port
	// for an address of this machine. A user name may stand in it, a password
	// may not.
	URL      string
	Password private.Value[string] // may be empty
	TLS      *tls.Config           // for rediss; nil: the system's roots
	Lease    time.Duration         // the service gives [slot.Lease]
}

// Store is a [slot.Store]. Make one with [Open].
type Store struct {
	client *redis.Client
	lease  int64 // ms
}

// recheck is how long a connection lives; a new one is checked.
const recheck = time.Minute

// Open connects and checks the server. It fails with fault.Invalid for an
// impossible URL and for a server that may remember, and with fault.Unavailable
// for one that does not answer. The caller closes the store.
func Open(ctx context.Context, c Config) (*Store, error) {
	o, err := options(c)
	if err != nil {
		return nil, err
	}
	redis.SetLogger(silent{}) // what it says holds addresses
	o.OnConnect = func(ctx context.Context, conn *redis.Conn) error { return checkPrimary(ctx, conn, o) }
	s := &Store{client: redis.NewClient(o), lease: c.Lease.Milliseconds()}
	if err := s.client.Ping(ctx).Err(); err != nil {
		_ = s.client.Close() // its error would say less than err
		var f *fault.Error
		if errors.As(err, &f) {
			return nil, f
		}
		return nil, fault.Wrap(fault.Unavailable, "the Valkey server of the slots does not answer, or does not let us in", err).
			WithHint("is its address right, does it run, and are user name and password right?")
	}
	return s, nil
}

// options returns the settings of a connection.
func options(c Config) (*redis.Options, error) {
	impossible := func(text string) (*redis.Options, error) {
		return nil, fault.New(fault.Invalid, "slots: "+text).
			WithHint("want unix:///path, rediss://host:port, or redis://127.0.0.1:port")
	}
	u, err := url.Parse(c.URL)
	if err != nil || u.RawQuery != "" || u.Fragment != "" {
		return impossible("the address of the Valkey server makes no sense")
	}
	if _, there := u.User.Password(); there {
		return nil, fault.New(fault.Invalid, "slots: a password stands in the address of the Valkey server").
			WithHint("put it into a file that only the service may read, and name that file")
	}
	o := &redis.Options{
		Username: u.User.Username(), Password: c.Password.Reveal(),
		ContextTimeoutEnabled: true, DialTimeout: 2 * time.Second, ReadTimeout: 2 * time.Second, WriteTimeout: 2 * time.Second,
		DialerRetries: 1, MaxRetries: 1, // every script may be sent twice
		PoolSize: 32, ConnMaxLifetime: recheck, DisableIdentity: true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
	switch u.Scheme {
	case "unix":
		o.Network, o.Addr = "unix", u.Path
		if u.Host != "" || u.Path == "" {
			return impossible("the path of the Valkey server's socket is not absolute")
		}
		return o, nil
	case "rediss":
		o.TLSConfig = c.TLS.Clone() // of nil: nil
		if o.TLSConfig == nil {
			o.TLSConfig = &tls.Config{}
		}
		o.TLSConfig.MinVersion, o.TLSConfig.ServerName = tls.VersionTLS12, u.Hostname()
	case "redis":
		if a, err := netip.ParseAddr(u.Hostname()); err != nil || !a.IsLoopback() {
			return impossible("a Valkey server elsewhere needs TLS")
		}
	default:
		return impossible("the address of the Valkey server makes no sense")
	}
	if u.Port() == "" || u.Hostname() == "" || u.Path != "" && u.Path != "/" {
		return impossible("the address of the Valkey server needs a host and a port and nothing else")
	}
	o.Addr = net.JoinHostPort(u.Hostname(), u.Port())
	return o, nil
}

// silent drops what the library would print.
type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

// Each script begins with the present moment and without what has lapsed.
const begin = `
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
`

var (
	// KEYS: licence; ARGV: slot, old slot, limit, lease in ms.
	take = redis.NewScript(begin + `
local live = redis.call('ZCARD', KEYS[1])
if redis.call('ZSCORE', KEYS[1], ARGV[2]) then live = live - 1 end
if redis.call('ZSCORE', KEYS[1], ARGV[1]) then live = live - 1 end
if live >= tonumber(ARGV[3]) then return 0 end
redis.call('ZREM', KEYS[1], ARGV[2])
redis.call('ZADD', KEYS[1], now + ARGV[4], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return 1`)
	// KEYS: licence; ARGV: slot, limit, lease in ms.
	renew = redis.NewScript(begin + `
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1`)
	// KEYS: licence.
	count = redis.NewScript(begin + `return redis.call('ZCARD', KEYS[1])`)
)

// Key returns the key under which a licence's slots lie.
func Key(l slot.Licence) string { return "lethe:slot:" + base64.RawURLEncoding.EncodeToString(l[:]) }

// Take implements [slot.Store].
func (s *Store) Take(ctx context.Context, l slot.Licence, id, old slot.ID, limit int) error {
	return s.ask(ctx, take, l, id[:], old[:], limit, s.lease)
}

// Renew implements [slot.Store].
func (s *Store) Renew(ctx context.Context, l slot.Licence, id slot.ID, limit int) error {
	return s.ask(ctx, renew, l, id[:], limit, s.lease)
}

func (s *Store) ask(ctx context.Context, script *redis.Script, l slot.Licence, args ...any) error {
	granted, err := script.Run(ctx, s.client, []string{Key(l)}, args...).Bool()
	if err == nil && !granted {
		return fault.New(fault.TooMany, "the limit of the licence is reached")
	}
	return down(err)
}

// Release implements [slot.Store].
func (s *Store) Release(ctx context.Context, l slot.Licence, id slot.ID) error {
	return down(s.client.ZRem(ctx, Key(l), id[:]).Err())
}

// End implements [slot.Store].
func (s *Store) End(ctx context.Context, l slot.Licence) error {
	return down(s.client.Del(ctx, Key(l)).Err())
}

// Count implements [slot.Store].
func (s *Store) Count(ctx context.Context, l slot.Licence) (int, error) {
	n, err := count.Run(ctx, s.client, []string{Key(l)}).Int()
	return n, down(err)
}

// Close implements [slot.Store]. The server keeps the slots of other control
// planes, and ours until they lapse.
func (s *Store) Close() error { return down(s.client.Close()) }

// down is what any failure means to a caller: also that of the check, which is
// the operator's business and not a customer's.
func down(err error) error {
	if err == nil {
		return nil
	}
	return fault.Wrap(fault.Unavailable, "the store of the connection slots cannot be used", err)
}
