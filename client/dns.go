package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"lethe/fault"
)

// undo is what must be put back, kept in a file from before the first change until after the last
// restoration, so that neither a crash nor a power cut loses the machine's own settings.
type undo struct {
	path string // of the file; not encoded

	Version  int               `json:"version"`
	Settings map[string]string `json:"settings"` // kernel settings by path
	Resolv   *savedFile        `json:"resolv,omitempty"`
}

// savedFile is resolv.conf as it was and as we wrote it.
type savedFile struct {
	Path    string      `json:"path"` // with symbolic links followed
	Existed bool        `json:"existed"`
	Mode    fs.FileMode `json:"mode"`
	Content []byte      `json:"content"`
	Ours    []byte      `json:"ours"`
}

const undoVersion = 1

// loadUndo reads the file; an absent one gives nil.
func loadUndo(path string) (*undo, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	u := &undo{path: path}
	if err == nil {
		err = json.Unmarshal(b, u)
	}
	if err == nil && u.Version != undoVersion {
		err = fmt.Errorf("version %d, want %d", u.Version, undoVersion)
	}
	if err != nil {
		return nil, fault.Wrap(fault.Internal, "the record of what to restore cannot be read", err).
			WithHint("look at " + path + ", restore /etc/resolv.conf from it by hand and delete it")
	}
	return u, nil
}

func (u *undo) save() error {
	b, err := json.Marshal(u)
	if err == nil {
		err = replaceFile(u.path, b, 0o600)
	}
	if err != nil {
		return fault.Wrap(fault.Full, "the record of what to restore cannot be written", err).
			WithHint("is the disk full or " + filepath.Dir(u.path) + " not writable?")
	}
	return nil
}

// replaceFile writes a file so that after a crash it is the old one or the new one. A bind mount
// cannot be renamed over (as in containers and `ip netns exec`): it is written in place.
func replaceFile(path string, content []byte, mode fs.FileMode) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".lethe-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(content)
	err = errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close())
	if err != nil {
		return err
	}
	err = os.Rename(tmp.Name(), path)
	if errors.Is(err, syscall.EBUSY) || errors.Is(err, syscall.EXDEV) {
		return os.WriteFile(path, content, mode)
	}
	return err
}

// names is the machine's resolver configuration.
type names struct {
	resolvConf string
	resolvectl string // path, empty when not installed

	doubted []byte // what stood in resolv.conf when it was last found changed
}

// resolved reports whether systemd-resolved keeps resolv.conf (systemd-resolved.service(8)).
func (n *names) resolved() bool {
	target, err := filepath.EvalSymlinks(n.resolvConf)
	return err == nil && n.resolvectl != "" && strings.Contains(target, "/systemd/resolve/")
}

// use makes the tunnel's resolvers the machine's only ones. It may be called again: whatever
// somebody wrote meanwhile is then what will be restored. As it may be half written, that takes two
// calls which find the same.
func (n *names) use(ctx context.Context, f *face, u *undo) error {
	if n.resolved() {
		// The settings belong to the device and go with it.
		args := [][]string{{"dns", f.device}, {"domain", f.device, "~."}, {"default-route", f.device, "yes"}}
		for _, a := range f.dns {
			args[0] = append(args[0], a.String())
		}
		for _, a := range args {
			if _, err := run(ctx, "", n.resolvectl, a...); err != nil {
				return fault.Wrap(fault.Internal, "dns: systemd-resolved did not take the tunnel's resolvers", err)
			}
		}
		return nil
	}
	path, err := filepath.EvalSymlinks(n.resolvConf)
	if err != nil {
		path = n.resolvConf
	}
	was, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.Wrap(fault.Internal, "dns: resolv.conf cannot be read", err)
	}
	ours := resolvText(f.dns)
	if bytes.Equal(was, ours) {
		return nil
	}
	if u.Resolv == nil || !bytes.Equal(was, u.Resolv.Ours) {
		if u.Resolv != nil && !bytes.Equal(was, n.doubted) {
			n.doubted = was
			return nil
		}
		u.Resolv = &savedFile{Path: path, Existed: err == nil, Mode: 0o644, Content: was}
		if fi, err := os.Stat(path); err == nil {
			u.Resolv.Mode = fi.Mode().Perm()
		}
	}
	u.Resolv.Ours = ours
	if err := u.save(); err != nil {
		return err
	}
	if err := replaceFile(path, ours, u.Resolv.Mode); err != nil {
		return fault.Wrap(fault.Internal, "dns: resolv.conf cannot be written", err)
	}
	return nil
}

func resolvText(dns []netip.Addr) []byte {
	var b strings.Builder
	b.WriteString("# Written by lethe while connected; `lethe disconnect` restores the former content.\n")
	for _, a := range dns {
		b.WriteString("nameserver " + a.String() + "\n")
	}
	return []byte(b.String())
}

// restore puts resolv.conf back byte for byte, unless somebody has changed it since.
func (s *savedFile) restore() error {
	if s == nil {
		return nil
	}
	now, err := os.ReadFile(s.Path)
	switch {
	case err == nil && !bytes.Equal(now, s.Ours), errors.Is(err, fs.ErrNotExist):
		return nil
	case s.Existed:
		err = replaceFile(s.Path, s.Content, s.Mode)
	default:
		err = os.Remove(s.Path)
	}
	if err != nil {
		return fault.Wrap(fault.Internal, "dns: resolv.conf cannot be restored", err)
	}
	return nil
}
