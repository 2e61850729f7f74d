package build_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"lethe/fault"
	"lethe/image/build"
	"lethe/image/deb"
	"lethe/image/layout"
	"lethe/image/lock"
	"lethe/image/pe"
	"lethe/image/release"
	"lethe/image/root"
)

// TestBuild builds twins, again, and again with another key, and looks at all that is made.
func TestBuild(t *testing.T) {
	w := newWorld(t, nil)
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b := w.builder()
	b.Flavours, b.Name, b.Key, b.Version = []string{"vm-lab", "vm"}, "ada", key, 7
	var said []string
	b.Say = func(s string) { said = append(said, s) }
	made, files := w.build(t, b)
	if made.Version != 7 || made.Epoch != epoch || made.Dirty || made.Commit != w.git(t, "rev-parse", "HEAD") || len(made.Images) != 2 || made.Images[0].Flavour != "vm" || made.Images[1].File != "lethe-7-vm-lab.iso" {
		t.Errorf("%+v", made)
	}
	if len(said) < 8 || !strings.HasPrefix(said[0], "source: 19 files of commit ") {
		t.Errorf("said %q", said)
	}
	want := []string{"lethe-7-vm+vm-lab.statement.json", "lethe-7-vm-lab.files", "lethe-7-vm-lab.iso", "lethe-7-vm-lab.log", "lethe-7-vm-lab.manifest.json", "lethe-7-vm-lab.sbom.json",
		"lethe-7-vm.files", "lethe-7-vm.iso", "lethe-7-vm.log", "lethe-7-vm.manifest.json", "lethe-7-vm.sbom.json"}
	var got []string
	for name := range files {
		got = append(got, name)
	}
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Fatalf("files %q", got)
	}
	for _, i := range made.Images {
		t.Run(i.Flavour, func(t *testing.T) { check(t, i, files) })
	}
	// What it states can be verified.
	statements := []byte(files[made.Statement])
	if r, err := release.Compare(statements, statements); err != nil || len(r) > 0 {
		t.Error(r, err)
	}
	// With a change that is not committed nothing is stated.
	w.write(t, "sub/README", "other words\n")
	dirty := w.builder()
	dirty.Dirty, dirty.Out = true, t.TempDir()
	made, files2 := w.build(t, dirty)
	if !made.Dirty || made.Statement != "" || len(files2) != 5 || made.Version != 202609211413 {
		t.Errorf("%+v, %d files", made, len(files2))
	}
	w.git(t, "checkout", "-q", "sub/README")
	// The same again changes nothing that is there.
	b.Key = nil
	made, again := w.build(t, b)
	if made.Statement != "lethe-7-vm+vm-lab.statement.unsigned.json" || len(again) != len(files)+1 {
		t.Errorf("%+v, %d files", made, len(again))
	}
	for name, text := range files {
		if again[name] != text {
			t.Errorf("%s is another one now", name)
		}
	}
}

