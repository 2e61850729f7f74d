package openvpn_test

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"lethe/location"
	"lethe/openvpn"
	"lethe/private"
	"lethe/protocol"
	"lethe/spec"
)

func TestNewRefuses(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*openvpn.Config)
		want   string
	}{
		{"relative directory", func(c *openvpn.Config) { c.RuntimeDir = "run" }, "absolute"},
		{"long directory", func(c *openvpn.Config) { c.RuntimeDir = "/" + strings.Repeat("x", 90) }, "at most 80"},
		{"root", func(c *openvpn.Config) { c.UID = 0 }, "root"},
		{"clients", func(c *openvpn.Config) { c.MaxClients = 70000 }, "70000 clients"},
		{"no transport", func(c *openvpn.Config) { c.Transports = nil }, "no transport"},
		{"resolver", func(c *openvpn.Config) { c.DNS = []netip.Addr{{}} }, "resolver"},
		{"specification", func(c *openvpn.Config) { c.Node = func() spec.Node { return spec.Node{} } }, "poll_seconds"},
		{"no specification", func(c *openvpn.Config) { c.Node = nil }, "no specification"},
		{"certificate", func(c *openvpn.Config) { c.Certificate = private.Of("x") }, "certificate is not in PEM"},
		{"key", func(c *openvpn.Config) { c.Key = private.Of(c.Key.Reveal() + "</key>\nscript-security 2") }, "key is not in PEM"},
		{"tls-crypt", func(c *openvpn.Config) { c.TLSCrypt = private.Value[string]{} }, "tls-crypt key is not in PEM"},
		{"protocol", func(c *openvpn.Config) { c.Transports[0].Protocol = protocol.IKEv2 }, "transport ikev2"},
		{"no port", func(c *openvpn.Config) { c.Transports[0].Alone = 0 }, "do not fit"},
		{"low port", func(c *openvpn.Config) { c.Transports[0].Port = 1023 }, "do not fit"},
		{"many", func(c *openvpn.Config) { c.FirstDaemon = 127 }, "do not fit"},
		{"same port", func(c *openvpn.Config) { c.Transports[1] = c.Transports[0] }, "twice"},
		{"no program", func(c *openvpn.Config) { c.Binary = "/nonexistent/openvpn" }, "ask for its version"},
		{"other program", func(c *openvpn.Config) { c.Binary = "/bin/true" }, "not in the expected form"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := config("/run/x")
			tt.change(&cfg)
			_, err := openvpn.New(cfg, newCore(), nil)
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "BEGIN") {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// TestSpecificationIsAskedAnew shows that a process which is started again gets the
// specification of that moment.
func TestSpecificationIsAskedAnew(t *testing.T) {
	cfg, node := config("/run/x"), spec.Default()
	cfg.Node = func() spec.Node { return node }
	for _, keepalive := range []int{10, 3} {
		node.KeepaliveSeconds = keepalive
		want := fmt.Sprintf("\nping %d\nping-restart %d\n", keepalive, 6*keepalive)
		for _, got := range openvpn.Render(cfg, false, false, 1) {
			if !strings.Contains(got, want) {
				t.Errorf("want %q in %s", want, got[:strings.Index(got, "<ca>")])
			}
		}
	}
}

func TestFeatures(t *testing.T) {
	const v26 = "OpenVPN 2.6.14 x86_64 [SSL (OpenSSL)] [DCO]\nlibrary versions: OpenSSL 3.0.19 27 Jan 2026, LZO 2.10\n"
	const v27 = "OpenVPN 2.7.8 x86_64 [SSL (OpenSSL)] [DCO]\nlibrary versions: OpenSSL 3.5.7 1 Jan 2026, LZO 2.10\n"
	for _, tt := range []struct {
		name, out       string
		kernel          bool
		hybrid, offload bool
		err             string
	}{
		{"Debian 12", v26, false, false, false, ""},
		{"Debian 12, new kernel", v26, true, false, false, ""},
		{"backports", v27, true, true, true, ""},
		{"backports, old kernel", v27, false, true, false, ""},
		{"without offload", strings.Replace(v27, "[DCO]", "", 1), true, true, false, ""},
		{"OpenSSL 4", strings.Replace(v27, "OpenSSL 3.5.7", "OpenSSL 4.0.0", 1), false, true, false, ""},
		{"old", strings.Replace(v26, "2.6.14", "2.5.9", 1), false, false, false, "version 2.5"},
		{"other library", "OpenVPN 2.6.14 x\nlibrary versions: mbed TLS 3.6\n", false, false, false, "OpenSSL"},
	} {
		hybrid, offload, err := openvpn.Features(tt.out, tt.kernel)
		if hybrid != tt.hybrid || offload != tt.offload || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: got %t, %t, %v", tt.name, hybrid, offload, err)
		}
	}
}

// TestRender checks what a configuration must not contain and that offload and post-quantum key
// exchange are asked for where they exist.
func TestRender(t *testing.T) {
	cfg := config("/run/x")
	cfg.DNS = []netip.Addr{netip.MustParseAddr("10.64.0.1"), netip.MustParseAddr("fd00::53")}
	cfg.MaxClients = 100
	cfg.Transports[0].Processes, cfg.Transports[0].Alone = 0, 1194
	user := openvpn.Render(cfg, false, false, 3)
	if len(user) != 4 {
		t.Fatalf("%d processes, want 3 for UDP and 1 for TCP", len(user))
	}
	forbidden := regexp.MustCompile(`(?m)^(status|log|log-append|syslog|plugin|client-config-dir|ifconfig-pool|ifconfig-pool-persist|auth-gen-token|client-connect|client-disconnect|learn-address|up|down|auth-user-pass-verify|tls-verify|setenv|client-to-client|daemon|writepid|cipher|compress|comp-lzo|tls-crypt-v2)\b`)
	kernel := openvpn.Render(cfg, true, true, 3)
	if len(kernel) != 2 {
		t.Fatalf("%d processes with offload, want 2", len(kernel))
	}
	for _, text := range append(user, kernel...) {
		if m := forbidden.FindString(text); m != "" {
			t.Errorf("configuration has %s", m)
		}
		for _, want := range []string{"verb 0\n", "script-security 0\n", "tls-version-min 1.3\n", "data-ciphers AES-256-GCM:CHACHA20-POLY1305\n", "DNS fd00::53", "max-clients 100\n", "management-hold\n"} {
			if !strings.Contains(text, want) {
				t.Errorf("configuration lacks %q", want)
			}
		}
	}
	if !strings.Contains(user[1], "port 21195\n") || !strings.Contains(user[1], "dev lethe1\n") || !strings.Contains(user[1], "disable-dco\n") || strings.Contains(user[0], "MLKEM") {
		t.Error("user space configuration")
	}
	if !strings.Contains(kernel[0], "port 1194\n") {
		t.Error("a process alone is not at its own port")
	}
	if !strings.Contains(user[0], "\nfast-io\n") || strings.Contains(user[3], "fast-io") || strings.Contains(kernel[0], "fast-io") {
		t.Error("fast-io is for UDP in user space")
	}
	if strings.Contains(kernel[0], "disable-dco") || strings.Contains(kernel[0], "ifconfig-noexec") || !strings.Contains(kernel[0], "tls-groups X25519MLKEM768:X25519:secp384r1\n") {
		t.Error("offload configuration")
	}
}

// TestClientConfig: the profile and more lines, of the ciphers that the server takes. What else is in it
// is tested in package profile.
func TestClientConfig(t *testing.T) {
	srv := directory()
	server := openvpn.Render(config("/run/x"), false, false, 1)[0]
	for _, e := range srv.Endpoints {
		text, err := openvpn.ClientConfig(srv, e, "verb 1")
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(text, "\nverb 1\n") || !strings.Contains(text, fmt.Sprintf("remote %s %d\n", srv.Addresses[0], e.Port)) {
			t.Errorf("%s: %s", e.Protocol, text)
		}
		same := regexp.MustCompile(`(?m)^(tls-version-min|tls-ciphersuites|data-ciphers) .*$`)
		if mine, theirs := same.FindAllString(text, -1), same.FindAllString(server, -1); len(mine) != 3 || !slices.Equal(mine, theirs) {
			t.Errorf("%s: the client says %q, the server %q", e.Protocol, mine, theirs)
		}
	}
	for name, change := range map[string]func(*location.Server, *location.Endpoint){
		"id":        func(s *location.Server, _ *location.Endpoint) { s.ID = "x y" },
		"ca":        func(s *location.Server, _ *location.Endpoint) { s.CA = "</ca>\nup evil" },
		"tls-crypt": func(s *location.Server, _ *location.Endpoint) { s.TLSCrypt += "<" },
		"protocol":  func(_ *location.Server, e *location.Endpoint) { e.Protocol = protocol.IKEv2 },
	} {
		s, e := directory(), directory().Endpoints[0]
		change(&s, &e)
		if _, err := openvpn.ClientConfig(s, e); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
