package activator

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lethe/attest"
	"lethe/dsse"
	"lethe/fault"
)

// Kind says what a record decides.
type Kind string

// The kinds.
const (
	Began          Kind = "began"           // the first: who may decide, and whom releases come from
	ProfileSet     Kind = "profile-set"     // rules for a kind of machine
	Enrolled       Kind = "enrolled"        // a server was seen; nobody has confirmed it
	Confirmed      Kind = "confirmed"       // an operator says that it is the machine at that place
	ServerRevoked  Kind = "server-revoked"  // it is activated no more
	Admitted       Kind = "admitted"        // a release may be activated
	ReleaseRevoked Kind = "release-revoked" // it may no more
	FloorRaised    Kind = "floor-raised"    // no lower version may
	Accepted       Kind = "accepted"        // a server attested itself; written before secrets leave
	Refused        Kind = "refused"         // a server did not
)

// Record is one decision: a line of JSON in its one encoding. It speaks of servers
// and releases only; a customer does not exist here.
type Record struct {
	Number   uint64      `json:"number"`   // from 1
	Previous dsse.Digest `json:"previous"` // SHA-256 of the line before, without its line feed; zero in the first
	Time     time.Time   `json:"time"`     // UTC, whole seconds, never before the last one
	Kind     Kind        `json:"kind"`

	Server  string           `json:"server,omitempty"`  // of all kinds about a server
	Version uint64           `json:"version,omitempty"` // of a release, or the floor
	Change  json.RawMessage  `json:"change,omitempty"`  // envelope of the [Change] that two operators signed
	Begin   *Beginning       `json:"beginning,omitempty"`
	Profile *attest.Profile  `json:"profile,omitempty"`
	Enrol   *Enrolment       `json:"enrolment,omitempty"`
	Release *ReleaseFiles    `json:"release,omitempty"`
	Accept  *Acceptance      `json:"acceptance,omitempty"`
	Refuse  *RefusalRecorded `json:"refusal,omitempty"`
}

// Beginning is what an activator believes for as long as it exists.
type Beginning struct {
	Operators []string        `json:"operators"` // public keys in PEM, of as many people
	Trust     json.RawMessage `json:"trust"`     // whom releases come from; see release.ParsePolicy
	Key       []byte          `json:"key"`       // Ed25519, signs heads of the record
}

// Enrolment is a server as it was first seen.
type Enrolment struct {
	Address       netip.AddrPort `json:"address"` // where it waits
	Flavour       string         `json:"flavour"` // of the image that it must run
	Profile       string         `json:"profile"`
	EK            dsse.Digest    `json:"ek"`             // of its endorsement key
	EKCertificate []byte         `json:"ek_certificate"` // by the TPM's maker; empty if there is none
	Public        []netip.Addr   `json:"public"`         // addresses that customers dial, for its certificate
}

// ReleaseFiles are a release's manifest and the statements it rests on, as they were signed.
type ReleaseFiles struct {
	Manifest   []byte   `json:"manifest"`
	Statements [][]byte `json:"statements"`
}

// Acceptance is an attestation that was accepted.
type Acceptance struct {
	Memory attest.Memory `json:"memory"`
	Until  time.Time     `json:"until"` // when the certificates end
}

// RefusalRecorded is one that was not.
type RefusalRecorded struct {
	Code   string `json:"code"` // of an [attest.Reason]
	Detail string `json:"detail,omitempty"`
}

// Files of the store.
const (
	recordFile = "record.jsonl"
	headFile   = "head"
	seenFile   = "seen.head" // the latest head of ours that a server has shown
	lockFile   = "lock"
)

// maxLine bounds a record: a release with its statements.
const maxLine = 32 << 20

// Store is the one file that keeps the record. It is only appended to, and what the activator knows is what
// replaying it gives. It is safe for concurrent use, also by several processes.
type Store struct {
	dir     string
	key     ed25519.PrivateKey // signs heads; nil for reading only
	witness string             // a second place for the head; "" for none

	mu    sync.Mutex // guards what follows, and the file's lock in this process
	state *State
	size  int64 // bytes of the file that are in state
}

// open reads the whole record. With a nil key nothing can be appended.
func open(dir string, key ed25519.PrivateKey, witness string) (*Store, error) {
	s := &Store{dir: dir, key: key, witness: witness, state: newState()}
	return s, s.View(func(*State) error { return nil })
}

// locked runs do with the file's lock held and the state up to date.
func (s *Store) locked(how int, do func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, err := os.OpenFile(filepath.Join(s.dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return storeFault(err)
	}
	defer l.Close() // unlocks
	if err := unix.Flock(int(l.Fd()), how); err != nil {
		return storeFault(err)
	}
	if err := s.catchUp(); err != nil {
		return err
	}
	return do()
}

func storeFault(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fault.Wrap(fault.NotFound, "there is no activator in this directory", err).WithHint("`lethe-activator init` makes one")
	case errors.Is(err, unix.ENOSPC):
		return fault.Wrap(fault.Full, "the disk is full; nothing was decided", err)
	}
	return fault.Wrap(fault.Unavailable, "the record cannot be read or written", err)
}

