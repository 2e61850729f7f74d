// Package imagetest gives tests the image of this tree, made once for all of them.
//
// `make test` makes it before the tests and names its directory in [Var]. A test that is run
// alone makes it with scripts/image when the tree has changed since.
package imagetest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Var is the environment's variable with the directory of the images.
const Var = "LETHE_IMAGES"

// Files of an image, by their endings: see doc/image.md.
const (
	ISOFile      = ".iso"
	ManifestFile = ".manifest.json"
	BillFile     = ".sbom.json"
	ListFile     = ".files"
	LogFile      = ".log"
)

// ISO returns the path of the ISO of a flavour: "vm", "vm-lab" or "hardware". It must not be written to.
func ISO(t testing.TB, flavour string) string { return File(t, flavour, ISOFile) }

// File returns the path of what ends so and belongs to the image of a flavour.
func File(t testing.TB, flavour, ending string) string {
	t.Helper()
	dir := os.Getenv(Var)
	if dir == "" {
		var err error
		if dir, err = Make(context.Background(), Tree(t)); err != nil {
			t.Fatal(err)
		}
	}
	found, err := filepath.Glob(filepath.Join(dir, "lethe-[0-9]*-"+flavour+ending))
	if err != nil || len(found) != 1 {
		t.Fatalf("%d images of flavour %s in %s, want 1: %v", len(found), flavour, dir, err)
	}
	return found[0]
}

// Tree returns the root of the source, above the test's directory.
func Tree(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	for err == nil {
		if b, readErr := os.ReadFile(filepath.Join(dir, "go.mod")); readErr == nil && strings.HasPrefix(string(b), "module lethe\n") {
			return dir
		}
		if up := filepath.Dir(dir); up != dir {
			dir = up
			continue
		}
		err = errors.New("no go.mod above")
	}
	t.Fatal(err)
	return ""
}

// Store returns the directory of the store that the images were made from. It is complete.
func Store(t testing.TB) string {
	t.Helper()
	ISO(t, "vm")
	dir, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "lethe-image")
}

// Make makes the images of the tree as it is, changes that are not committed included, unless they are there.
// It returns their directory.
func Make(ctx context.Context, tree string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(tree, "scripts", "image"))
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("scripts/image: %w: %s", err, said.String())
	}
	return strings.TrimSpace(string(out)), nil
}
