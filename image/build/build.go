// Package build turns the lock, a store and a commit of Lethe's source into ISOs that
// start a VPN server, the same bytes for everybody.
//
// The way of the bytes:
//
//	store ── tools, toolchain ──► tree of tools (package sandbox runs them)
//	git objects ──► source ──► programs, static, by the toolchain
//	store ── Debian packages ──► package root decides what enters ◄── programs
//	    root ──► squashfs ──► its digest into the initramfs
//	    stub + kernel + command line + initramfs ──► unified kernel image ──► FAT ──► ISO
//
// Every input is hashed when it is read, git's objects too. Nothing else gets in: no
// file, time, name or number of this machine, and no network. Beside the ISO stand what
// a builder states about it (package release) and lists of what is inside. doc/image.md is the manual.
package build

import (
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"lethe/fault"
	"lethe/image/lock"
	"lethe/image/root"
	"lethe/image/sandbox"
	"lethe/image/store"
)

// Flavours are the images that there are. Those with [Lab] at their end are for tests: their
// programs let anybody hand them secrets, and no release trusts them.
var Flavours = []string{lock.Hardware, lock.Hardware + Lab, lock.VM, lock.VM + Lab}

// Lab ends the name of a flavour for tests.
const Lab = "-lab"

// Builder is what a build is made of.
type Builder struct {
	Tree     string // a clone of the source
	Dirty    bool   // take changes that are not committed; nothing is stated then
	Store    *store.Store
	Fetch    func(context.Context, *lock.Lock) error // fills the store when something is not there; nil: nobody does
	Out      string                                  // directory of what is made; it must exist
	Flavours []string                                // of [Flavours]
	Version  uint64                                  // 0: the commit's time, as 202611231808
	Name     string                                  // the builder's, for the statement
	Key      crypto.Signer                           // signs the statement; nil: it is not signed
	Say      func(step string)                       // is told what was done; nil: nobody
	Root     func(root.Input) (*root.Result, error)  // decides what enters; nil: [root.Make]
}

// Made is what a build made.
type Made struct {
	Version   uint64  `json:"version"`
	Commit    string  `json:"commit"`
	Dirty     bool    `json:"dirty,omitempty"`
	Epoch     int64   `json:"epoch"`
	Images    []Image `json:"images"`
	Statement string  `json:"statement,omitempty"` // file
}

// Image is one ISO that was made.
type Image struct {
	Flavour string `json:"flavour"`
	File    string `json:"file"`
	Size    int64  `json:"size"`
	SHA256  string `json:"sha256"`
}

// space is what a build needs on the disk beside the store, in bytes: 0.7 GB measured for three flavours.
const space = 1 << 30

func digest(b []byte) [sha256.Size]byte { return sha256.Sum256(b) }

func parallel() int { return max(1, runtime.NumCPU()) }

// job is one run of a Builder.
type job struct {
	*Builder
	source  *Source
	lock    *lock.Lock
	version uint64
	dir     string // of this run, below Out
	tools   sandbox.Tree
	// programs are ours, by build tags and name
	programs map[string]map[string][]byte
	logs     map[string]log
	known    map[string][]string // licences; see [job.licences]
	out      outputs
}

// Build makes the images. What is not finished is not left behind, and no file that
// exists is changed: fault.Conflict when one is there with another content.
func (b *Builder) Build(ctx context.Context) (made *Made, err error) {
	j := &job{Builder: b, programs: map[string]map[string][]byte{}, logs: map[string]log{}}
	if b.Say == nil {
		j.Builder.Say = func(string) {}
	}
	if b.Root == nil {
		j.Builder.Root = root.Make
	}
	if err := j.inputs(ctx); err != nil {
		return nil, err
	}
	if err := j.room(); err != nil {
		return nil, err
	}
	done, err := j.workplace()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, done()) }()
	if err := j.prepare(ctx); err != nil {
		return nil, err
	}
	made = &Made{Version: j.version, Commit: j.source.Commit, Dirty: j.source.Dirty, Epoch: j.source.Epoch.Unix()}
	var all []*flavour
	for _, name := range slices.Compact(slices.Sorted(slices.Values(b.Flavours))) {
		f, err := j.flavour(ctx, name)
		if err != nil {
			return nil, err
		}
		all = append(all, f)
		made.Images = append(made.Images, Image{f.name, j.file(f.name, ".iso"), f.image.Size, f.whole.String()})
	}
	if made.Statement, err = j.state(all); err != nil {
		return nil, err
	}
	return made, j.out.publish(j.Out)
}

// inputs reads the source and sees to it that what its lock names is in the store.
func (j *job) inputs(ctx context.Context) (err error) {
	began := time.Now()
	if j.source, err = ReadSource(ctx, j.Tree, j.Dirty); err != nil {
		return err
	}
	var texts [2][]byte
	for i, name := range []string{lock.FileName, "go.sum"} {
		e := j.source.Files.Get(name)
		if e == nil {
			return fault.New(fault.NotFound, "the source has no "+name).WithHint("make it with lethe-image lock, and commit it")
		}
		if texts[i], err = e.Read(); err != nil {
			return err
		}
	}
	if j.lock, err = lock.Parse(texts[0]); err != nil {
		return err
	}
	if err := j.lock.CheckGoSum(texts[1]); err != nil {
		return err
	}
	if j.version = j.Version; j.version == 0 {
		j.version, _ = strconv.ParseUint(j.source.Epoch.Format("200601021504"), 10, 64) // digits only
	}
	commit := j.source.Commit[:12]
	if j.source.Dirty {
		commit += " with changes"
	}
	j.said(began, fmt.Sprintf("source: %d files of commit %s", j.source.Files.Len(), commit))
	return j.fetch(ctx)
}