// check looks at one image.
func check(t *testing.T, i build.Image, files map[string]string) {
	iso := files[i.File]
	if fmt.Sprintf("%x", sum(iso)) != i.SHA256 || int64(len(iso)) != i.Size {
		t.Error("size or digest is wrong")
	}
	base := strings.TrimSuffix(i.File, ".iso")
	var manifest struct {
		Version uint64
		SHA256  string
		Image   release.Image
	}
	if err := json.Unmarshal([]byte(files[base+".manifest.json"]), &manifest); err != nil || manifest.Version != 7 || manifest.SHA256 != i.SHA256 {
		t.Fatalf("manifest %+v, %v", manifest, err)
	}
	m := manifest.Image
	if _, whole, err := release.Describe(m, strings.NewReader(iso)); err != nil || whole.String() != i.SHA256 {
		t.Error(err)
	}
	region := func(name string) string {
		for _, r := range m.Regions {
			if r.Name == name {
				return iso[r.Offset : r.Offset+r.Length]
			}
		}
		t.Fatalf("no region %s", name)
		return ""
	}
	part := func(name string) string {
		for _, p := range m.Parts {
			if p.Name == name {
				return p.SHA256.String()
			}
		}
		t.Fatalf("no part %s", name)
		return ""
	}
	squash := region("root")
	if !strings.HasPrefix(squash, "hsqs") || fmt.Sprintf("%x", sum(squash)) != part("root") || len(squash)%4096 != 0 {
		t.Error("region root is not the root")
	}
	boot := iso[m.BootOffset : m.BootOffset+m.BootLength]
	image := must(pe.Parse([]byte(boot)))(t)
	sections := map[string]string{}
	for _, s := range image.Sections() {
		sections[s.Name] = string(s.Data)
	}
	if sections[".linux"] != string(kernel()) || sections[".cmdline"] != "quiet" || sections[".uname"] != "7.3.4-test" || !strings.Contains(sections[".osrel"], "VERSION_ID=7\n") || sections[".sbat"] == "" {
		t.Errorf("sections %q", sections[".cmdline"]+sections[".uname"]+sections[".osrel"])
	}
	if fmt.Sprintf("%x", sum(sections[".initrd"])) != part("initramfs") || fmt.Sprintf("%x", sum(boot)) != part("boot-image") || fmt.Sprintf("%x", sum(files[base+".files"])) != part("files") ||
		fmt.Sprintf("%x", sum(files[base+".sbom.json"])) != part("sbom") {
		t.Error("a part has another digest")
	}
	rest := layout.MediumDigest{SHA256: sum(iso[:m.BootOffset] + iso[m.BootOffset+m.BootLength:]), Size: int64(len(iso)), BootOffset: m.BootOffset, BootLength: m.BootLength}
	if front := sections[".initrd"][:layout.FrontArchive]; !strings.Contains(front, rest.String()) {
		t.Errorf("the initramfs does not name the rest of the medium: %q", front)
	}
	initrd := unzstd(t, sections[".initrd"][layout.FrontArchive:])
	if d := (layout.RootDigest{SHA256: sum(squash), Size: int64(len(squash))}); !strings.Contains(initrd, d.String()) {
		t.Error("the initramfs does not name the root")
	}
	if !strings.Contains(region("boot/.linux"), "HdrS") || strings.Trim(region("boot/signatures"), "\x00") != "" || !strings.HasPrefix(region("gpt/header"), "EFI PART") {
		t.Error("regions have the names of others")
	}
	if len(m.PCRs) != 2 || m.PCRs[0].Index != 4 || m.PCRs[1].Index != 11 {
		t.Errorf("PCRs %+v", m.PCRs)
	}
	list := files[base+".files"]
	for _, want := range []string{"\"usr/bin/lethe-node\"\n", "Lrwxrwxrwx 0:0 0 \"usr/bin\" \"build\" \"bin\"\n", "Dcrw-rw-rw- 0:0 0 1,3 \"build\" \"dev/null\"\n", "\"netbase\" \"etc/protocols\"\n", "# initramfs\n", "\"init\"\n"} {
		if !strings.Contains(list, want) {
			t.Errorf("the list has no %q", want)
		}
	}
	if log := files[base+".log"]; strings.Count(log, "\n") != 7 || !strings.Contains(log, " build -trimpath ") || strings.Contains(log, "-tags=lab") != strings.HasSuffix(base, "-lab") {
		t.Errorf("log %s", log)
	}
	checkBill(t, files[base+".sbom.json"])
	describes(t, m, iso)
}

func checkBill(t *testing.T, text string) {
	var bill struct {
		BomFormat, SpecVersion string
		Metadata               struct{ Timestamp string }
		Components             []struct {
			Name, Version, Scope, PURL string
			Hashes                     []struct{ Alg, Content string }
			Licenses                   []struct{ License struct{ Name string } }
		}
	}
	if err := json.Unmarshal([]byte(text), &bill); err != nil || bill.BomFormat != "CycloneDX" || bill.SpecVersion != "1.6" || bill.Metadata.Timestamp != time.Unix(epoch, 0).UTC().Format(time.RFC3339) {
		t.Fatal(err, bill.BomFormat)
	}
	scopes := map[string]string{}
	for _, c := range bill.Components {
		scopes[c.Name] = c.Scope
		if len(c.Hashes) != 1 || len(c.Hashes[0].Content) != 64 || c.PURL == "" || c.Version == "" {
			t.Errorf("component %+v", c)
		}
		if len(c.Licenses) == 0 && !strings.HasPrefix(c.Name, "lethe-") {
			t.Errorf("%s has no licence", c.Name)
		}
	}
	for name, want := range map[string]string{"netbase": "required", "xorriso": "excluded", "golang.org/x/sync": "required", "std": "required", "lethe-node": "required"} {
		if scopes[name] != want {
			t.Errorf("%s is %q, want %s", name, scopes[name], want)
		}
	}
}

