package image

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lethe/fault"
	"lethe/image/build"
	"lethe/image/lock"
)

// building are the flags of build.
type building struct {
	flavours           []string
	out, name, key     string
	lab, dirty, newKey bool
	version            uint64
}

func (p *program) buildCommand() *cobra.Command {
	var f building
	c := &cobra.Command{Use: "build", Short: "Make the image from the lock, the store and the tree's commit", Args: cobra.NoArgs,
		Long: "Make one ISO for each flavour, and beside it a manifest with digests and expected PCRs, an SBOM, a list of files and a statement.\n" +
			"What the store lacks is fetched first. Nothing of this machine enters: equal commits give equal bytes everywhere.",
		RunE: func(c *cobra.Command, _ []string) error { return p.build(c.Context(), f) }}
	c.Flags().StringSliceVar(&f.flavours, "flavour", []string{lock.VM, lock.Hardware}, "what to make: "+strings.Join(build.Flavours, ", "))
	c.Flags().BoolVar(&f.lab, "lab", false, "make flavours for tests, which no release trusts: their names end in "+build.Lab)
	c.Flags().StringVar(&f.out, "out", "build/image", "directory for what is made")
	c.Flags().Uint64Var(&f.version, "version", 0, "the release's number (default: the commit's time)")
	c.Flags().StringVar(&f.name, "builder", "", "your name, for the statement")
	c.Flags().StringVar(&f.key, "key", "", "file with your private key, which signs the statement (PEM, PKCS #8)")
	c.Flags().BoolVar(&f.newKey, "new-key", false, "make --key first, an Ed25519 key, and its public half beside it with .pub")
	c.Flags().BoolVar(&f.dirty, "dirty", false, "take changes that are not committed; nothing is stated about such an image")
	return c
}

func (p *program) build(ctx context.Context, f building) error {
	began := time.Now()
	root, err := p.root()
	if err != nil {
		return err
	}
	for i, name := range f.flavours {
		if f.lab && !strings.HasSuffix(name, build.Lab) {
			f.flavours[i] += build.Lab
		}
		if !slices.Contains(build.Flavours, f.flavours[i]) {
			return fault.New(fault.Invalid, "there is no flavour "+name).WithHint("name some of " + strings.Join(build.Flavours, ", "))
		}
	}
	key, err := builderKey(f.key, f.newKey)
	if err != nil {
		return err
	}
	if !filepath.IsAbs(f.out) {
		f.out = filepath.Join(p.m.Dir, f.out)
	}
	if err := os.MkdirAll(f.out, 0o755); err != nil {
		return fault.Wrap(fault.Denied, "the directory "+f.out+" cannot be made", err).WithHint("name another one with --out")
	}
	s, err := p.open()
	if err != nil {
		return err
	}
	defer s.Close()
	b := build.Builder{Tree: root, Dirty: f.dirty, Store: s, Out: f.out, Flavours: f.flavours, Version: f.version, Name: f.name, Key: key,
		Say: func(step string) { fmt.Fprintln(p.stderr, step) },
		Fetch: func(ctx context.Context, l *lock.Lock) error {
			_, err := p.fill(ctx, s, l)
			return err
		}}
	made, err := b.Build(ctx)
	if err != nil {
		return err
	}
	var lines []string
	for _, i := range made.Images {
		lines = append(lines, fmt.Sprintf("%s  %s  %s", i.File, megabytes(i.Size), i.SHA256))
	}
	if made.Statement != "" {
		lines = append(lines, made.Statement)
	}
	lines = append(lines, fmt.Sprintf("made in %.0f s, in %s", time.Since(began).Seconds(), f.out))
	return p.print(made, strings.Join(lines, "\n"))
}

// builderKey reads, or makes, the key that signs a statement.
func builderKey(path string, make bool) (crypto.Signer, error) {
	if path == "" {
		if make {
			return nil, fault.New(fault.Invalid, "the new key has no place").WithHint("name a file with --key")
		}
		return nil, nil
	}
	if make {
		if err := newKey(path); err != nil {
			return nil, err
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fault.Wrap(fault.NotFound, "the key "+path+" cannot be read", err).WithHint("make one with --new-key")
	}
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "PRIVATE KEY" || len(rest) != 0 {
		return nil, fault.New(fault.Invalid, path+" is no private key in PEM (PKCS #8)").WithHint("make one with --new-key")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	key, ok := parsed.(crypto.Signer)
	if err != nil || !ok {
		return nil, fault.Wrap(fault.Invalid, path+" is no private key in PEM (PKCS #8)", err).WithHint("make one with --new-key")
	}
	return key, nil
}

// newKey writes an Ed25519 key and its public half, and replaces nothing.
func newKey(path string) error {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	b, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return err
	}
	open, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return err
	}
	for _, x := range []struct {
		path, kind string
		mode       os.FileMode
		der        []byte
	}{{path, "PRIVATE KEY", 0o600, b}, {path + ".pub", "PUBLIC KEY", 0o644, open}} {
		f, err := os.OpenFile(x.path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, x.mode)
		if errors.Is(err, fs.ErrExist) {
			return fault.Wrap(fault.Conflict, x.path+" exists already", err).WithHint("use it without --new-key")
		}
		if err != nil {
			return fault.Wrap(fault.Denied, x.path+" cannot be written", err)
		}
		if err := errors.Join(pem.Encode(f, &pem.Block{Type: x.kind, Bytes: x.der}), f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return nil
}
