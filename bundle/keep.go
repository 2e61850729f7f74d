package bundle

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"os"
	"slices"
	"strings"

	"lethe/memfd"
)

// Keeper holds open files for a later instance of this program: the service
// manager's descriptor store. A name has one file.
type Keeper interface {
	Store(name string, f *os.File) error
	Remove(name string) error
}

// What is kept: the content of each file, and the statements that name them.
// Both are named by their content, so that nothing is ever replaced: what is new
// is added, then what is old is removed.
const (
	keptFile       = "bundle-file-"
	keptStatements = "bundle-statements-"
)

// statements are the signed statements that led to a Set, as they came.
type statements struct {
	Roots     [][]byte `json:"roots"` // that followed [Config].Root, in their order
	Freshness []byte   `json:"freshness"`
	Manifest  []byte   `json:"manifest"`
}

// maxStatements bounds the encoding of statements: what they may be, in base64.
const maxStatements = 2 * (MaxRotations*MaxRootSize + MaxFreshnessSize + MaxManifestSize)

// Keep leaves the Set in use with k, for the next instance's [Client.Restore], and
// removes what was left before and is not needed any more. It does nothing when
// nothing has changed since the last Keep. A process that dies at any moment of it has
// left a whole Set, the one before or this one. After an error the next Keep
// goes on.
//
// Always the same k must be given.
func (c *Client) Keep(k Keeper) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current == nil || !c.unkept {
		return nil
	}
	text, err := json.Marshal(c.statements)
	if err != nil {
		return err
	}
	f, err := memfd.Sealed("lethe-bundle", func(w io.Writer) error { _, err := w.Write(text); return err })
	if err != nil {
		return full(err)
	}
	defer f.Close()
	wanted := map[string]bool{}
	leave := func(name string, f *os.File) error {
		wanted[name] = true
		if c.kept[name] {
			return nil
		}
		if err := k.Store(name, f); err != nil {
			return err
		}
		c.kept[name] = true
		return nil
	}
	for _, file := range c.current.Files() {
		_, digest := file.Content()
		if err := leave(keptFile+digest.String(), c.current.files[file.Name].file); err != nil {
			return err
		}
	}
	if err := leave(keptStatements+Digest(sha256.Sum256(text)).String(), f); err != nil {
		return err
	}
	for name := range c.kept {
		if !wanted[name] {
			if err := k.Remove(name); err != nil {
				return err
			}
			delete(c.kept, name)
		}
	}
	c.unkept = false
	return nil
}

// Restore puts the newest Set in use that an earlier instance of this program has left
// by [Client.Keep] and that use accepts, and reports whether there was one. It is
// called before the first Update. The Set is use's for the time of the call. Restore
// closes the files with its names in kept and leaves the others alone.
//
// All of it is verified again, from [Config].Root and the floor to the digest of each
// file. Only the freshness statement may have ended: it was good when the Set was
// taken up, by this server since its boot, and a Set that was taken up is good until
// its manifest ends (doc/bundle.md). Its version counts as accepted, so nothing
// older is taken up later.
func (c *Client) Restore(kept map[string]*os.File, use func(*Set) error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	var found []former
	for name, f := range kept {
		if !strings.HasPrefix(name, keptFile) && !strings.HasPrefix(name, keptStatements) {
			continue
		}
		defer f.Close()
		c.kept[name] = true // the next Keep removes what it does not need
		if !strings.HasPrefix(name, keptStatements) {
			continue
		}
		// Several only if the former instance died between leaving the new one and
		// removing the old one.
		if o, err := c.takeOver(f, kept); err == nil {
			found = append(found, o)
		}
	}
	slices.SortFunc(found, func(a, b former) int { return cmp.Compare(b.set.Version(), a.set.Version()) })
	for _, o := range found {
		if c.current == nil && use(o.set) == nil {
			c.trust, c.statements, c.current = o.trust, o.said, o.set
			c.unkept = true // there may be more than is needed
		} else {
			_ = o.set.Close()
		}
	}
	return c.current != nil
}

// former is what an earlier instance worked with.
type former struct {
	trust *Trust
	said  statements
	set   *Set
}

// takeOver makes the Set of statements that were kept.
func (c *Client) takeOver(f *os.File, kept map[string]*os.File) (o former, err error) {
	text, unmap, err := memfd.Map(f)
	if err != nil {
		return o, err
	}
	defer unmap()
	if o.said, err = readStatements(text); err != nil {
		return o, err
	}
	if o.trust, err = NewTrust(c.root, c.trust.floor, c.trust.now); err != nil {
		return o, err
	}
	for _, r := range o.said.Roots {
		if err := o.trust.Rotate(r); err != nil {
			return o, err
		}
	}
	fresh, err := o.trust.taken(o.said.Freshness)
	if err != nil {
		return o, err
	}
	m, err := o.trust.Manifest(o.said.Manifest, fresh)
	if err != nil {
		return o, err
	}
	set := &Set{manifest: m, files: make(map[string]*memory, len(m.Files))}
	set.refs.Store(1)
	for _, file := range m.Files {
		content, err := readMemory(kept, file)
		if err != nil {
			_ = set.Close()
			return o, err
		}
		set.files[file.Name] = content
	}
	o.trust.Accept(fresh)
	o.set = set
	return o, nil
}

// readStatements reads what Keep has written, whose one encoding it is.
func readStatements(text []byte) (s statements, err error) {
	if len(text) > maxStatements {
		return s, refuse(TooLarge, nil)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return s, refuse(Malformed, err)
	}
	if again, err := json.Marshal(s); err != nil || !bytes.Equal(again, text) {
		return s, refuse(NotCanonical, err)
	}
	if len(s.Roots) > MaxRotations {
		return s, refuse(TooLarge, nil)
	}
	return s, nil
}

// readMemory maps and verifies the content of a file that was kept.
func readMemory(kept map[string]*os.File, file File) (*memory, error) {
	size, digest := file.Content()
	f := kept[keptFile+digest.String()]
	if f == nil {
		return nil, errNotKept
	}
	m, err := mapMemory(f)
	if err != nil {
		return nil, err
	}
	if int64(len(m.data)) != size || Digest(sha256.Sum256(m.data)) != digest {
		m.release()
		return nil, refuse(WrongContent, nil)
	}
	return m, nil
}

var errNotKept = errors.New("bundle: a file was not kept")
