package build

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"lethe/fault"
	"lethe/image/tree"
)

// Source is Lethe's source as a commit has it.
type Source struct {
	Commit string // 40 or 64 hexadecimal digits
	Dirty  bool   // Tree is not the commit's
	Tree   string // git's name for the content
	Epoch  time.Time
	Files  tree.Tree
}

// maxSource bounds one file of the source.
const maxSource = 64 << 20

// ReadSource reads what git has under the commit that dir is at. Nothing else in
// the directory counts, neither files that git does not know nor git's filters and
// attributes, and every object is hashed again, because git itself does not do that
// when it reads. A tree with changes that are not committed is fault.Conflict; with
// dirty they are taken, too.
func ReadSource(ctx context.Context, dir string, dirty bool) (*Source, error) {
	g := git{ctx: ctx, dir: dir}
	commit, err := g.line("rev-parse", "--verify", "HEAD^{commit}")
	if err != nil {
		return nil, fault.Wrap(fault.NotFound, "the tree has no commit that git can read: "+err.Error(), err).WithHint("build in a clone of Lethe's repository, with git installed")
	}
	changes, err := g.line("status", "--porcelain", "--untracked-files=normal")
	if err != nil {
		return nil, err
	}
	if changes != "" && !dirty {
		first, _, _ := strings.Cut(changes, "\n")
		return nil, fault.New(fault.Conflict, "the tree has changes that are not committed, such as"+strings.TrimPrefix(first, first[:2])).
			WithHint("commit them, or build something that is no release with --dirty")
	}
	s := &Source{Commit: commit, Dirty: changes != ""}
	o := &objects{git: g}
	if err := o.open(); err != nil {
		return nil, err
	}
	defer o.close()
	text, err := o.read("commit", commit)
	if err != nil {
		return nil, err
	}
	if s.Tree, s.Epoch, err = parseCommit(text); err != nil {
		return nil, broken(commit)
	}
	if s.Dirty {
		if s.Tree, err = g.snapshot(); err != nil {
			return nil, err
		}
		if err := o.reopen(); err != nil {
			return nil, err
		}
	}
	return s, o.walk(&s.Files, s.Tree, "")
}

// git runs git in a directory.
type git struct {
	ctx context.Context
	dir string
	env []string
}

func (g git) command(args ...string) *exec.Cmd {
	c := exec.CommandContext(g.ctx, "git", append([]string{"--no-optional-locks", "--no-replace-objects", "-c", "core.fsmonitor=false", "-C", g.dir}, args...)...)
	// GIT_DIR and its kind would lead elsewhere.
	c.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "GIT_") })
	c.Env = append(append(c.Env, "LC_ALL=C"), g.env...)
	return c
}

// line returns what git prints, without the newline at its end.
func (g git) line(args ...string) (string, error) {
	c := g.command(args...)
	var errs bytes.Buffer
	c.Stderr = &errs
	out, err := c.Output()
	if err != nil {
		if g.ctx.Err() != nil {
			return "", g.ctx.Err()
		}
		return "", fmt.Errorf("git %s: %v: %.300s", args[0], err, strings.TrimSpace(errs.String()))
	}
	return strings.TrimRight(string(out), "\n"), nil
}

// snapshot makes a tree object of the files as they are, without touching index or history.
func (g git) snapshot() (string, error) {
	index, err := os.CreateTemp("", "lethe-index-*")
	if err != nil {
		return "", err
	}
	index.Close()
	os.Remove(index.Name()) // git wants to make it
	defer os.Remove(index.Name())
	g.env = append(g.env, "GIT_INDEX_FILE="+index.Name())
	for _, args := range [][]string{{"read-tree", "HEAD"}, {"add", "--all", "."}} {
		if _, err := g.line(args...); err != nil {
			return "", err
		}
	}
	return g.line("write-tree")
}

func broken(id string) error {
	return fault.New(fault.Untrusted, "git object "+id+" of the source is damaged").WithHint("git fsck tells more; take a new clone")
}

