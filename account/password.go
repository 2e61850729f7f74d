package account

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"strings"
	"unicode/utf8"

	"golang.org/x/crypto/argon2"

	"lethe/fault"
	"lethe/private"
)

// The cost of a password hash: Argon2id (RFC 9106) with 19 MiB, two passes and
// one lane, the smallest set that OWASP's password storage cheat sheet names.
// One hash takes about 25 ms.
const (
	hashMemory  = 19 * 1024 // KiB
	hashPasses  = 2
	hashLanes   = 1
	hashSalt    = 16 // bytes
	hashLength  = 32 // bytes
	MinPassword = 10 // characters
	MaxPassword = 1024
)

// checkPassword fails with fault.Invalid for a password that no account may
// have. MaxPassword is in bytes and keeps a request from costing more than its
// hash.
func checkPassword(password private.Value[string]) error {
	p := password.Reveal()
	switch {
	case utf8.RuneCountInString(p) < MinPassword:
		return fault.New(fault.Invalid, "the password is too short").WithHint("take at least 10 characters")
	case len(p) > MaxPassword:
		return fault.New(fault.Invalid, "the password is too long").WithHint("take at most 1024 bytes")
	}
	return nil
}

// hasher makes and checks password hashes, at most cap(slots) at a time, so
// that a flood of logins costs a bounded amount of memory: 19 MiB each.
type hasher struct {
	slots chan struct{}
}

// acquire waits for a slot. It fails with fault.Unavailable when ctx ends
// first.
func (h hasher) acquire(ctx context.Context) error {
	select {
	case h.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fault.Wrap(fault.Unavailable, "the service is busy", ctx.Err()).WithHint("try again in a minute")
	}
}

// hash returns the PHC string of a password under a fresh salt.
func (h hasher) hash(ctx context.Context, password private.Value[string]) (private.Value[string], error) {
	if err := h.acquire(ctx); err != nil {
		return private.Value[string]{}, err
	}
	defer func() { <-h.slots }()
	salt := make([]byte, hashSalt)
	_, _ = rand.Read(salt) // crypto/rand.Read never fails
	sum := argon2.IDKey([]byte(password.Reveal()), salt, hashPasses, hashMemory, hashLanes, hashLength)
	b64 := base64.RawStdEncoding
	return private.Of(fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, hashMemory, hashPasses,
		hashLanes, b64.EncodeToString(salt), b64.EncodeToString(sum))), nil
}

// verify reports whether password has that PHC string. The comparison takes
// constant time; the hash takes the time that the parameters in phc ask for.
func (h hasher) verify(ctx context.Context, phc, password private.Value[string]) (bool, error) {
	p, err := parsePHC(phc.Reveal())
	if err != nil {
		return false, err
	}
	if err := h.acquire(ctx); err != nil {
		return false, err
	}
	defer func() { <-h.slots }()
	sum := argon2.IDKey([]byte(password.Reveal()), p.salt, p.passes, p.memory, p.lanes, uint32(len(p.sum)))
	return subtle.ConstantTimeCompare(sum, p.sum) == 1, nil
}

type phc struct {
	memory, passes uint32
	lanes          uint8
	salt, sum      []byte
}

// parsePHC reads a PHC string of Argon2id. The bounds keep a damaged store from
// asking for more memory or time than ever was configured.
func parsePHC(s string) (p phc, err error) {
	damaged := fault.New(fault.Internal, "a stored password hash is damaged")
	parts := strings.Split(s, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return phc{}, damaged
	}
	var err1, err2, err3 error
	_, err1 = fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &p.memory, &p.passes, &p.lanes)
	p.salt, err2 = base64.RawStdEncoding.DecodeString(parts[4])
	p.sum, err3 = base64.RawStdEncoding.DecodeString(parts[5])
	if err1 != nil || err2 != nil || err3 != nil || p.memory < 8 || p.memory > 1<<20 || p.passes < 1 || p.passes > 16 ||
		p.lanes < 1 || p.lanes > 16 || len(p.salt) < 8 || len(p.sum) < 16 || len(p.sum) > 64 {
		return phc{}, damaged
	}
	return p, nil
}
