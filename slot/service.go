package slot

import (
	"context"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"hash"
	"sync"

	"golang.org/x/crypto/chacha20poly1305"

	"lethe/account"
	"lethe/day"
	"lethe/fault"
	"lethe/private"
)

// Accounts says what an account may do. store/sqlite is one.
type Accounts interface {
	// Account returns the account of that id, or fault.NotFound.
	Account(context.Context, account.ID) (account.Record, error)
}

// Config is what a [Service] needs.
type Config struct {
	Store    Store
	Accounts Accounts
	// Key is the control plane's data key. Two keys are derived from it (HKDF,
	// RFC 5869): one seals tokens, one hashes accounts. All control planes of a
	// provider have the same.
	Key private.Value[[32]byte]
	// Today returns the date; nil means [day.Today].
	Today func() day.Day
}

// Service gives slots out. It is safe for concurrent use.
type Service struct {
	c    Config
	seal cipher.AEAD
	mac  sync.Pool // of hash.Hash: HMAC-SHA-256 under the key that hashes accounts
}

// New returns a service.
func New(c Config) *Service {
	if c.Today == nil {
		c.Today = day.Today
	}
	derive := func(purpose string) []byte {
		master := c.Key.Reveal()
		defer clear(master[:])
		key, err := hkdf.Key(sha256.New, master[:], nil, purpose, 32)
		if err != nil {
			panic("slot: internal error: a key cannot be derived")
		}
		return key
	}
	s := &Service{c: c}
	var err error
	if s.seal, err = chacha20poly1305.NewX(derive("lethe slot token 1")); err != nil {
		panic("slot: internal error: a key of the wrong length")
	}
	key := derive("lethe slot licence 1")
	s.mac.New = func() any { return hmac.New(sha256.New, key) }
	return s
}

// Licence returns the name that an account's licence has in the [Store].
func (s *Service) Licence(id account.ID) (l Licence) {
	sum := s.hash('l', string(id))
	return Licence(sum[:len(l)])
}

// mark is what tells one VPN credential of an account from the next in a token.
type mark [8]byte

func (s *Service) mark(r account.Record) (m mark) {
	sum := s.hash('c', r.Credential.Username.Reveal())
	return mark(sum[:len(m)])
}

// hash is HMAC-SHA-256 of a text and what it is for.
func (s *Service) hash(purpose byte, text string) (sum [sha256.Size]byte) {
	h := s.mac.Get().(hash.Hash)
	defer s.mac.Put(h)
	h.Reset()
	_, _ = h.Write(append([]byte{purpose}, text...)) // a hash takes everything
	h.Sum(sum[:0])
	return sum
}

// Take gives an account's licence a slot and returns its token. With old, which
// may be zero, that slot of the same licence ends in the same step. It fails
// with fault.TooMany when the limit is reached, with fault.Denied or
// fault.Expired when the account or its licence allows nothing, and with the
// errors of the [Store].
func (s *Service) Take(ctx context.Context, id account.ID, old Token) (Token, error) {
	l := s.Licence(id)
	r, err := s.allowed(ctx, id, l)
	if err != nil {
		return Token{}, err
	}
	// An old token that does not open, or opens to somebody else, is no reason
	// to refuse a slot: the app has found it in a file.
	var before ID
	if o, err := s.open(old); err == nil && o.account == id {
		before = o.slot
	}
	token, slot := s.mint(id, s.mark(r))
	if err := s.c.Store.Take(ctx, l, slot, before, r.Licence.Devices); err != nil {
		return Token{}, reached(err, r.Licence.Devices)
	}
	return token, nil
}

// Beat is the heartbeat of a slot. It fails with fault.Unauthenticated for what
// is no token of this service, or of an account or a VPN credential that is
// gone, with fault.TooMany when the slot had ended and its place is taken, and as
// [Service.Take] does. When the licence allows nothing any more, all of its
// slots end.
func (s *Service) Beat(ctx context.Context, t Token) error {
	o, err := s.open(t)
	if err != nil {
		return err
	}
	l := s.Licence(o.account)
	r, err := s.allowed(ctx, o.account, l)
	switch {
	case fault.Of(err) == fault.NotFound:
		return unknown()
	case err != nil:
		return err
	case o.mark != s.mark(r):
		if err := s.c.Store.Release(ctx, l, o.slot); err != nil {
			return err
		}
		return unknown()
	}
	return reached(s.c.Store.Renew(ctx, l, o.slot, r.Licence.Devices), r.Licence.Devices)
}

