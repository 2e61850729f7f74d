package build

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"crypto/sha256"

	"lethe/fault"
	"lethe/image/lock"
	"lethe/image/release"
)

// outputs are the files that a build is about to leave, in the order in which they appear.
type outputs []output

type output struct {
	name   string
	path   string // where it is meanwhile; or
	text   []byte // what it holds
	digest [sha256.Size]byte
}

func (o *outputs) bytes(name string, b []byte) {
	*o = append(*o, output{name: name, text: b, digest: digest(b)})
}
func (o *outputs) file(name, path string, d [sha256.Size]byte) {
	*o = append(*o, output{name: name, path: path, digest: d})
}

// publish gives the files their names in dir. A file that is there with the same
// content stays; with another one nothing is published.
func (o outputs) publish(dir string) error {
	fresh := o[:0:0]
	for _, f := range o {
		same, err := f.there(filepath.Join(dir, f.name))
		if err != nil {
			return err
		}
		if !same {
			fresh = append(fresh, f)
		}
	}
	for _, f := range fresh {
		if err := f.publish(filepath.Join(dir, f.name)); err != nil {
			return trouble(f.name, err)
		}
	}
	return nil
}

func (f output) there(path string) (bool, error) {
	have, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, trouble(f.name, err)
	}
	defer have.Close()
	h := sha256.New()
	if _, err := io.Copy(h, have); err != nil {
		return false, trouble(f.name, err)
	}
	if [sha256.Size]byte(h.Sum(nil)) != f.digest {
		return false, trouble(f.name, fs.ErrExist)
	}
	return true, nil
}

func (f output) publish(path string) error {
	if f.path == "" {
		t, err := os.CreateTemp(filepath.Dir(path), scratch+"*")
		if err != nil {
			return err
		}
		defer os.Remove(t.Name())
		_, err = t.Write(f.text)
		if err = errors.Join(err, t.Close()); err != nil {
			return err
		}
		f.path = t.Name()
	}
	t, err := os.OpenFile(f.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(t.Chmod(0o644), t.Sync(), t.Close()); err != nil {
		return err
	}
	// A link, unlike a rename, never replaces what somebody else has made meanwhile.
	return os.Link(f.path, path)
}

func trouble(name string, err error) error {
	switch {
	case errors.Is(err, fs.ErrExist):
		return fault.Wrap(fault.Conflict, name+" is there already, with another content", err).WithHint("name another place with --out, or another version with --version")
	case errors.Is(err, fs.ErrPermission):
		return fault.Wrap(fault.Denied, name+" cannot be written", err).WithHint("name another place with --out")
	}
	return err
}

// state writes what the builder states: nothing when the source was not that of the commit.
func (j *job) state(all []*flavour) (string, error) {
	if j.source.Dirty {
		return "", nil
	}
	commit := release.DigestSet{GitCommit: j.source.Commit}
	inputs := []release.Input{{URI: "git", Digest: commit}}
	text, err := j.source.Files.Get(lock.FileName).Read()
	if err != nil {
		return "", err
	}
	add := func(uri string, d [sha256.Size]byte) {
		sum := release.Digest(d)
		inputs = append(inputs, release.Input{URI: uri, Digest: release.DigestSet{SHA256: &sum}})
	}
	add(lock.FileName, digest(text))
	for _, u := range j.used() {
		add(u.uri, u.sha256)
	}
	slices.SortFunc(inputs, func(a, b release.Input) int { return strings.Compare(a.URI, b.URI) })
	var subjects []release.Subject
	var names []string
	for _, f := range all {
		subjects = append(subjects, release.Subject{Name: j.file(f.name, ".iso"), Digest: release.DigestSet{SHA256: &f.whole}, Annotations: f.image})
		names = append(names, f.name)
	}
	name := j.Name
	if name == "" {
		name = "anybody"
	}
	s := release.NewStatement(name, release.Parameters{Version: j.version, Commit: j.source.Commit, Epoch: j.source.Epoch.Unix()}, inputs, subjects)
	if err := s.Validate(); err != nil {
		return "", err
	}
	file := j.file(strings.Join(names, "+"), ".statement.json")
	var b []byte
	if j.Key != nil {
		b, err = release.SignStatement(s, j.Key)
	} else {
		file = strings.TrimSuffix(file, ".json") + ".unsigned.json"
		b, err = json.Marshal(s)
	}
	if err != nil {
		return "", err
	}
	j.out.bytes(file, b)
	return file, nil
}