// TestSecret plants two: a key, and where the image was made.
func TestSecret(t *testing.T) {
	w := newWorld(t, nil)
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must(x509.MarshalPKCS8PrivateKey(ed25519.NewKeyFromSeed([]byte(rand.Text() + rand.Text())[:32])))(t)})
	b := w.builder()
	b.Root = func(in root.Input) (*root.Result, error) {
		r, err := decide(in)
		return r, errors.Join(err, r.Root.File("etc/key", 0o644, "git", key), r.Root.File("etc/place", 0o644, "git", []byte("made in "+w.tree+"\n")))
	}
	w.refused(t, b, fault.Untrusted, "the image holds 2 secrets")
}

// few are tools enough for what fails before they are run.
func few(name string) bool { return name == "dosfstools" }

// TestFlips turns over one bit in each kind of input: nothing is made.
func TestFlips(t *testing.T) {
	w := newWorld(t, few)
	find := func(name string) deb.Digest {
		for _, p := range w.lock.Packages {
			if p.Name == name {
				return p.File.SHA256
			}
		}
		for _, m := range w.lock.Modules {
			switch name {
			case m.Path + ".zip":
				return m.Zip.SHA256
			case m.Path + ".mod":
				return m.Mod.SHA256
			}
		}
		t.Fatal(name)
		return deb.Digest{}
	}
	for _, name := range []string{"netbase", "dosfstools", "golang.org/toolchain.zip", "golang.org/x/sync.zip", "golang.org/x/sync.mod"} {
		t.Run(name, func(t *testing.T) {
			at := w.store.Path(find(name))
			b := must(os.ReadFile(at))(t)
			flipped := slices.Clone(b)
			flipped[len(b)/2] ^= 1
			put := func(b []byte) { // the file may be a link to another store's
				if err := errors.Join(os.Remove(at), os.WriteFile(at, b, 0o444)); err != nil {
					t.Fatal(err)
				}
			}
			put(flipped)
			defer put(b)
			w.refused(t, w.builder(), fault.Untrusted, "is damaged")
		})
	}
	t.Run("commit", func(t *testing.T) { w.flipObject(t, "HEAD") })
	t.Run("directory", func(t *testing.T) { w.flipObject(t, "HEAD:sub") })
	t.Run("file", func(t *testing.T) { w.flipObject(t, "HEAD:sub/README") })
	text := string(must(os.ReadFile(filepath.Join(w.tree, lock.FileName)))(t))
	for name, change := range map[string][3]string{
		"lock":       {lock.FileName, text[:len(text)/2] + string(text[len(text)/2]^1) + text[len(text)/2+1:], ""},
		"go.sum":     {"go.sum", "", "go.sum is not the one"},
		"no lock":    {lock.FileName, "-", "the source has no image.lock"},
		"no program": {"cmd/lethe-seal/main.go", "-", ""},
	} {
		t.Run(name, func(t *testing.T) {
			if change[1] == "-" {
				w.git(t, "rm", "-q", "-r", filepath.Dir(change[0])+"/"+filepath.Base(change[0]))
			} else {
				w.write(t, change[0], change[1])
			}
			if name == "no program" {
				w.git(t, "rm", "-q", "-r", "cmd/lethe-seal")
			}
			w.commit(t)
			defer w.git(t, "reset", "-q", "--hard", "HEAD~")
			if made, err := w.builder().Build(context.Background()); err == nil || !strings.Contains(err.Error(), change[2]) {
				t.Errorf("%+v, %v", made, err)
			}
			if left := contents(t, w.out); len(left) > 0 {
				t.Errorf("%d files are left", len(left))
			}
		})
	}
}

// refused wants a refusal that leaves nothing.
func (w *world) refused(t *testing.T, b *build.Builder, kind fault.Kind, text string) {
	t.Helper()
	_, err := b.Build(context.Background())
	if err == nil || fault.Of(err) != kind || !strings.Contains(err.Error(), text) {
		t.Errorf("got %v (%v), want %v: %s", err, fault.Of(err), kind, text)
	}
	if left := contents(t, w.out); len(left) > 0 {
		t.Errorf("%d files are left", len(left))
	}
}

