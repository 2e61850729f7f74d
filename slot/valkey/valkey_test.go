package valkey_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"lethe/fault"
	"lethe/lab/pki"
	"lethe/private"
	"lethe/slot"
	"lethe/slot/slottest"
	"lethe/slot/valkey"
)

func open(t testing.TB, url string, lease time.Duration) *valkey.Store {
	t.Helper()
	s, err := valkey.Open(context.Background(), valkey.Config{URL: url, Lease: lease})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestContract(t *testing.T) {
	server := slottest.StartServer(t, false, slottest.Quiet()...)
	slottest.Run(t, func(t *testing.T, test func(*testing.T, slot.Store)) {
		t.Parallel()
		test(t, open(t, server.URL(), slottest.Lease))
	})
}

// TestManyControlPlanes: what one has given, the others know.
func TestManyControlPlanes(t *testing.T) {
	server := slottest.StartServer(t, false, slottest.Quiet()...)
	var stores []*valkey.Store
	for range 3 {
		stores = append(stores, open(t, server.URL(), slot.Lease))
	}
	l, given := slot.Licence{1}, 0
	for i := range 12 {
		switch err := stores[i%3].Take(t.Context(), l, slot.ID{byte(i + 1)}, slot.ID{}, 4); {
		case err == nil:
			given++
		case fault.Of(err) != fault.TooMany:
			t.Fatal(err)
		}
	}
	if n, err := stores[2].Count(t.Context(), l); given != 4 || n != 4 || err != nil {
		t.Errorf("%d were given, %d are counted (%v), want 4", given, n, err)
	}
	if err := errors.Join(stores[1].Renew(t.Context(), l, slot.ID{1}, 4), stores[2].Release(t.Context(), l, slot.ID{1}),
		stores[0].Take(t.Context(), l, slot.ID{99}, slot.ID{}, 4)); err != nil {
		t.Error(err)
	}
}

// TestNothingIsLeft: what is in the server speaks of nobody, goes away by
// itself, and no file is written.
func TestNothingIsLeft(t *testing.T) {
	server := slottest.StartServer(t, false, slottest.Quiet()...)
	s := open(t, server.URL(), time.Second)
	raw := redis.NewClient(&redis.Options{Network: "unix", Addr: server.Socket})
	defer raw.Close()
	l := slot.Licence{1, 2, 3}
	for i := range 3 {
		if err := s.Take(t.Context(), l, slot.ID{byte(i + 1)}, slot.ID{}, 3); err != nil {
			t.Fatal(err)
		}
	}
	keys, err := raw.Keys(t.Context(), "*").Result()
	if err != nil || len(keys) != 1 || keys[0] != valkey.Key(l) {
		t.Fatalf("the server has the keys %q (%v)", keys, err)
	}
	if ttl, err := raw.PTTL(t.Context(), keys[0]).Result(); err != nil || ttl <= 0 || ttl > time.Second {
		t.Errorf("the key goes away after %v (%v), want within a second", ttl, err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if n, err := raw.DBSize(t.Context()).Result(); err == nil && n == 0 {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("%d keys are left (%v)", n, err)
		}
	}
	if slow, err := raw.SlowLogGet(t.Context(), -1).Result(); err != nil || len(slow) != 0 {
		t.Errorf("the slow log has %d entries (%v)", len(slow), err)
	}
	server.Stop()
	noFiles(t, server.Dir)
}

func noFiles(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			t.Errorf("the server has written %s", filepath.Base(path))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// refused opens a server that must be refused, with a hint that says what to
// change.
func refused(t *testing.T, c valkey.Config, text, hint string) {
	t.Helper()
	s, err := valkey.Open(t.Context(), c)
	if err == nil {
		s.Close()
		t.Fatal("accepted")
	}
	var f *fault.Error
	if !errors.As(err, &f) || f.Kind != fault.Invalid || !strings.Contains(f.Text, text) || !strings.Contains(f.Hint, hint) {
		t.Fatalf("refused with %#v, want %q and %q", f, text, hint)
	}
}

// TestPersistence: a server that remembers is refused.
func TestPersistence(t *testing.T) {
	for _, c := range []struct {
		name       string
		args       []string
		text, hint string
	}{
		{"as it comes", nil, "saves to a disk", `save ""`},
		{"save", []string{"--save", "3600 1"}, "saves to a disk", `save ""`},
		{"append-only file", []string{"--appendonly", "yes"}, "append-only", "appendonly no"},
		{"slow log", []string{"--slowlog-log-slower-than", "10000"}, "slow commands", "slowlog-log-slower-than -1"},
		{"settings are hidden", []string{"--user", "default", "on", "nopass", "~*", "&*", "+@all", "-config"}, "does not say", "+config|get"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			args := append(slottest.Quiet(), c.args...)
			if c.args == nil {
				args = nil
			}
			server := slottest.StartServer(t, false, args...)
			refused(t, valkey.Config{URL: server.URL(), Lease: slot.Lease}, c.text, c.hint)
		})
	}
}

// TestReplicas: a copy must not remember either.
func TestReplicas(t *testing.T) {
	for _, c := range []struct {
		name          string
		primary, copy []string
		text          string // empty: accepted
	}{
		{"both forget", nil, []string{"--repl-diskless-load", "swapdb"}, ""},
		{"a copy that saves", nil, []string{"--repl-diskless-load", "swapdb", "--save", "60 1"}, "a replica of the Valkey server saves"},
		{"a copy through a file there", nil, nil, "takes its copy through a file"},
		{"a copy through a file here", []string{"--repl-diskless-sync", "no"}, []string{"--repl-diskless-load", "swapdb"}, "copies to its replicas through a file"},
		{"a copy that does not let us in", nil, []string{"--repl-diskless-load", "swapdb", "--requirepass", "other"}, "a replica of the Valkey server does not say"},
		{"a copy that cannot be reached", nil, []string{"--repl-diskless-load", "swapdb", "--replica-announce-port", "1"}, "cannot be asked"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			primary := slottest.StartServer(t, true, append(append(slottest.Quiet(), "--repl-diskless-sync-delay", "0"), c.primary...)...)
			replica := slottest.StartServer(t, true, append(append(slottest.Quiet(), "--replicaof", "127.0.0.1 "+strconv.Itoa(primary.Port)), c.copy...)...)
			raw := redis.NewClient(&redis.Options{Network: "unix", Addr: primary.Socket})
			defer raw.Close()
			for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
				info, err := raw.Info(t.Context(), "replication").Result()
				if err == nil && strings.Contains(info, "state=online") {
					break
				} else if time.Now().After(deadline) {
					t.Fatalf("no replica: %v %s", err, info)
				}
			}
			config := valkey.Config{URL: primary.URL(), Lease: slot.Lease}
			if c.text != "" {
				refused(t, config, c.text, "")
				return
			}
			open(t, primary.URL(), slot.Lease)
			refused(t, valkey.Config{URL: replica.URL()}, "is a replica", "primary")

			// A copy of the copy.
			third := slottest.StartServer(t, true, append(slottest.Quiet(), "--replicaof", "127.0.0.1 "+strconv.Itoa(replica.Port))...)
			for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
				s, err := valkey.Open(t.Context(), config)
				if err != nil && strings.Contains(err.Error(), "replicas of its own") {
					break
				} else if time.Now().After(deadline) {
					t.Fatalf("a copy of a copy was not noticed: %v", err)
				}
				if err == nil {
					s.Close()
				}
			}
			third.Stop()
		})
	}
}

