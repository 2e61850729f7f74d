package build_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"lethe/image/build"
	"lethe/image/deb"
	"lethe/image/imagetest"
	"lethe/image/lock"
	"lethe/image/store"
)

// ahead is how far the clock elsewhere is ahead of ours.
const ahead = 400 * 24 * time.Hour

// farAway runs a program elsewhere, as its environment has it.
func farAway(t *testing.T, env []string, args ...string) (stdout, stderr string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = append([]string{elsewhere, strconv.Itoa(int(ahead.Seconds()))}, args...)
	cmd.Dir = "/"
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "USER=ada", "LOGNAME=ada", "LC_ALL=C.UTF-8", "LANG=de_DE.UTF-8", "TZ=Asia/Tokyo",
		"GOFLAGS=-tags=nonsense", "GOPROXY=off", "GOAMD64=v3", "SOURCE_DATE_EPOCH=1", "CGO_ENABLED=1"}, env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %v: %s", args, err, errs.String())
	}
	return out.String(), errs.String()
}

// TestElsewhere looks whether elsewhere is elsewhere, for a program that is linked with the C library and for ours.
func TestElsewhere(t *testing.T) {
	near := func(got string) bool {
		seconds, err := strconv.ParseInt(strings.TrimSpace(got), 10, 64)
		return err == nil && time.Until(time.Unix(seconds, 0).Add(-ahead)).Abs() < time.Hour
	}
	if got, _ := farAway(t, nil, "date", "+%s"); !near(got) {
		t.Errorf("date is %q", got)
	}
	dir := apart(t)
	program := filepath.Join(dir, "look")
	cmd := exec.Command("go", "build", "-o", program, "./testdata/look")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	lists := filepath.Join(dir, "lists")
	for _, name := range []string{"", "a", "b", "c"} {
		if err := os.MkdirAll(filepath.Join(lists, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	here := string(must(exec.Command(program, lists).Output())(t))
	there, _ := farAway(t, nil, program, lists)
	a, b := strings.Split(strings.TrimSpace(here), "\n"), strings.Split(strings.TrimSpace(there), "\n")
	if len(a) != 6 || len(b) != 6 || !near(b[0]) || near(a[0]) {
		t.Fatalf("here %q, there %q", a, b)
	}
	for i, what := range []string{"time", "order", "user", "host", "umask"} {
		if a[i] == b[i] && (os.Getuid() == 0 || what == "time" || what == "order" || what == "umask") {
			t.Errorf("%s is %q in both places", what, a[i])
		}
	}
	if b[5] != "1" {
		t.Errorf("%s cores there", b[5])
	}
}

// apart makes a directory that everybody may use.
func apart(t *testing.T) string {
	t.Helper()
	dir := must(os.MkdirTemp("", "elsewhere-*"))(t)
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestReproducible builds the real image a second time, under another user, path, host name, locale, time zone, umask,
// clock, with one core and with every directory in another order.
func TestReproducible(t *testing.T) {
	first := imagetest.ISO(t, "vm")
	root := imagetest.Tree(t)
	dir := apart(t)
	var inputs []deb.Digest
	for _, p := range must(real())(t).Packages {
		for _, s := range p.Sets {
			if s == lock.VM || s == lock.Tools {
				inputs = append(inputs, p.File.SHA256)
			}
		}
	}
	for _, m := range must(real())(t).Modules {
		for _, f := range []deb.File{m.Zip, m.Mod} {
			if f != (deb.File{}) {
				inputs = append(inputs, f.SHA256)
			}
		}
	}
	s := must(store.Open(filepath.Join(dir, "inputs")))(t)
	stock(t, s, inputs)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	clone(t, root, filepath.Join(dir, "a clone"))
	program, out := filepath.Join(dir, "lethe-image"), filepath.Join(dir, "out")
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", program, "./cmd/lethe-image")
	cmd.Dir = root
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	if err := errors.Join(os.Mkdir(out, 0o755), give(dir)); err != nil {
		t.Fatal(err)
	}
	_, said := farAway(t, nil, program, "build", "--dirty", "--flavour", "vm", "--tree", filepath.Join(dir, "a clone"), "--store", s.Dir(), "--out", out)
	if changed := regexp.MustCompile(`([0-9]+) lists`).FindStringSubmatch(said); changed == nil || changed[1] == "0" {
		t.Errorf("no directory was read elsewhere: %s", said)
	}
	t.Logf("%s", said)
	second := filepath.Join(out, filepath.Base(first))
	a, b := must(os.ReadFile(first))(t), must(os.ReadFile(second))(t)
	if sha256.Sum256(a) != sha256.Sum256(b) {
		t.Errorf("the images differ: %d and %d bytes, first at byte %d", len(a), len(b), differ(a, b))
	}
	for _, ending := range []string{imagetest.BillFile, imagetest.ListFile, imagetest.LogFile} {
		a, b := must(os.ReadFile(imagetest.File(t, "vm", ending)))(t), must(os.ReadFile(strings.TrimSuffix(second, ".iso")+ending))(t)
		if !bytes.Equal(a, b) {
			t.Errorf("%s differ at byte %d", ending, differ(a, b))
		}
	}
}

func differ(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// clone makes a clone of the source with the changes that are not committed.
func clone(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("git", "clone", "-q", "--no-hardlinks", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s := must(build.ReadSource(context.Background(), from, true))(t)
	if err := filepath.WalkDir(to, func(path string, e fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(to, path)
		switch {
		case err != nil:
			return err
		case e.IsDir() && rel == ".git":
			return fs.SkipDir
		case !e.IsDir() && s.Files.Get(filepath.ToSlash(rel)) == nil:
			return os.Remove(path)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for e := range s.Files.All() {
		if !e.Mode.IsRegular() {
			continue
		}
		at := filepath.Join(to, filepath.FromSlash(e.Path))
		if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, must(e.Read())(t), e.Mode.Perm()), os.Chmod(at, e.Mode.Perm())); err != nil {
			t.Fatal(err)
		}
	}
}

// give gives everything in a directory to the user elsewhere.
func give(dir string) error {
	if os.Getuid() != 0 {
		return nil
	}
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		info, statErr := os.Lstat(path)
		switch {
		case err != nil || statErr != nil:
			return errors.Join(err, statErr)
		case strings.Contains(path, "/inputs/sha256/") && !e.IsDir(): // it may be a link to the file of another store
			return nil
		case info.Mode()&fs.ModeSymlink != 0:
			return fmt.Errorf("%s is a link", path)
		}
		return os.Chown(path, nobody, nobody)
	})
}
