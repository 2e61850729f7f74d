// Package usage holds what Lethe knows of a finished session, from the moment
// it ended to the daily row in the control plane's store.
//
// A [Record] has the fields that the privacy policy names and no others: a
// date, a keyed hash of the VPN user name, country and ISP of the customer, the
// location, the protocol, and megabytes in and out. It has no address, no time
// of day, no duration, no server and no session number, and there is no place
// to put one.
package usage

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"lethe/day"
	"lethe/location"
	"lethe/private"
	"lethe/protocol"
)

// Salt is the key of the user hash, a secret that servers and the control
// plane share.
type Salt = private.Value[[32]byte]

// UserHash is the salted hash of a VPN user name: the first 16 bytes of
// HMAC-SHA-256 (RFC 2104) under the [Salt].
type UserHash [16]byte

// Hash returns the user hash of a VPN user name.
func Hash(salt Salt, username []byte) UserHash {
	key := salt.Reveal()
	m := hmac.New(sha256.New, key[:])
	m.Write(username)
	return UserHash(m.Sum(nil)[:16])
}

// String returns h in hexadecimal, 32 digits.
func (h UserHash) String() string { return hex.EncodeToString(h[:]) }

// MarshalText implements [encoding.TextMarshaler].
func (h UserHash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (h *UserHash) UnmarshalText(text []byte) error { return unhex(h[:], text, "user hash") }

func unhex(dst, text []byte, what string) error {
	if len(text) != hex.EncodedLen(len(dst)) {
		return fmt.Errorf("%s: %d digits, want %d", what, len(text), hex.EncodedLen(len(dst)))
	}
	if _, err := hex.Decode(dst, text); err != nil {
		return fmt.Errorf("%s: not hexadecimal", what)
	}
	return nil
}

// Key is what sessions are merged by: all of a record but its amounts.
type Key struct {
	Date     day.Day     `json:"date" doc:"Date of the end of the session, UTC"`
	User     UserHash    `json:"user" doc:"Salted hash of the VPN user name"`
	Country  string      `json:"country" doc:"ISO 3166-1 code from a local GeoIP file; ZZ when unknown"`
	ISP      string      `json:"isp" doc:"Name of the autonomous system from a local GeoIP file; empty when unknown"`
	Location location.ID `json:"location" doc:"VPN location"`
	Protocol protocol.ID `json:"protocol" doc:"VPN protocol"`
}

// Record is the usage of one or more finished sessions with the same [Key].
// The amounts are megabytes (1,000,000 bytes) as the customer sees them: In is
// what the customer received, Out what the customer sent, both inside the
// tunnel.
type Record struct {
	Key
	In  uint64 `json:"mb_in" doc:"Megabytes received by the customer through the tunnel"`
	Out uint64 `json:"mb_out" doc:"Megabytes sent by the customer through the tunnel"`
}

// MaxISP is the longest ISP name in a record, in bytes.
const MaxISP = 64

// Validate returns what makes r impossible, or nil.
func (r Record) Validate() error {
	switch {
	case len(r.Country) != 2 || r.Country[0] < 'A' || r.Country[0] > 'Z' || r.Country[1] < 'A' || r.Country[1] > 'Z':
		return fmt.Errorf("usage record: country is not two capital letters")
	case len(r.ISP) > MaxISP:
		return fmt.Errorf("usage record: isp of %d bytes, want at most %d", len(r.ISP), MaxISP)
	case r.Location == 0:
		return fmt.Errorf("usage record: no location")
	case r.In > 1<<40 || r.Out > 1<<40:
		return fmt.Errorf("usage record: more than 2^40 megabytes")
	}
	return nil
}

// BatchID names one batch so that a repeated delivery is recognised. It is
// random.
type BatchID [16]byte

// NewBatchID returns a fresh id.
func NewBatchID() (id BatchID) {
	_, _ = rand.Read(id[:]) // crypto/rand.Read never fails
	return id
}

// String returns id in hexadecimal, 32 digits.
func (id BatchID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText implements [encoding.TextMarshaler].
func (id BatchID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (id *BatchID) UnmarshalText(text []byte) error { return unhex(id[:], text, "batch id") }

// MaxRecords is the largest number of records in one batch.
const MaxRecords = 4096

// Batch is one delivery of a server: merged records in random order. Pad fills
// its encoding to a multiple of [PadTo] bytes, so that the length on the wire
// tells little. A batch may be empty; servers send one every time.
type Batch struct {
	ID      BatchID  `json:"id" doc:"Random id; a batch with the id of the last one accepted is acknowledged again and not counted again"`
	Records []Record `json:"records" doc:"Merged records in random order" maxItems:"4096" nullable:"false"`
	Pad     string   `json:"pad" doc:"Spaces that bring the body to a multiple of 4096 bytes" maxLength:"4096"`
}

// PadTo is the block size of an encoded batch in bytes.
const PadTo = 4096

// Encode returns the JSON of b with Pad set.
func (b Batch) Encode() ([]byte, error) {
	if b.Records == nil {
		b.Records = []Record{}
	}
	b.Pad = ""
	bare, err := json.Marshal(b)
	if err != nil {
		return nil, fmt.Errorf("encode usage batch: %w", err)
	}
	b.Pad = pad(len(bare))
	return json.Marshal(b)
}

func pad(n int) string {
	p := make([]byte, (PadTo-n%PadTo)%PadTo)
	for i := range p {
		p[i] = ' '
	}
	return string(p)
}

// Validate returns what makes b impossible, or nil.
func (b Batch) Validate() error {
	if len(b.Records) > MaxRecords {
		return fmt.Errorf("usage batch: %d records, want at most %d", len(b.Records), MaxRecords)
	}
	seen := make(map[Key]bool, len(b.Records))
	for _, r := range b.Records {
		if err := r.Validate(); err != nil {
			return err
		}
		if seen[r.Key] {
			return fmt.Errorf("usage batch: one key stands twice")
		}
		seen[r.Key] = true
	}
	return nil
}