// Release ends the slot of a token. Ending one that has ended does nothing.
func (s *Service) Release(ctx context.Context, t Token) error {
	o, err := s.open(t)
	if err != nil {
		return err
	}
	return s.c.Store.Release(ctx, s.Licence(o.account), o.slot)
}

// allowed returns an account that may have devices connected. One that may not
// loses the slots it has.
func (s *Service) allowed(ctx context.Context, id account.ID, l Licence) (account.Record, error) {
	r, err := s.c.Accounts.Account(ctx, id)
	switch {
	case fault.Of(err) == fault.NotFound:
	case err != nil:
		return account.Record{}, err
	case r.Disabled:
		err = fault.New(fault.Denied, "this account is disabled").WithHint("ask the provider's support")
	case !r.Licence.Active(s.c.Today()):
		err = fault.New(fault.Expired, "the licence has ended").WithHint("extend it to connect")
	default:
		return r, nil
	}
	if end := s.c.Store.End(ctx, l); end != nil {
		return account.Record{}, end
	}
	return account.Record{}, err
}

// reached says what a limit means to a person.
func reached(err error, limit int) error {
	if err == nil || fault.Of(err) != fault.TooMany {
		return err
	}
	text := fmt.Sprintf("all %d devices that this licence allows at once are connected", limit)
	switch limit {
	case 0:
		text = "this licence allows no device"
	case 1:
		text = "the one device that this licence allows is connected"
	}
	return fault.Wrap(fault.TooMany, text, err).
		WithHint(fmt.Sprintf("disconnect one; a device that went away without disconnecting stops counting after %d seconds", int(Lease.Seconds())))
}

func unknown() error {
	return fault.New(fault.Unauthenticated, "this is no slot").WithHint("connect again to take one")
}

// The largest token that is looked at, in characters; with the ids of package
// account they have 99.
const maxToken = 128

// opened is what a token says.
type opened struct {
	slot    ID
	mark    mark
	account account.ID
}

// mint makes a slot of an account. The token is, in base64url: 24 random bytes,
// of which the first 16 are the slot's ID, and mark and account under
// XChaCha20-Poly1305 with the 24 as nonce.
func (s *Service) mint(id account.ID, m mark) (Token, ID) {
	var nonce [chacha20poly1305.NonceSizeX]byte
	_, _ = rand.Read(nonce[:]) // crypto/rand.Read never fails
	token := s.seal.Seal(nonce[:], nonce[:], append(m[:], id...), nil)
	return private.Of(base64.RawURLEncoding.EncodeToString(token)), ID(nonce[:len(ID{})])
}

// open returns what mint made a token of.
func (s *Service) open(t Token) (o opened, err error) {
	text := t.Reveal()
	if len(text) > maxToken {
		return o, unknown()
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(b) < chacha20poly1305.NonceSizeX {
		return o, unknown()
	}
	nonce := b[:chacha20poly1305.NonceSizeX]
	inside, err := s.seal.Open(nil, nonce, b[len(nonce):], nil)
	if err != nil || len(inside) <= len(o.mark) {
		return o, unknown()
	}
	return opened{ID(nonce[:len(o.slot)]), mark(inside[:len(o.mark)]), account.ID(inside[len(o.mark):])}, nil
}

// Held is how many of a licence's devices are connected now.
type Held struct {
	Count int `json:"connected"` // now
	Limit int `json:"limit"`     // of the licence; 0 when it allows nothing now
}

// Held returns how many devices of an account are connected now. It fails with
// fault.NotFound when there is no such account.
func (s *Service) Held(ctx context.Context, id account.ID) (Held, error) {
	r, err := s.c.Accounts.Account(ctx, id)
	if err != nil {
		return Held{}, err
	}
	h := Held{Limit: r.Licence.Devices}
	if r.Disabled || !r.Licence.Active(s.c.Today()) {
		h.Limit = 0
	}
	h.Count, err = s.c.Store.Count(ctx, s.Licence(id))
	return h, err
}
