package cli_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"lethe/fault"
	"lethe/image/compare"
	"lethe/image/medium/mediumtest"
	"lethe/image/tree"
)

// TestCompareImages: two images are compared down to the line, by the same command as statements.
func TestCompareImages(t *testing.T) {
	d := desk{t: t, dir: t.TempDir()}
	other := mediumtest.Root(t)
	other.Remove("etc/hostname")
	many := &tree.Tree{}
	err := other.File("etc/hostname", 0o644, "", []byte("builder\n"))
	for i := range 120 {
		err = errors.Join(err, many.File("f"+strings.Repeat("x", i), 0o644, "", nil))
	}
	a := mediumtest.Make(t, mediumtest.Spec{})
	for name, b := range map[string][]byte{"a": a, "same": bytes.Clone(a), "b": mediumtest.Make(t, mediumtest.Spec{Root: other}), "many": mediumtest.Make(t, mediumtest.Spec{Root: many})} {
		err = errors.Join(err, os.WriteFile(d.path(name), b, 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
	if out, err := d.run("", "compare", d.path("a"), d.path("same")); err != nil || out != "they are the same, bit for bit\n" {
		t.Errorf("%q, %v", out, err)
	}
	if out, err := d.run("", "compare", "--json", d.path("a"), d.path("same")); err != nil || !strings.Contains(out, `"same": true`) {
		t.Errorf("%q, %v", out, err)
	}
	out, err := d.run("", "compare", d.path("a"), d.path("b"))
	if fault.Of(err) != fault.Untrusted || !strings.HasPrefix(out, "first difference: byte ") || !strings.Contains(out, "root › etc/hostname: content\n\t@@ line 1 @@\n\t-lethe\n\t+builder\n") {
		t.Errorf("%s, %v", out, err)
	}
	out, err = d.run("", "compare", "--json", d.path("a"), d.path("b"))
	var r compare.Report
	if jsonErr := json.Unmarshal([]byte(out), &r); fault.Of(err) != fault.Untrusted || jsonErr != nil || r.Same || len(r.Differences) == 0 {
		t.Errorf("%s, %v, %v", out, err, jsonErr)
	}
	if out, err := d.run("", "compare", d.path("a"), d.path("many")); fault.Of(err) != fault.Untrusted || !strings.Contains(out, " more\n") {
		t.Errorf("%s, %v", out, err)
	}
	// One image and one that is none, or is not there.
	if err := os.WriteFile(d.path("text"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"text", "nothing"} {
		if _, err := d.run("", "compare", d.path("a"), d.path(name)); err == nil {
			t.Errorf("%s: compared", name)
		}
	}
}
