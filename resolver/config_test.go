package resolver_test

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"lethe/resolver"
)

func TestNewRefuses(t *testing.T) {
	good := resolver.Config{
		RuntimeDir: "/run/x", UID: 1, GID: 1, Addresses: []netip.Addr{netip.MustParseAddr("10.63.255.53")},
		Clients: []netip.Prefix{netip.MustParsePrefix("10.64.0.0/16")},
	}
	if _, err := resolver.New(good, nil); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*resolver.Config){
		"no address":  func(c *resolver.Config) { c.Addresses = nil },
		"any address": func(c *resolver.Config) { c.Addresses = []netip.Addr{netip.IPv4Unspecified()} },
		"everybody":   func(c *resolver.Config) { c.Clients = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")} },
		"root":        func(c *resolver.Config) { c.UID = 0 },
		"injection":   func(c *resolver.Config) { c.RootHints = "/x\"\nverbosity: 5" },
	} {
		c := good
		spoil(&c)
		if _, err := resolver.New(c, nil); err == nil || !strings.HasPrefix(err.Error(), "resolver: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSilence has unbound-checkconf read the configuration, with and without a
// root of one's own, and compares every setting that could tell something with
// what unbound makes of it.
func TestSilence(t *testing.T) {
	w := newWorld(t)
	for _, hints := range []string{w.hints(), ""} {
		cfg := w.config()
		cfg.RootHints = hints
		s, err := resolver.New(cfg, nil)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(w.dir, "unbound.conf")
		if err := os.WriteFile(file, []byte(s.Text()), 0o600); err != nil {
			t.Fatal(err)
		}
		for option, want := range map[string]string{
			"verbosity": "0", "use-syslog": "no", "logfile": "", "log-queries": "no", "log-replies": "no", "log-local-actions": "no",
			"log-servfail": "no", "log-tag-queryreply": "no", "val-log-level": "0", "statistics-interval": "0", "extended-statistics": "no",
			"control-enable": "no", "cache-max-ttl": "60", "prefetch": "no", "serve-expired": "no", "qname-minimisation": "yes",
			"auto-trust-anchor-file": "", "pidfile": "", "ip-ratelimit": "0", "dnstap-enable": "no", "cachedb": "",
		} {
			out, err := exec.Command("/usr/sbin/unbound-checkconf", "-o", option, file).CombinedOutput()
			if option == "cachedb" || option == "dnstap-enable" { // not there unless asked for
				if strings.Contains(s.Text(), option) {
					t.Errorf("%s is in the configuration", option)
				}
				continue
			}
			if got := strings.TrimSpace(string(out)); err != nil || got != want {
				t.Errorf("%s is %q (%v), want %q", option, got, err, want)
			}
		}
	}
}
