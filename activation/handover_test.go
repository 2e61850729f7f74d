//go:build !lab

package activation_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"lethe/activation"
)

// TestNoHandover: a program that ships takes no secrets from whoever sends them.
func TestNoHandover(t *testing.T) {
	p := start(t, "")
	got := p.say("POST /v1/secrets HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
	if want := "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	p.Use(activation.Drivers{OpenVPN: "tun"})
	if s := p.State(); s.Drivers != nil || s.Phase != activation.Awaiting {
		t.Errorf("got %+v", s)
	}
}

// TestShippedProgram builds lethe-node as it ships and as the lab has it, and looks for the handover in
// both: only the second has its symbols.
func TestShippedProgram(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		tags string
		want bool
	}{{"", false}, {"lab", true}} {
		path := filepath.Join(dir, "lethe-node"+c.tags)
		build := exec.Command("go", "build", "-buildvcs=false", "-trimpath", "-tags", c.tags, "-o", path, "lethe/cmd/lethe-node")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build: %v: %s", err, out)
		}
		symbols, err := exec.Command("go", "tool", "nm", path).Output()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(symbols, []byte("lethe/activation.(*Server).answer")) {
			t.Error("the program does not have the port at all")
		}
		for what, got := range map[string]bool{
			"the handler":  bytes.Contains(symbols, []byte("lethe/activation.(*Server).handover")),
			"writing kept": bytes.Contains(symbols, []byte("lethe/secret.Keep")),
		} {
			if got != c.want {
				t.Errorf("tags %q: %s is there: %t, want %t", c.tags, what, got, c.want)
			}
		}
	}
}
