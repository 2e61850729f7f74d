package private_test

import (
	"bytes"
	"encoding/gob"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"lethe/private"
)

const mark = "c4nary-s3cret"

type holder struct {
	Exported   private.Value[string]
	unexported private.Value[string]
	Pointer    *private.Value[string]
}

// TestNoVerbReveals walks every fmt verb and flag over a value in every
// position a careless log line could put it.
func TestNoVerbReveals(t *testing.T) {
	v := private.Of(mark)
	positions := map[string]any{
		"direct":  v,
		"pointer": &v,
		"slice":   []private.Value[string]{v},
		"map":     map[string]private.Value[string]{"k": v},
		"struct":  holder{v, v, &v},
		"nested":  []any{holder{v, v, &v}, &holder{v, v, &v}},
		"error":   fmt.Errorf("login %v: %w", v, fmt.Errorf("inner %s", v)),
	}
	for name, p := range positions {
		for verb := 'A'; verb <= 'z'; verb++ {
			for _, flags := range []string{"", "+", "#", "-", " ", "0", "8.3"} {
				s := fmt.Sprintf("%"+flags+string(verb), p)
				if leaks(s) {
					t.Errorf("%s with %%%s%c prints %q", name, flags, verb, s)
				}
			}
		}
		if s := fmt.Sprint(p); leaks(s) {
			t.Errorf("%s: Sprint gives %q", name, s)
		}
	}
}

func TestNoEncoderReveals(t *testing.T) {
	v := private.Of(mark)
	h := holder{Exported: v, unexported: v, Pointer: &v}
	var out bytes.Buffer
	check := func(name string) {
		t.Helper()
		if leaks(out.String()) {
			t.Errorf("%s gives %q", name, out.String())
		}
		out.Reset()
	}
	if err := json.NewEncoder(&out).Encode(h); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), private.Redacted) {
		t.Errorf("JSON without the mark of redaction: %s", out.String())
	}
	check("json")
	if err := xml.NewEncoder(&out).Encode(h); err != nil {
		t.Fatal(err)
	}
	check("xml")
	if err := gob.NewEncoder(&out).Encode(h); err != nil {
		t.Fatal(err)
	}
	check("gob")
	for name, handler := range map[string]slog.Handler{
		"slog text": slog.NewTextHandler(&out, nil),
		"slog json": slog.NewJSONHandler(&out, nil),
	} {
		slog.New(handler).Info("event", "direct", v, "struct", h, "slice", []any{v, h})
		check(name)
	}
	if v.String() != private.Redacted {
		t.Errorf("String gives %q", v.String())
	}
}

// TestRevealKeepsType shows that the content comes back, and that the zero
// Value is usable.
func TestRevealKeepsType(t *testing.T) {
	addr := netip.MustParseAddr("203.0.113.9")
	if got := private.Of(addr).Reveal(); got != addr {
		t.Errorf("Reveal gives %v, want %v", got, addr)
	}
	var zero private.Value[netip.Addr]
	if zero.Reveal().IsValid() {
		t.Error("the zero Value holds something")
	}
}

// leaks reports whether s holds the mark as text, hex or base64 text.
func leaks(s string) bool {
	hexMark := fmt.Sprintf("%x", mark)
	return strings.Contains(s, mark) || strings.Contains(strings.ToLower(s), hexMark) ||
		strings.Contains(s, "YzRuYXJ5")
}