// fetch verifies all that the build will read, and has what is missing fetched. What is
// damaged is not mended here: that is for the builder to know. Everything is verified again when it is read.
func (j *job) fetch(ctx context.Context) error {
	began := time.Now()
	inputs := j.used()
	missing, err := j.missing(ctx, inputs)
	if err != nil {
		return err
	}
	if missing > 0 {
		if j.Fetch == nil {
			return fault.New(fault.NotFound, fmt.Sprintf("%d inputs are not in the store", missing)).WithHint("fill it: lethe-image fetch")
		}
		if err := j.Fetch(ctx, j.lock); err != nil {
			return err
		}
		if missing, err := j.missing(ctx, inputs); missing > 0 || err != nil {
			return errors.Join(fault.New(fault.NotFound, "the store is not complete after it was filled"), err)
		}
	}
	j.said(began, fmt.Sprintf("inputs: %d, all verified", len(inputs)))
	return nil
}

// missing counts the inputs that are not in the store. One that is damaged is an error.
func (j *job) missing(ctx context.Context, inputs []used) (int, error) {
	var count atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallel())
	for _, in := range inputs {
		group.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			err := j.Store.Check(in.sha256)
			if fault.Of(err) == fault.NotFound {
				count.Add(1)
				return nil
			}
			return inInput(in.uri, err)
		})
	}
	err := group.Wait()
	return int(count.Load()), err
}

// room says whether the disk has space for the build.
func (j *job) room() error {
	var s unix.Statfs_t
	if err := unix.Statfs(j.Out, &s); err != nil {
		return fault.Wrap(fault.NotFound, "there is no directory "+j.Out, err).WithHint("make it, or name another one with --out")
	}
	if free := int64(s.Bavail) * s.Bsize; free < space {
		return fault.New(fault.Full, fmt.Sprintf("%s has %.1f GB free; a build needs %.1f GB", j.Out, float64(free)/1e9, float64(space)/1e9)).
			WithHint("make room, or name another place with --out")
	}
	return nil
}

// scratch is how the directory of a run begins. Its lock is held while the run lives.
const scratch = ".build-"

// workplace makes the directory of this run, and removes those that killed runs left.
func (j *job) workplace() (done func() error, err error) {
	old, err := filepath.Glob(filepath.Join(j.Out, scratch+"*"))
	if err != nil {
		return nil, err
	}
	for _, dir := range old {
		f, err := os.Open(dir)
		if err != nil {
			continue // another run has just removed it
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			_ = os.RemoveAll(dir) // in vain: then the next run tries again
		}
		f.Close()
	}
	if j.dir, err = os.MkdirTemp(j.Out, scratch); err != nil {
		return nil, fault.Wrap(fault.Denied, j.Out+" cannot be written", err).WithHint("name another place with --out")
	}
	held, err := os.Open(j.dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(held.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(err, held.Close())
	}
	if j.dir, err = filepath.Abs(j.dir); err != nil {
		return nil, errors.Join(err, held.Close())
	}
	return func() error { return errors.Join(os.RemoveAll(j.dir), held.Close()) }, nil
}

// prepare makes the tree of tools and the programs that the flavours need.
func (j *job) prepare(ctx context.Context) error {
	began := time.Now()
	j.tools = sandbox.Tree{Dir: filepath.Join(j.dir, "tools")}
	golang := filepath.Join(j.dir, "golang")
	for _, dir := range []string{j.tools.Dir, golang} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	if err := unpackTools(ctx, j.lock, j.Store, j.tools.Dir); err != nil {
		return err
	}
	j.said(began, "tools: unpacked")
	if err := write(&j.source.Files, filepath.Join(golang, "src")); err != nil {
		return err
	}
	if err := writeProxy(j.lock, j.Store, filepath.Join(golang, "proxy")); err != nil {
		return err
	}
	for _, name := range j.Flavours {
		tags := tags(name)
		if j.programs[tags] != nil {
			continue
		}
		began := time.Now()
		var l log
		programs, err := compile(ctx, j.tools, golang, tags, &l)
		if err != nil {
			return err
		}
		j.programs[tags], j.logs[tags] = programs, l
		var names []string
		for name, b := range programs {
			names = append(names, fmt.Sprintf("%s %.1f MB", name, float64(len(b))/1e6))
		}
		slices.Sort(names)
		j.said(began, strings.TrimSpace("programs "+tags)+": "+strings.Join(names, ", "))
	}
	return os.RemoveAll(golang)
}

// set returns the lock's set for a flavour.
func set(flavour string) string { return strings.TrimSuffix(flavour, Lab) }

// tags are the build tags of a flavour's programs.
func tags(flavour string) string {
	if strings.HasSuffix(flavour, Lab) {
		return Lab[1:]
	}
	return ""
}

// said tells a step with the time that it took.
func (j *job) said(began time.Time, step string) {
	j.Say(fmt.Sprintf("%s … %.1f s", step, time.Since(began).Seconds()))
}

// file names an output.
func (j *job) file(flavour, ending string) string {
	return fmt.Sprintf("lethe-%d-%s%s", j.version, flavour, ending)
}

// packages are the lock's packages of a set, read and verified when they are opened.
func (j *job) packages(set string) (all []root.Package) {
	for _, p := range j.lock.Packages {
		if slices.Contains(p.Sets, set) {
			all = append(all, root.Package{Name: p.Name, Version: string(p.Version), Open: func() (io.ReadCloser, error) {
				b, err := j.Store.Get(p.File.SHA256)
				if err != nil {
					return nil, inInput(p.File.Path, err)
				}
				return io.NopCloser(strings.NewReader(string(b))), nil
			}})
		}
	}
	return all
}
