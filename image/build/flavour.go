package build

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"lethe/image/deb"
	"lethe/image/lock"
	"lethe/image/pcr"
	"lethe/image/release"
	"lethe/image/root"
	"lethe/image/tree"
)

// flavour is one ISO on its way.
type flavour struct {
	name  string
	image release.Image
	whole release.Digest
}

// flavour makes one image and what stands beside it.
func (j *job) flavour(ctx context.Context, name string) (*flavour, error) {
	f := &flavour{name: name}
	w := &workshop{tools: j.tools, work: filepath.Join(j.dir, f.name), epoch: j.source.Epoch, cores: parallel(), log: &log{}}
	if err := os.MkdirAll(filepath.Join(w.work, "tmp"), 0o755); err != nil {
		return nil, err
	}
	began := time.Now()
	// Reading licences keeps a core busy that deciding about files, one after the other, leaves free.
	group, licensed := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		if j.known == nil {
			j.known, err = j.licences(licensed)
		}
		return err
	})
	commit := j.source.Commit
	if j.source.Dirty { // the image says so itself
		commit += "-dirty"
	}
	r, err := j.Root(root.Input{Flavour: set(name), Lab: tags(name) != "", Version: fmt.Sprint(j.version), Commit: commit, Epoch: j.source.Epoch,
		Packages: j.packages(set(name)), Programs: j.programs[tags(name)]})
	if err := errors.Join(err, group.Wait()); err != nil {
		return nil, err
	}
	j.said(began, fmt.Sprintf("%s: root of %d files", f.name, r.Root.Len()))
	began = time.Now()
	d, err := w.squash(ctx, r.Root)
	if err != nil {
		return nil, err
	}
	j.said(began, fmt.Sprintf("%s: root file system, %.1f MB", f.name, float64(d.Size)/1e6))
	began = time.Now()
	initrd, err := w.pack(ctx, r.Initramfs, d)
	if err != nil {
		return nil, err
	}
	uki, err := w.unify(r, initrd)
	if err != nil {
		return nil, err
	}
	if err := w.partition(ctx, uki); err != nil {
		return nil, err
	}
	if err := w.burn(ctx); err != nil {
		return nil, err
	}
	if uki, initrd, err = w.fix(uki, initrd); err != nil {
		return nil, err
	}
	if err := j.finish(ctx, f, w, r, uki, initrd, d.SHA256, d.Size); err != nil {
		return nil, err
	}
	j.said(began, fmt.Sprintf("%s: ISO, %.1f MB, sha256 %s", f.name, float64(f.image.Size)/1e6, f.whole))
	return f, os.RemoveAll(w.work)
}

// finish describes the ISO and puts it and its lists among the outputs.
func (j *job) finish(ctx context.Context, f *flavour, w *workshop, r *root.Result, uki, initrd []byte, rootDigest [sha256.Size]byte, rootSize int64) error {
	iso, err := os.ReadFile(filepath.Join(w.work, "iso"))
	if err != nil {
		return err
	}
	if err := j.search(ctx, f, iso); err != nil {
		return err
	}
	if f.image, err = describe(f.name, iso, uki, rootSize); err != nil {
		return err
	}
	list, err := listing(r.Root, r.Initramfs)
	if err != nil {
		return err
	}
	bill, err := j.bill(f, r, j.known)
	if err != nil {
		return err
	}
	f.image.Parts = []release.Part{
		{Name: "boot-image", SHA256: digest(uki)}, {Name: "command-line", SHA256: digest([]byte(r.Cmdline))}, {Name: "files", SHA256: digest(list)},
		{Name: "initramfs", SHA256: digest(initrd)}, {Name: "kernel", SHA256: digest(r.Kernel)}, {Name: "root", SHA256: rootDigest}, {Name: "sbom", SHA256: digest(bill)},
	}
	images, err := pcr.BootImages(uki)
	if err != nil {
		return err
	}
	// Phases are not measured: no systemd-pcrphase is in the image.
	sections, err := pcr.Unified(uki)
	if err != nil {
		return err
	}
	f.image.PCRs = []release.PCR{{Index: 4, SHA256: release.Digest(pcr.Boot(images...))}, {Index: 11, SHA256: release.Digest(sections)}}
	if f.image, f.whole, err = release.Describe(f.image, bytes.NewReader(iso)); err != nil {
		return err
	}
	manifest, err := json.MarshalIndent(struct {
		Version uint64         `json:"version"`
		Commit  string         `json:"commit"`
		Dirty   bool           `json:"dirty,omitempty"`
		Epoch   int64          `json:"epoch"`
		Name    string         `json:"name"`
		SHA256  release.Digest `json:"sha256"`
		Image   release.Image  `json:"image"`
	}{j.version, j.source.Commit, j.source.Dirty, j.source.Epoch.Unix(), j.file(f.name, ".iso"), f.whole, f.image}, "", "  ")
	if err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(w.work, "iso"), filepath.Join(j.dir, j.file(f.name, ".iso"))); err != nil {
		return err
	}
	j.out.file(j.file(f.name, ".iso"), filepath.Join(j.dir, j.file(f.name, ".iso")), f.whole)
	j.out.bytes(j.file(f.name, ".manifest.json"), append(manifest, '\n'))
	j.out.bytes(j.file(f.name, ".sbom.json"), bill)
	j.out.bytes(j.file(f.name, ".files"), list)
	j.out.bytes(j.file(f.name, ".log"), []byte(strings.Join(append(slices.Clone(j.logs[tags(f.name)]), *w.log...), "")))
	return nil
}

// listing is a line for each file: type and mode, owner and group, size, digest or
// target, where it is from, and its path, first the root's and then the initramfs's.
func listing(trees ...*tree.Tree) ([]byte, error) {
	var b bytes.Buffer
	for i, t := range trees {
		fmt.Fprintf(&b, "# %s\n", []string{"root", "initramfs"}[i])
		for e := range t.All() {
			what := "-"
			switch {
			case e.Mode.IsRegular():
				content, err := e.Read()
				if err != nil {
					return nil, err
				}
				what = fmt.Sprintf("%x", digest(content))
			case e.Link != "":
				what = fmt.Sprintf("%q", e.Link)
			case !e.Mode.IsDir():
				what = fmt.Sprintf("%d,%d", e.Major, e.Minor)
			}
			fmt.Fprintf(&b, "%v %d:%d %d %s %q %q\n", e.Mode, e.UID, e.GID, e.Size, what, e.From, e.Path)
		}
	}
	return b.Bytes(), nil
}

// used is one input of the build.
type used struct {
	uri    string // relative, as a statement names it
	sha256 deb.Digest
	size   int64
}

// needs says whether this build needs a set of packages.
func (j *job) needs(name string) bool {
	return name == lock.Tools || slices.ContainsFunc(j.Flavours, func(f string) bool { return set(f) == name })
}

// used lists what this build reads from the store, ascending.
func (j *job) used() (all []used) {
	for _, p := range j.lock.Packages {
		if slices.ContainsFunc(p.Sets, j.needs) {
			all = append(all, used{p.File.Path, p.File.SHA256, p.File.Size})
		}
	}
	for _, m := range j.lock.Modules {
		for _, x := range []struct {
			file   deb.File
			ending string
		}{{m.Zip, ".zip"}, {m.Mod, ".mod"}} {
			if x.file != (deb.File{}) {
				all = append(all, used{"go/" + m.Path + "/" + m.Version + x.ending, x.file.SHA256, x.file.Size})
			}
		}
	}
	slices.SortFunc(all, func(a, b used) int { return strings.Compare(a.uri, b.uri) })
	return all
}