// parseCommit returns a commit's tree and its committer's time.
func parseCommit(b []byte) (tree string, epoch time.Time, err error) {
	header, _, _ := strings.Cut(string(b), "\n\n")
	for line := range strings.Lines(header) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		switch key {
		case "tree":
			tree = value
		case "committer":
			fields := strings.Fields(value[strings.LastIndex(value, ">")+1:])
			if len(fields) == 0 {
				return "", epoch, errors.New("committer without a time")
			}
			seconds, err := strconv.ParseInt(fields[0], 10, 64)
			if err != nil || seconds < 1 {
				return "", epoch, errors.New("committer without a time")
			}
			epoch = time.Unix(seconds, 0).UTC()
		}
	}
	if tree == "" || epoch.IsZero() {
		return "", epoch, errors.New("commit without tree or time")
	}
	return tree, epoch, nil
}

// objects reads objects through one `git cat-file --batch`.
type objects struct {
	git git
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func (o *objects) open() (err error) {
	o.cmd = o.git.command("cat-file", "--batch")
	if o.in, err = o.cmd.StdinPipe(); err != nil {
		return err
	}
	out, err := o.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	o.out = bufio.NewReader(out)
	return o.cmd.Start()
}

func (o *objects) close() {
	o.in.Close()
	_ = o.cmd.Wait() // what it had to say was read
}

func (o *objects) reopen() error {
	o.close()
	return o.open()
}

// read returns an object whose content has the digest that is its name.
func (o *objects) read(kind, id string) ([]byte, error) {
	if _, err := fmt.Fprintln(o.in, id); err != nil {
		return nil, o.trouble(id)
	}
	header, err := o.out.ReadString('\n')
	fields := strings.Fields(header)
	if err != nil || len(fields) != 3 || fields[1] != kind {
		return nil, o.trouble(id)
	}
	size, err := strconv.ParseInt(fields[2], 10, 64)
	if err != nil || size < 0 || size > maxSource {
		return nil, o.trouble(id)
	}
	b := make([]byte, size+1)
	if _, err := io.ReadFull(o.out, b); err != nil {
		return nil, o.trouble(id)
	}
	b = b[:size]
	var h hash.Hash
	switch len(id) {
	case 2 * sha1.Size:
		h = sha1.New() // the name that git gave it; who builds from it is told by the whole statement
	case 2 * sha256.Size:
		h = sha256.New()
	default:
		return nil, broken(id)
	}
	fmt.Fprintf(h, "%s %d\x00", kind, size)
	h.Write(b)
	if fmt.Sprintf("%x", h.Sum(nil)) != id {
		return nil, broken(id)
	}
	return b, nil
}

func (o *objects) trouble(id string) error {
	if err := o.git.ctx.Err(); err != nil {
		return err
	}
	return broken(id)
}

// walk adds the files of a tree object (gitformat-pack(5) has no word on it; git's
// Documentation/gitformat-tree is the object's content: mode, space, name, NUL, digest).
func (o *objects) walk(t *tree.Tree, id, dir string) error {
	b, err := o.read("tree", id)
	if err != nil {
		return err
	}
	for len(b) > 0 {
		head, rest, ok := bytes.Cut(b, []byte{0})
		mode, name, _ := strings.Cut(string(head), " ")
		if !ok || len(rest) < len(id)/2 || name == "" || strings.Contains(name, "/") {
			return broken(id)
		}
		child := fmt.Sprintf("%x", rest[:len(id)/2])
		b = rest[len(id)/2:]
		p := path.Join(dir, name)
		switch mode {
		case "40000":
			err = o.walk(t, child, p)
		case "100644", "100755":
			var content []byte
			if content, err = o.read("blob", child); err == nil {
				perm := os.FileMode(0o644)
				if mode == "100755" {
					perm = 0o755
				}
				err = t.File(p, perm, "git", content)
			}
		default: // links and submodules: the tree has none
			err = fault.New(fault.Invalid, fmt.Sprintf("%s in the source is neither file nor directory", p))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// write puts a tree's files and directories below dir.
func write(t *tree.Tree, dir string) error {
	for e := range t.All() {
		at := filepath.Join(dir, filepath.FromSlash(e.Path))
		if e.Mode.IsDir() {
			if err := os.MkdirAll(at, 0o755); err != nil {
				return err
			}
			continue
		}
		b, err := e.Read()
		if err != nil {
			return err
		}
		if err := os.WriteFile(at, b, 0o644); err != nil {
			return err
		}
	}
	return nil
}