// damaged is a record that says what it cannot.
func damaged(number uint64, err error) error {
	return fault.Wrap(fault.Untrusted, fmt.Sprintf("the record is damaged at number %d: %v", number, err), err).
		WithHint("restore the newest backup; whatever happened since is on the servers, which will say so")
}

// catchUp reads what was appended since, by this process or another.
func (s *Store) catchUp() error {
	f, err := os.Open(filepath.Join(s.dir, recordFile))
	if err != nil {
		return storeFault(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return storeFault(err)
	}
	if info.Size() < s.size {
		return damaged(s.state.number, errors.New("it has become shorter"))
	}
	rest, err := io.ReadAll(io.NewSectionReader(f, s.size, info.Size()-s.size))
	if err != nil {
		return storeFault(err)
	}
	for len(rest) > 0 {
		end := bytes.IndexByte(rest, '\n')
		if end < 0 {
			break // an append was cut off; nothing was decided by it
		}
		if err := s.state.read(rest[:end]); err != nil {
			return damaged(s.state.number+1, err)
		}
		s.size += int64(end) + 1
		rest = rest[end+1:]
	}
	return s.checkHeads()
}

// checkHeads compares with every head that was ever shown to somebody: the record must hold them.
func (s *Store) checkHeads() error {
	for _, path := range []string{filepath.Join(s.dir, headFile), filepath.Join(s.dir, seenFile), s.witness} {
		if path == "" {
			continue
		}
		b, err := os.ReadFile(path)
		// Without a record there is no head, while the first one is made.
		if errors.Is(err, fs.ErrNotExist) && (path != filepath.Join(s.dir, headFile) || s.state.number == 0) {
			continue
		}
		if err != nil {
			return storeFault(err)
		}
		h, err := attest.ParseHead(b)
		if err != nil || !h.Key.Equal(s.state.key) {
			return damaged(s.state.number, fmt.Errorf("the head in %s is not signed by this activator", filepath.Base(path)))
		}
		if !s.state.knows(h) {
			return errRestored(h.Number)
		}
	}
	return nil
}

func errRestored(number uint64) error {
	return fault.New(fault.Untrusted, fmt.Sprintf("this activator was restored from an old backup: its record once had number %d", number)).
		WithHint("restore the newest backup; until then nothing is activated")
}

// View runs do with what is known now. do must not keep the state.
func (s *Store) View(do func(*State) error) error {
	return s.locked(unix.LOCK_SH, func() error { return do(s.state) })
}

// maxBack is how far our clock may go back without a decision being refused.
const maxBack = time.Minute

// Append decides: do returns the decision, or an error and nothing happens. When Append returns
// nil, the decision is on the disk.
func (s *Store) Append(now time.Time, do func(*State) (*Record, error)) error {
	return s.locked(unix.LOCK_EX, func() error {
		r, err := do(s.state)
		if err != nil {
			return err
		}
		if s.key == nil {
			return fault.New(fault.Denied, "the key of the record is not here")
		}
		now := now.UTC().Truncate(time.Second)
		if now.Before(s.state.last) {
			if s.state.last.Sub(now) > maxBack {
				return fault.New(fault.Unavailable, "this machine's clock is before the last decision").WithHint("set the clock")
			}
			now = s.state.last
		}
		r.Number, r.Previous, r.Time = s.state.number+1, s.state.hash, now
		line, err := json.Marshal(r)
		if err != nil || len(line) > maxLine {
			return errors.Join(fault.New(fault.Invalid, "too large for the record"), err)
		}
		// What would not be read again is not written.
		if err := s.state.read(line); err != nil {
			return err
		}
		if err := s.write(append(line, '\n')); err != nil {
			s.state, s.size = newState(), 0 // as it is on the disk, at the next call
			return storeFault(err)
		}
		return s.writeHead()
	})
}

// write appends a line and waits until it is on the disk. What an earlier append left unfinished goes.
func (s *Store) write(line []byte) (err error) {
	f, err := os.OpenFile(filepath.Join(s.dir, recordFile), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Truncate(s.size); err != nil {
		return err
	}
	if _, err := f.WriteAt(line, s.size); err != nil {
		return errors.Join(err, f.Truncate(s.size))
	}
	if err := f.Sync(); err != nil {
		return err
	}
	s.size += int64(len(line))
	return nil
}

// writeHead signs the head and puts it where it is looked for.
func (s *Store) writeHead() error {
	b := s.state.head().Sign(s.key)
	paths := []string{filepath.Join(s.dir, headFile)}
	if s.witness != "" {
		paths = append(paths, s.witness)
	}
	for _, path := range paths {
		if err := replace(path, b); err != nil {
			return fault.Wrap(fault.Unavailable, "the decision stands, but its head cannot be written to "+path, err)
		}
	}
	return nil
}

// seen keeps a head of ours that a server has shown and that the record lacks.
func (s *Store) seen(head []byte) error { return replace(filepath.Join(s.dir, seenFile), head) }

// replace writes a small file as a whole.
func replace(path string, b []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails once it has its name
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// lineHash names a line of the record.
func lineHash(line []byte) dsse.Digest { return sha256.Sum256(line) }