// TestFoundOutLater: a server that begins to remember is not told anything on
// a new connection.
func TestFoundOutLater(t *testing.T) {
	server := slottest.StartServer(t, false, slottest.Quiet()...)
	s := open(t, server.URL(), slot.Lease)
	l := slot.Licence{1}
	if err := s.Take(t.Context(), l, slot.ID{1}, slot.ID{}, 2); err != nil {
		t.Fatal(err)
	}
	raw := redis.NewClient(&redis.Options{Network: "unix", Addr: server.Socket})
	defer raw.Close()
	if err := raw.ConfigSet(t.Context(), "appendonly", "yes").Err(); err != nil {
		t.Fatal(err)
	}
	if err := raw.ClientKillByFilter(t.Context(), "TYPE", "normal", "SKIPME", "yes").Err(); err != nil {
		t.Fatal(err)
	}
	err := s.Take(t.Context(), l, slot.ID{2}, slot.ID{}, 2)
	if err == nil || fault.Of(err) != fault.Unavailable || strings.Contains(err.Error(), "append") {
		t.Errorf("a server that remembers: %v", err)
	}
	if n, err := raw.ZCard(t.Context(), valkey.Key(l)).Result(); err != nil || n != 1 {
		t.Errorf("it was told of %d slots (%v), want 1", n, err)
	}
}