// flipObject puts another object under the name of one of git's.
func (w *world) flipObject(t *testing.T, name string) {
	id := w.git(t, "rev-parse", name)
	at := filepath.Join(w.tree, ".git", "objects", id[:2], id[2:])
	b := must(os.ReadFile(at))(t)
	other := w.git(t, "rev-parse", map[string]string{"HEAD": "HEAD", "HEAD:sub": "HEAD:cmd", "HEAD:sub/README": "HEAD:go.sum"}[name])
	changed := must(os.ReadFile(filepath.Join(w.tree, ".git", "objects", other[:2], other[2:])))(t)
	if other == id {
		changed = slices.Clone(b)
		changed[len(b)-1] ^= 1
	}
	put := func(b []byte) {
		if err := errors.Join(os.Chmod(at, 0o644), os.WriteFile(at, b, 0o444)); err != nil {
			t.Fatal(err)
		}
	}
	put(changed)
	defer put(b)
	made, err := w.builder().Build(context.Background())
	if err == nil {
		t.Errorf("built %+v", made)
	}
	t.Log(err)
	if left := contents(t, w.out); len(left) > 0 {
		t.Errorf("%d files are left", len(left))
	}
}

// TestRefusals is about everything but inputs with a wrong bit.
func TestRefusals(t *testing.T) {
	w := newWorld(t, few)
	t.Run("changed", func(t *testing.T) {
		w.write(t, "sub/README", "other words\n")
		defer w.git(t, "reset", "-q", "--hard")
		w.refused(t, w.builder(), fault.Conflict, "such as sub/README")
	})
	t.Run("new file", func(t *testing.T) {
		w.write(t, "new", "")
		defer os.Remove(filepath.Join(w.tree, "new"))
		w.refused(t, w.builder(), fault.Conflict, "such as new")
	})
	t.Run("no commit", func(t *testing.T) {
		b := w.builder()
		b.Tree = t.TempDir()
		w.refused(t, b, fault.NotFound, "no commit")
	})
	t.Run("link", func(t *testing.T) {
		if err := os.Symlink("README", filepath.Join(w.tree, "sub", "link")); err != nil {
			t.Fatal(err)
		}
		w.commit(t)
		defer w.git(t, "reset", "-q", "--hard", "HEAD~")
		w.refused(t, w.builder(), fault.Invalid, "sub/link in the source is neither file nor directory")
	})
	t.Run("no place", func(t *testing.T) {
		b := w.builder()
		b.Out = filepath.Join(w.out, "none")
		w.refused(t, b, fault.NotFound, "no directory")
	})
	t.Run("interrupted", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		b := w.builder()
		b.Say = func(s string) {
			if strings.HasPrefix(s, "tools") {
				cancel()
			}
		}
		if _, err := b.Build(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		if left := contents(t, w.out); len(left) > 0 {
			t.Errorf("%d files are left", len(left))
		}
	})
	t.Run("leftovers", func(t *testing.T) {
		if err := os.MkdirAll(filepath.Join(w.out, ".build-123", "x"), 0o755); err != nil {
			t.Fatal(err)
		}
		b := w.builder()
		b.Root = func(root.Input) (*root.Result, error) { return nil, errors.New("enough") }
		if _, err := b.Build(context.Background()); err == nil || !strings.Contains(err.Error(), "enough") {
			t.Errorf("got %v", err)
		}
		contents(t, w.out)
	})
	t.Run("empty store", func(t *testing.T) {
		empty := newStore(t)
		b := w.builder()
		b.Store = empty
		w.refused(t, b, fault.NotFound, "5 inputs are not in the store")
		fetched := 0
		b.Fetch = func(context.Context, *lock.Lock) error { fetched++; return nil }
		w.refused(t, b, fault.NotFound, "not complete after it was filled")
		b.Fetch = func(context.Context, *lock.Lock) error { return fault.New(fault.Unavailable, "no network") }
		w.refused(t, b, fault.Unavailable, "no network")
		if fetched != 1 {
			t.Errorf("fetched %d times", fetched)
		}
	})
}
