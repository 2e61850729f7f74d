package build_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lethe/fault"
	"lethe/image/build"
	"lethe/image/layout"
	"lethe/image/lock"
	"lethe/image/root"
	"lethe/image/sandbox"
	"lethe/image/tree"
)

// pipe is of a type that no image has.
func pipe(t *testing.T) *tree.Tree {
	t.Helper()
	var p tree.Tree
	if err := p.Add(tree.Entry{Path: "pipe", Mode: fs.ModeNamedPipe}); err != nil {
		t.Fatal(err)
	}
	return &p
}

// TestTools has none: each step says which one it was.
func TestTools(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	w := build.NewWorkshop(sandbox.Tree{Dir: filepath.Join(dir, "tools")}, filepath.Join(dir, "work"), time.Unix(epoch, 0))
	if err := errors.Join(os.Mkdir(w.Tools.Dir, 0o755), os.Mkdir(w.Work, 0o755)); err != nil {
		t.Fatal(err)
	}
	want := func(name string, err error, text string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: got %v, want %s", name, err, text)
		}
	}
	var d layout.RootDigest
	want("squash", w.Squash(ctx, &tree.Tree{}), "root file system: sandbox: the tool does not start")
	want("pack a pipe", w.Pack(ctx, pipe(t), d), "type that an image has no use for")
	var twice tree.Tree
	if err := twice.File(layout.Root, 0o644, "x", nil); err != nil {
		t.Fatal(err)
	}
	want("pack two digests", w.Pack(ctx, &twice, d), "comes from x and from build")
	want("pack", w.Pack(ctx, &tree.Tree{}, d), "initramfs: sandbox: the tool does not start")
	want("no stub", w.Unify(&root.Result{Kernel: kernel()}), "boot image: open ")
	stub := filepath.Join(w.Tools.Dir, "usr/lib/systemd/boot/efi/linuxx64.efi.stub")
	if err := errors.Join(os.MkdirAll(filepath.Dir(stub), 0o755), os.WriteFile(stub, []byte("MZ"), 0o644)); err != nil {
		t.Fatal(err)
	}
	want("no kernel", w.Unify(&root.Result{}), "no bzImage")
	want("bad stub", w.Unify(&root.Result{Kernel: kernel()}), "boot image: pe: not a PE32+ image")
	want("partition", w.Partition(ctx), "EFI system partition: sandbox: the tool does not start")
	want("burn", w.Burn(ctx), "ISO: sandbox: the tool does not start")
	want("burn twice", w.Burn(ctx), "file exists")
	w.Work = filepath.Join(dir, "none")
	want("no place", w.Partition(ctx), "no such file")
	want("search", build.Search(ctx, []byte("no ISO")), "the ISO cannot be read")
}

// TestGit has a git that fails, ends early, or says other things.
func TestGit(t *testing.T) {
	w := newWorld(t, few)
	w.write(t, "new", "")
	git := must(exec.LookPath("git"))(t)
	for name, tt := range map[string]struct {
		when, then string // a subcommand, and what the shell does instead
		want       string
	}{
		"status":       {"status", "echo no >&2; exit 1", "git status: exit status 1: no"},
		"no objects":   {"cat-file", "exit 0", "is damaged"},
		"other type":   {"cat-file", "while read id; do echo $id blob 1; echo x; done", "is damaged"},
		"no size":      {"cat-file", "while read id; do echo $id commit x; done", "is damaged"},
		"large":        {"cat-file", "while read id; do echo $id commit 99999999999; done", "is damaged"},
		"ends":         {"cat-file", "read id; echo $id commit 99; echo x", "is damaged"},
		"other commit": {"cat-file", "while read id; do echo $id commit 1; echo x; done", "is damaged"},
		"short name":   {"rev-parse", "echo 0123", "is damaged"},
		"read-tree":    {"read-tree", "exit 1", "git read-tree"},
		"write-tree":   {"write-tree", "exit 1", "git write-tree"},
		"other tree":   {"write-tree", "echo 0123456789012345678901234567890123456789", "is damaged"},
	} {
		t.Run(name, func(t *testing.T) {
			bin := t.TempDir()
			script := fmt.Sprintf("#!/bin/sh\nfor arg; do case $arg in\n%s) %s; exit;;\nesac; done\nexec %s \"$@\"\n", tt.when, tt.then, git)
			if err := os.WriteFile(filepath.Join(bin, "git"), []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
			t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
			if s, err := build.ReadSource(context.Background(), w.tree, true); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, %v, want %s", s, err, tt.want)
			}
		})
	}
	t.Run("none", func(t *testing.T) {
		t.Setenv("PATH", t.TempDir())
		if _, err := build.ReadSource(context.Background(), w.tree, true); fault.Of(err) != fault.NotFound {
			t.Error(err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := build.ReadSource(ctx, w.tree, true); err == nil {
			t.Error("it was read")
		}
	})
}

// TestLocks has locks that are whole but of no use.
func TestLocks(t *testing.T) {
	w := newWorld(t, few)
	whole := *w.lock
	for name, tt := range map[string]struct {
		change func(l *lock.Lock)
		want   string
	}{
		"no toolchain": {func(l *lock.Lock) { l.Modules = l.Modules[1:] }, "the lock names no Go toolchain"},
	} {
		t.Run(name, func(t *testing.T) {
			l := whole
			tt.change(&l)
			w.write(t, lock.FileName, string(l.Text()))
			w.commit(t)
			w.refused(t, w.builder(), fault.Invalid, tt.want)
		})
	}
	w.git(t, "rm", "-q", "go.sum")
	w.commit(t)
	w.refused(t, w.builder(), fault.NotFound, "the source has no go.sum")
}