// TestServerDies: no answer is never a limit, and a server that is back is used
// again, with nothing of before.
func TestServerDies(t *testing.T) {
	server := slottest.StartServer(t, false, slottest.Quiet()...)
	s := open(t, server.URL(), slot.Lease)
	l := slot.Licence{1}
	if err := s.Take(t.Context(), l, slot.ID{1}, slot.ID{}, 1); err != nil {
		t.Fatal(err)
	}
	server.Stop()
	for name, err := range map[string]error{
		"take": s.Take(t.Context(), l, slot.ID{2}, slot.ID{}, 1), "renew": s.Renew(t.Context(), l, slot.ID{1}, 1),
		"release": s.Release(t.Context(), l, slot.ID{1}), "end": s.End(t.Context(), l),
	} {
		if err == nil || fault.Of(err) != fault.Unavailable {
			t.Errorf("%s: %v, want unavailable", name, err)
		}
	}
	if _, err := s.Count(t.Context(), l); fault.Of(err) != fault.Unavailable {
		t.Errorf("count: %v, want unavailable", err)
	}
	if _, err := valkey.Open(t.Context(), valkey.Config{URL: server.URL()}); fault.Of(err) != fault.Unavailable {
		t.Errorf("open: %v, want unavailable", err)
	}
	back := slottest.StartServer(t, false, slottest.Quiet()...)
	if err := os.Symlink(back.Socket, server.Socket+".new"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(server.Socket+".new", server.Socket); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Count(t.Context(), l); err != nil || n != 0 {
		t.Errorf("%d slots after a restart of the server (%v)", n, err)
	}
	if err := s.Renew(t.Context(), l, slot.ID{1}, 1); err != nil {
		t.Errorf("the heartbeat after a restart of the server: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := s.Close(); fault.Of(err) != fault.Unavailable {
		t.Errorf("closed again: %v", err)
	}
}

func TestAddress(t *testing.T) {
	for _, url := range []string{
		"", "unix://", "unix://host/path", "unix:///s?db=1", "http://127.0.0.1:1", "redis://192.0.2.1:6379", "redis://valkey.example:6379",
		"rediss://valkey.example", "rediss://:6379", "redis://127.0.0.1:6379/1", "redis://a:b@127.0.0.1:6379", "rediss://h:1#x", "%",
	} {
		if _, err := valkey.Open(t.Context(), valkey.Config{URL: url}); fault.Of(err) != fault.Invalid || err == nil {
			t.Errorf("%q: %v, want invalid", url, err)
		}
	}
	server := slottest.StartServer(t, true, append(slottest.Quiet(), "--requirepass", "secret")...)
	url := fmt.Sprintf("redis://127.0.0.1:%d", server.Port)
	s, err := valkey.Open(t.Context(), valkey.Config{URL: url, Password: private.Of("secret"), Lease: slot.Lease})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	_, err = valkey.Open(t.Context(), valkey.Config{URL: url, Password: private.Of("wrong")})
	if fault.Of(err) != fault.Unavailable || strings.Contains(fmt.Sprint(err), "127.0.0.1") {
		t.Errorf("a wrong password: %v", err)
	}
}

// TestLeastRights: a user with the rights that doc/control.md names, and no
// others, is enough.
func TestLeastRights(t *testing.T) {
	server := slottest.StartServer(t, false, append(slottest.Quiet(), "--user", "lethe", "on", ">secret", "~lethe:slot:*",
		"+@scripting", "+@sortedset", "+@connection", "+del", "+pexpire", "+time", "+info", "+config|get")...)
	s, err := valkey.Open(t.Context(), valkey.Config{URL: "unix://lethe@" + server.Socket, Password: private.Of("secret"), Lease: slot.Lease})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx, l := t.Context(), slot.Licence{1}
	if err := errors.Join(s.Take(ctx, l, slot.ID{1}, slot.ID{}, 1), s.Renew(ctx, l, slot.ID{1}, 1), s.Release(ctx, l, slot.ID{1}), s.End(ctx, l)); err != nil {
		t.Error(err)
	}
	if n, err := s.Count(ctx, l); err != nil || n != 0 {
		t.Errorf("%d, %v", n, err)
	}
}

// TestTLS: a server elsewhere is spoken to by TLS, and by nothing else when its
// certificate is not right.
func TestTLS(t *testing.T) {
	ca, err := pki.NewAuthority("valkey")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.Issue("valkey", x509.ExtKeyUsageServerAuth, nil, netip.MustParseAddr("127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	server := slottest.StartServer(t, true, slottest.Quiet()...)
	certificate, err := tls.X509KeyPair([]byte(pair.Certificate), []byte(pair.Key))
	if err != nil {
		t.Fatal(err)
	}
	var served atomic.Int64
	front, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{certificate}})
	if err != nil {
		t.Fatal(err)
	}
	defer front.Close()
	go relay(front, server.Socket, &served)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(ca.PEM))
	url := "rediss://" + front.Addr().String()
	s, err := valkey.Open(t.Context(), valkey.Config{URL: url, TLS: &tls.Config{RootCAs: roots}, Lease: slot.Lease})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Take(t.Context(), slot.Licence{1}, slot.ID{1}, slot.ID{}, 1); err != nil {
		t.Error(err)
	}
	before := served.Load()
	if _, err := valkey.Open(t.Context(), valkey.Config{URL: url}); fault.Of(err) != fault.Unavailable || served.Load() != before {
		t.Errorf("a certificate that does not verify: %v", err)
	}
}

// relay passes the bytes of each connection on to a Unix socket.
func relay(front net.Listener, socket string, served *atomic.Int64) {
	for {
		a, err := front.Accept()
		if err != nil {
			return
		}
		go func() {
			defer a.Close()
			if a.(*tls.Conn).Handshake() != nil {
				return
			}
			served.Add(1)
			b, err := net.Dial("unix", socket)
			if err != nil {
				return
			}
			defer b.Close()
			go func() {
				_, _ = io.Copy(b, a)
				_ = b.(*net.UnixConn).CloseWrite()
			}()
			_, _ = io.Copy(a, b)
		}()
	}
}
