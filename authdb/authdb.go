// Package authdb is the authentication database of a VPN server: who may log
// in, with which password and until which day, for millions of credentials, in
// memory, without asking anybody.
//
// # Actors
//
// The control plane's publisher writes segments with [Build] and [Merge],
// guided by [Plan], and publishes them in the signed bundle. A server fetches the
// bytes it lacks into sealed memory, opens them there ([Borrow] for memory that
// the bundle keeps, [Sealed] and [Map] for memory of its own), puts base and deltas
// together ([NewDB]) and swaps the result into its [Live], which answers logins
// meanwhile. A server has no disk; nothing here writes to one.
//
// # Segments
//
// A segment is an immutable file of rows sorted by key. A row is 32 bytes, half a
// cache line: a 12-byte keyed hash of the VPN user name, the NT hash of the
// password, the last paid day and flags. Rows stand at or shortly after the
// place that their key, taken as a fraction, points to, with one slot in eight
// left empty: 36.6 bytes a credential, no index, and a look-up is one jump, one
// cache miss and a walk over about four neighbouring rows. (Tried before: rows
// of 36 bytes without gaps behind a table of offsets. Half a byte more, a second
// miss that waits for the first, and two thirds of the speed.)
//
// A base covers the publisher's changes from 0 to some sequence number and
// holds every credential there is. A delta covers a range of later changes and
// holds the newest state of each credential they touched, with a tombstone for
// one that was removed. A database is a base and the deltas that follow it
// without a gap; the newest row wins.
//
// # Merging needs no download
//
// What a delta of the range [a, b] holds depends only on the changes from a to
// b, not on how they were cut into smaller deltas, and a segment has exactly one
// encoding. So whoever merges segments that tile [a, b] gets the same bytes. The
// publisher lists a merged segment only after each of its parts was listed
// once (see [Plan]); a server then finds its tiles with [Cover], merges them, compares
// the SHA-256 with the listed one and has downloaded nothing but the changes.
//
// # What this package leaves out
//
// Authenticity: the bundle's signature and digests vouch for the bytes. [Open]
// nevertheless believes nothing: it checks a CRC-32C and the whole structure, so
// that a damaged or hostile segment is refused and never read out of bounds.
package authdb

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"unicode/utf16"
	"unicode/utf8"

	"lethe/day"
	"lethe/private"

	//lint:ignore SA1019 MS-CHAPv2 is defined on MD4; see NTHash for why it does no harm here
	"golang.org/x/crypto/md4"
)

// sealed makes the type that embeds it print and encode as one constant, like
// [private.Value]: a careless log line must not show rows. A closure for each of
// millions of rows would be too dear; the price is that %p and %w, which ask no
// method and which go vet refuses for such values, do print.
type sealed struct{}

// Format implements [fmt.Formatter] for all verbs.
func (sealed) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, private.Redacted) }

// MarshalText implements [encoding.TextMarshaler]; JSON and slog use it too.
func (sealed) MarshalText() ([]byte, error) { return []byte(private.Redacted), nil }

// HashKey is the key under which user names are hashed: 32 random bytes, one
// per deployment, the same in all of its segments. It stands in every segment,
// so it does not hide names from whoever holds one (their 80 random bits do); it
// makes hashes useless outside the deployment and unpredictable to customers.
type HashKey [32]byte

// Format implements [fmt.Formatter]: no verb prints the key.
func (HashKey) Format(f fmt.State, verb rune) { sealed{}.Format(f, verb) }

// MarshalText implements [encoding.TextMarshaler] and hides the key.
func (HashKey) MarshalText() ([]byte, error) { return sealed{}.MarshalText() }

// Key returns the row key of a VPN user name of any length and content: the
// first 12 bytes of SHA-256(key || name). The key's fixed length keeps names
// apart, the cut-off rest stops length extension. Names of up to 23 bytes take
// one SHA-256 block.
func (k *HashKey) Key(username []byte) RowKey {
	var room [96]byte
	sum := sha256.Sum256(append(append(room[:0], k[:]...), username...))
	return RowKey(sum[:12])
}

// RowKey is the keyed hash of a user name; rows are sorted by it as by
// bytes.Compare. Two of 4 million names share one with a probability of 10^-16
// ([Build] would refuse them), and finding a name with the key of somebody
// else's takes 2^74 tries at a server that answers each.
type RowKey [12]byte

// halves returns the key as numbers that compare as the key does.
func (k *RowKey) halves() (hi uint64, lo uint32) {
	return binary.BigEndian.Uint64(k[:]), binary.BigEndian.Uint32(k[8:])
}

// Format implements [fmt.Formatter]: no verb prints the key.
func (RowKey) Format(f fmt.State, verb rune) { sealed{}.Format(f, verb) }

// MarshalText implements [encoding.TextMarshaler] and hides the key.
func (RowKey) MarshalText() ([]byte, error) { return sealed{}.MarshalText() }

// Secret is the NT hash of a VPN password. For MS-CHAPv2 it is as good as the
// password.
type Secret [16]byte

// Format implements [fmt.Formatter]: no verb prints the secret.
func (Secret) Format(f fmt.State, verb rune) { sealed{}.Format(f, verb) }

// MarshalText implements [encoding.TextMarshaler] and hides the secret.
func (Secret) MarshalText() ([]byte, error) { return sealed{}.MarshalText() }

// NTHash returns NtPasswordHash of RFC 2759, section 8.3: MD4 of the password in
// UTF-16LE, what MS-CHAPv2 needs later from the same row. OpenVPN passwords are
// checked against it as well. MD4 is fast and unsalted, which would be fatal for
// passwords that people choose; VPN passwords are 130 random bits that nobody
// can search, and MD4's weakness is in collisions, not in preimages.
//
// The password is UTF-8; a byte that is not counts as U+FFFD.
func NTHash(password []byte) (s Secret) {
	var room [128]byte
	wide := room[:0]
	for len(password) > 0 {
		r, n := utf8.DecodeRune(password)
		password = password[n:]
		if hi, lo := utf16.EncodeRune(r); hi != utf8.RuneError {
			wide = binary.LittleEndian.AppendUint16(wide, uint16(hi))
			r = lo
		}
		wide = binary.LittleEndian.AppendUint16(wide, uint16(r))
	}
	h := md4.New()
	_, _ = h.Write(wide) // a hash's Write never fails
	clear(wide)
	h.Sum(s[:0])
	return s
}

// Row is one credential.
type Row struct {
	sealed
	Key       RowKey
	Secret    Secret
	PaidUntil day.Day // last day on which the credential is good
	Disabled  bool    // ended early by the operator
	Deleted   bool    // tombstone, only in deltas: the credential is gone; all else but Key is zero
}

// Active reports whether the row allows a login on that day.
func (r Row) Active(today day.Day) bool { return !r.Deleted && !r.Disabled && r.PaidUntil >= today }

// Span is the range of the publisher's sequence numbers, both inclusive, whose
// changes a segment holds. A span from 0 is a base, any other a delta.
type Span struct{ From, To uint64 }

// Base reports whether a segment of that span is a base.
func (s Span) Base() bool { return s.From == 0 }

// Head is what a segment says of itself.
type Head struct {
	Span
	HashKey HashKey
}
