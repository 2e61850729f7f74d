package image_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"lethe/image"
	"lethe/image/imagetest"
	"lethe/image/vm"
)

// bootPatience is how long booting may take; a minute is usual.
const bootPatience = 10 * time.Minute

// lookout is an output that ends a wait when it shows a text.
type lookout struct {
	mu   sync.Mutex
	all  bytes.Buffer
	text string
	seen func()
}

func (l *lookout) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all.Write(b)
	if l.text != "" && strings.Contains(l.all.String(), l.text) {
		l.seen()
	}
	return len(b), nil
}

func (l *lookout) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.String()
}

// bootFor runs `lethe-image boot` and presses Ctrl-C when it has shown a text.
func bootFor(t *testing.T, text string, args ...string) (code int, out, errs string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootPatience)
	defer cancel()
	stdout, stderr := &lookout{text: text, seen: cancel}, &lookout{}
	code = image.Run(ctx, append([]string{"boot"}, args...), stdout, stderr, image.Here(os.Getenv))
	return code, stdout.String(), stderr.String()
}

// TestBootCommand shows a person an image that starts, and one that does not.
func TestBootCommand(t *testing.T) {
	iso := imagetest.ISO(t, "vm")
	code, out, errs := bootFor(t, "lethe: root verified", "--sign-for-trial", "--as", "disk", "--forward", "127.0.0.1:0=7443", iso)
	if code != 0 || !strings.Contains(out, "running until it was ended\nPCR 0 ") || !strings.Contains(out, "\nPCR 11 ") || !strings.Contains(errs, "2 CPUs and 1024 MiB") {
		t.Errorf("exit code %d\n%s%s", code, out, errs)
	}
	if code, _, errs := bootFor(t, "", "--insecure", "--json", "--variables", "", filepath.Join("testdata", "no.iso")); code != 3 || !strings.Contains(errs, "there is no file") {
		t.Errorf("exit code %d: %s", code, errs)
	}
	// Signed, it would start; the build leaves it unsigned.
	store := filepath.Join(t.TempDir(), "store")
	b, err := os.ReadFile("/usr/share/OVMF/OVMF_VARS_4M.snakeoil.fd")
	if err == nil {
		err = os.WriteFile(store, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if code, _, errs := bootFor(t, "", "--variables", store, iso); code != 5 || !strings.Contains(errs, "the firmware refuses the image") {
		t.Errorf("exit code %d: %s", code, errs)
	}
	empty := filepath.Join(t.TempDir(), "empty.iso")
	if err := os.WriteFile(empty, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, errs = bootFor(t, "", "--insecure", "--json", "--no-tpm", empty)
	if code != 2 || !strings.Contains(errs, "finds nothing to start") {
		t.Errorf("exit code %d: %s", code, errs)
	}
	events := map[string]int{}
	for d := json.NewDecoder(strings.NewReader(out)); ; {
		var e struct{ Event, Text string }
		if err := d.Decode(&e); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err, out)
		}
		events[e.Event]++
	}
	if events["started"] != 1 || events["console"] == 0 {
		t.Errorf("events %v:\n%s", events, out)
	}
}

func TestBootRefusals(t *testing.T) {
	dir := t.TempDir()
	iso := filepath.Join(dir, "x.iso")
	if err := os.WriteFile(iso, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		code int
		text string
		args []string
	}{
		"no image":           {2, "accepts 1 arg", nil},
		"no keys":            {2, "which keys shall the firmware trust", []string{iso}},
		"two keys":           {2, "which keys shall the firmware trust", []string{iso, "--insecure", "--sign-for-trial"}},
		"no store":           {3, "none cannot be read", []string{iso, "--variables", filepath.Join(dir, "none")}},
		"no manifest":        {3, "x.manifest.json cannot be read", []string{iso, "--sign-for-trial"}},
		"nothing to forward": {2, "no way to forward", []string{iso, "--insecure", "--forward", "7443"}},
		"no such slot":       {2, "floppy", []string{iso, "--insecure", "--as", "floppy"}},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			if got := image.Run(t.Context(), append([]string{"boot"}, c.args...), &stdout, &stderr, image.Here(os.Getenv)); got != c.code || !strings.Contains(stderr.String(), c.text) {
				t.Errorf("exit code %d, want %d with %q\n%s", got, c.code, c.text, &stderr)
			}
		})
	}
	m := image.Here(os.Getenv)
	m.Needs = vm.Needs{QEMU: "no-qemu", SWTPM: "swtpm", Code: "/none", Variables: "/none"}
	for _, how := range []string{"--insecure", "--sign-for-trial"} {
		var stdout, stderr bytes.Buffer
		if err := os.WriteFile(filepath.Join(dir, "x.manifest.json"), []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := image.Run(t.Context(), []string{"boot", iso, how}, &stdout, &stderr, m); got == 0 || how == "--insecure" && !strings.Contains(stderr.String(), "apt-get install --no-install-recommends qemu-system-x86 ovmf") {
			t.Errorf("%s without QEMU: exit code %d\n%s", how, got, &stderr)
		}
	}
}
