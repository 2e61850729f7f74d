package control_test

import (
	"context"
	stdtls "crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"lethe/account"
	api "lethe/api/client"
	"lethe/control"
	"lethe/fault"
	"lethe/internal/testkit"
	"lethe/lab/pki"
	"lethe/private"
	"lethe/slot/slottest"
)

// running is a service that runs in the test's process.
type running struct {
	shell
	addr string
	pool *x509.CertPool
	log  *testkit.Log
	stop func() int // ends it and returns its exit code
}

// settings writes a configuration with a certificate for 127.0.0.1 and returns
// its path, the app API's address and whom to trust.
func settings(t *testing.T, slots string) (path, addr string, pool *x509.CertPool) {
	t.Helper()
	ca, err := pki.NewAuthority("control")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.Issue("control", x509.ExtKeyUsageServerAuth, nil, netip.MustParseAddr("127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	pool = x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(ca.PEM))
	free := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Addr().String()
	}
	addr = free()
	conf := fmt.Sprintf(`{"version":1,"app":{"listen":%q,"certificate":"cert","key":"key"},"node":{"listen":%q,"certificate":"cert","key":"key"},"client_ca":"cert"%s}`,
		addr, free(), slots)
	for name, text := range map[string]string{"cert": pair.Certificate, "key": pair.Key,
		"control.json": conf, "password": "secret\r\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "control.json"), addr, pool
}

// serve starts the service; slots is a part of its configuration.
func (s shell) serve(slots string) *running {
	s.t.Helper()
	for range 3 { // somebody may be faster at the ports
		if r := s.tryToServe(slots); r != nil {
			return r
		}
	}
	s.t.Fatal("the service does not start")
	return nil
}

// tryToServe returns nil when the service has ended at once.
func (s shell) tryToServe(slots string) *running {
	s.t.Helper()
	path, addr, pool := settings(s.t, slots)
	r := &running{shell: s, addr: addr, pool: pool, log: &testkit.Log{}}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	var code int
	go func() {
		defer close(ended)
		code = control.Run(ctx, []string{"--dir", s.dir, "serve", "--config", path}, strings.NewReader(""), io.Discard, r.log)
	}()
	r.stop = sync.OnceValue(func() int {
		cancel()
		<-ended
		return code
	})
	s.t.Cleanup(func() { r.stop() })
	for deadline := time.Now().Add(20 * time.Second); !strings.Contains(r.log.String(), "started part=control"); {
		select {
		case <-ended:
			s.t.Log(r.log)
			return nil
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("the service does not start: %s", r.log)
		}
	}
	return r
}

func (r *running) app() *api.Client {
	r.t.Helper()
	c, err := api.New(api.Config{URL: "https://" + r.addr, TLS: &stdtls.Config{RootCAs: r.pool}})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(c.Close)
	return c
}

// shows checks what `slots show` says: how many of how many, nothing else.
func (r *running) shows(connected, limit int) {
	r.t.Helper()
	if got, want := r.ok("", "slots", "show", "ann@example.org"), fmt.Sprintf("connected  %d\nlimit      %d\n", connected, limit); got != want {
		r.t.Errorf("slots show says %q, want %q", got, want)
	}
	var all map[string]any
	if err := json.Unmarshal([]byte(r.ok("ann@example.org\n", "slots", "show", "-", "--json")), &all); err != nil || len(all) != 2 ||
		all["connected"] != float64(connected) || all["limit"] != float64(limit) {
		r.t.Errorf("slots show --json says %v (%v)", all, err)
	}
}

// junk sends what is no TLS, about which net/http has something to say.
func (r *running) junk() {
	r.t.Helper()
	conn, err := net.Dial("tcp", r.addr)
	if err != nil {
		r.t.Fatal(err)
	}
	defer conn.Close()
	_, _ = conn.Write(make([]byte, 64))
	_, _ = io.Copy(io.Discard, conn) // until it has been said
}

func TestSlots(t *testing.T) {
	server := slottest.StartServer(t, false, append(slottest.Quiet(), "--requirepass", "secret")...)
	for name, slots := range map[string]string{
		"memory": "", "valkey": fmt.Sprintf(`,"slots":{"valkey":%q,"password":"password"}`, server.URL()),
	} {
		t.Run(name, func(t *testing.T) {
			s := newShell(t)
			s.ok("correct horse\n", "account", "create", "ann@example.org")
			s.ok("", "licence", "create", "ann@example.org", "--devices", "2", "--until", "2099-01-31")
			if _, stderr, code := s.run("", "slots", "show", "ann@example.org"); code != 6 || !strings.Contains(stderr, "hint: start it") {
				t.Errorf("without a service: exit %d, %s", code, stderr)
			}
			r := s.serve(slots)
			r.shows(0, 2)
			r.junk()
			c, ctx := r.app(), t.Context()
			login, err := c.Login(ctx, "ann@example.org", private.Of("correct horse"), account.App{OS: "linux", Version: "0.1.0"})
			if err != nil {
				t.Fatal(err)
			}
			var devices []private.Value[string]
			for range 2 {
				d, err := c.TakeSlot(ctx, login, private.Value[string]{})
				if err != nil {
					t.Fatal(err)
				}
				devices = append(devices, d)
			}
			if _, err := c.TakeSlot(ctx, login, private.Value[string]{}); fault.Of(err) != fault.TooMany {
				t.Errorf("a third of two devices: %v", err)
			}
			r.shows(2, 2)
			if err := c.ReleaseSlot(ctx, devices[1]); err != nil {
				t.Error(err)
			}
			r.shows(1, 2)

			// After a restart the device that is connected counts again, and
			// nobody needs to log in for it.
			if code := r.stop(); code != 0 {
				t.Fatalf("exit %d: %s", code, r.log)
			}
			if said := r.log.String(); !strings.HasSuffix(said, "\nmumbled part=control lines=1\nstopped part=control\n") {
				t.Errorf("of the junk is said: %s", said)
			}
			if _, err := os.Lstat(filepath.Join(s.dir, "slots.sock")); !os.IsNotExist(err) {
				t.Errorf("the socket is left: %v", err)
			}
			r = s.serve(slots)
			if name == "memory" {
				r.shows(0, 2)
			}
			c = r.app()
			if err := c.Beat(ctx, devices[0]); err != nil {
				t.Error("the heartbeat after a restart:", err)
			}
			r.shows(1, 2)

			// The next heartbeat finds out what an operator has done meanwhile.
			s.ok("", "licence", "disable", "ann@example.org")
			r.shows(1, 0)
			if err := c.Beat(ctx, devices[0]); fault.Of(err) != fault.Expired {
				t.Errorf("the heartbeat of a disabled licence: %v", err)
			}
			r.shows(0, 0)
			if _, stderr, code := s.run("", "slots", "show", "ben@example.org"); code != 3 || !strings.Contains(stderr, "account list") {
				t.Errorf("of nobody: exit %d, %s", code, stderr)
			}
			if name == "valkey" {
				server.Stop()
				if _, stderr, code := s.run("", "slots", "show", "ann@example.org"); code != 6 || !strings.Contains(stderr, "hint: does its Valkey") {
					t.Errorf("without Valkey: exit %d, %s", code, stderr)
				}
			}
			if code := r.stop(); code != 0 {
				t.Errorf("exit %d", code)
			}
			noTrace(t, s.dir, devices)
		})
	}
}

// noTrace looks for the tokens in all files of the data directory.
func noTrace(t *testing.T, dir string, tokens []private.Value[string]) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		for _, token := range tokens {
			if strings.Contains(string(b), token.Reveal()) || strings.Contains(string(b), token.Reveal()[:20]) {
				t.Errorf("%s holds a slot", filepath.Base(path))
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestSlotsRefuses: the service does not start with slots that would be
// history, or whose settings make no sense.
func TestSlotsRefuses(t *testing.T) {
	s := newShell(t)
	history := slottest.StartServer(t, false, "--save", "60 1")
	for slots, want := range map[string]string{
		fmt.Sprintf(`{"valkey":%q}`, history.URL()):                        "saves to a disk",
		`{"valkey":"redis://valkey.example:6379"}`:                         "needs TLS",
		`{"valkey":"redis://a:b@127.0.0.1:6379"}`:                          "a password stands in the address",
		`{"password":"password"}`:                                          "need slots.valkey",
		`{"valkey":"rediss://valkey.example:6379","ca":"key"}`:             "no certificate",
		`{"valkey":"rediss://valkey.example:6379","password":"there/not"}`: "cannot be read",
		`{"valkey":"rediss://127.0.0.1:1","ca":"cert"}`:                    "does not answer",
		`{"redis":"unix:///s"}`:                                            "unknown field",
	} {
		path, _, _ := settings(t, `,"slots":`+slots)
		if _, stderr, code := s.run("", "serve", "--config", path); code == 0 || !strings.Contains(stderr, want) || strings.Contains(stderr, "started") {
			t.Errorf("%s: exit %d, %s", slots, code, stderr)
		} else if strings.Contains(stderr, "127.0.0.1") && !strings.Contains(stderr, "hint: want") {
			t.Errorf("%s: the error holds an address: %s", slots, stderr)
		}
	}
}

// TestDesk: what is no id of an account is told nothing, and a caller that says
// nothing stops nobody.
func TestDesk(t *testing.T) {
	s := newShell(t)
	desk := filepath.Join(s.dir, "slots.sock")
	if err := os.MkdirAll(filepath.Join(desk, "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	path, _, _ := settings(t, "")
	if _, stderr, code := s.run("", "serve", "--config", path); code != 6 || !strings.Contains(stderr, "slots.sock cannot be made") {
		t.Errorf("with something in the way: exit %d, %s", code, stderr)
	}
	if err := os.RemoveAll(desk); err != nil {
		t.Fatal(err)
	}
	left, err := net.ListenUnix("unix", &net.UnixAddr{Name: desk, Net: "unix"}) // as a killed service leaves it
	if err != nil {
		t.Fatal(err)
	}
	left.SetUnlinkOnClose(false)
	if err := left.Close(); err != nil {
		t.Fatal(err)
	}
	r := s.serve("")
	say := func(text string) string {
		t.Helper()
		conn, err := net.Dial("unix", desk)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, text); err != nil {
			t.Fatal(err)
		}
		if err := conn.(*net.UnixConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(conn)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for in, want := range map[string]string{
		"": "", "nobody\n": `{"connected":0,"limit":0,"error":"not-found"}` + "\n",
		"' OR 1=1 --\n": `{"connected":0,"limit":0,"error":"not-found"}` + "\n",
		"\n":            `{"connected":0,"limit":0,"error":"not-found"}` + "\n",
	} {
		if got := say(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if info, err := os.Lstat(desk); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket is %v (%v), want 0600", info.Mode(), err)
	}
	if code := r.stop(); code != 0 {
		t.Errorf("exit %d", code)
	}
}
