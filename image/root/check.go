package root

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"

	"lethe/image/layout"
	"lethe/image/tree"
)

// programs are all files that the kernel would execute. There are no others, and each is
// started by somebody who is named here.
var programs = []struct{ path, by string }{
	{layout.Manager, "the initramfs"},
	{"usr/lib/systemd/systemd-executor", "systemd, to become a service"},
	{"usr/lib/systemd/systemd-shutdown", "systemd, at the end"},
	{"usr/lib/systemd/systemd-networkd", "its unit"},
	{"usr/bin/" + sealProgram, "its unit"},
	{"usr/bin/" + nodeProgram, "its unit"},
	{"usr/sbin/nft", nodeProgram},
	{"usr/sbin/openvpn", nodeProgram},
	{"usr/sbin/unbound", nodeProgram},
	{charon, nodeProgram},
	{interpreter, "the kernel, for each that is linked with libraries"},
}

// interpreter is the dynamic loader.
const interpreter = lib + "ld-linux-x86-64.so.2"

// writable are the directories that everybody may write to.
var writable = map[string]bool{"tmp": true, "var/tmp": true}

// inspect goes through a tree for what must not be in it, whoever put it there:
//
//   - a program that is not in the list, and one of the list that is missing
//   - a script, which would want an interpreter
//   - set-user-ID, set-group-ID, other owners than root, files that others may write
//   - devices, sockets, pipes
//   - symbolic links to nowhere
func inspect(t *tree.Tree) error {
	var errs []error
	bad := func(e *tree.Entry, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s, from %s, %s", e.Path, e.From, fmt.Sprintf(format, args...)))
	}
	runs := map[string]bool{}
	for _, p := range programs {
		runs[p.path] = true
		if e := t.Get(p.path); e == nil || e.Mode != 0o755 {
			errs = append(errs, fmt.Errorf("program %s is missing", p.path))
		}
	}
	for e := range t.All() {
		mode := e.Mode.Perm()
		switch {
		case e.UID != 0 || e.GID != 0:
			bad(e, "belongs to %d:%d", e.UID, e.GID)
		case e.Mode&fs.ModeSymlink != 0:
			if t.Resolve(e.Path) == nil {
				bad(e, "leads to %s, which is not there", e.Link)
			}
		case e.Mode.IsDir():
			if mode&0o022 != 0 && !writable[e.Path] || e.Mode&(fs.ModeSetuid|fs.ModeSetgid) != 0 {
				bad(e, "is a directory with mode %v", e.Mode)
			}
		case !e.Mode.IsRegular():
			bad(e, "is neither file nor directory: %v", e.Mode)
		case e.Mode != mode || mode&0o022 != 0:
			bad(e, "has mode %v", e.Mode)
		case mode&0o111 != 0 && !runs[e.Path]:
			bad(e, "is executable")
		default:
			b, err := e.Read()
			if err != nil {
				return err
			}
			if bytes.HasPrefix(b, []byte("#!")) {
				bad(e, "is a script")
			}
		}
	}
	return errors.Join(errs...)
}

// libraryMode returns the mode of a package's file in the root: libraries are not executed.
func libraryMode(at string, mode uint32) fs.FileMode {
	if isLibrary(at) && at != interpreter {
		mode &^= 0o111
	}
	return fs.FileMode(mode)
}
