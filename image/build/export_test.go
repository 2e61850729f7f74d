package build

import (
	"context"
	"time"

	"lethe/image/layout"
	"lethe/image/root"
	"lethe/image/sandbox"
	"lethe/image/tree"
)

// Names for tests of what a build uses.
var (
	KernelRelease   = kernelRelease
	ParseCommit     = parseCommit
	DebianLicences  = debianLicences
	ModuleLicences  = moduleLicences
	PackageLicences = packageLicences
	Describe        = describe
	UnpackToolchain = unpackToolchain
	Trouble         = trouble
	Publish         = func(dir string, names map[string][]byte) error {
		var o outputs
		for name, b := range names {
			o.bytes(name, b)
		}
		return o.publish(dir)
	}
)

// Workshop is a workshop with names for tests.
type Workshop struct {
	Tools sandbox.Tree
	Work  string
	epoch time.Time
}

func NewWorkshop(tools sandbox.Tree, work string, epoch time.Time) *Workshop {
	return &Workshop{tools, work, epoch}
}

func (w *Workshop) in() *workshop {
	return &workshop{tools: w.Tools, work: w.Work, epoch: w.epoch, cores: 1, log: &log{}}
}

func (w *Workshop) Squash(ctx context.Context, t *tree.Tree) error {
	_, err := w.in().squash(ctx, t)
	return err
}

func (w *Workshop) Pack(ctx context.Context, t *tree.Tree, d layout.RootDigest) error {
	_, err := w.in().pack(ctx, t, d)
	return err
}

func (w *Workshop) Unify(r *root.Result) error {
	_, err := w.in().unify(r, []byte("initrd"))
	return err
}

func (w *Workshop) Partition(ctx context.Context) error { return w.in().partition(ctx, []byte("uki")) }

func (w *Workshop) Burn(ctx context.Context) error { return w.in().burn(ctx) }

// Search is search, for an ISO of no job.
func Search(ctx context.Context, iso []byte) error {
	return (&job{}).search(ctx, &flavour{name: "vm"}, iso)
}
