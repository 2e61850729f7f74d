package ikev2_test

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"lethe/internal/testkit"

	"lethe/session"
)

// fakeMain stands in for a charon that misbehaves. Like the real one it reads its configuration from the file
// that the environment names.
func fakeMain(mode string) {
	b, _ := os.ReadFile(os.Getenv("STRONGSWAN_CONF"))
	_, path, _ := strings.Cut(string(b), "unix://")
	path, _, _ = strings.Cut(path, "\n")
	if mode == "deaf" {
		time.Sleep(time.Minute)
		return
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	// By itself: a daemon in its sandbox starts no programs.
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "ipsec0"}, PeerName: "ipsec0p"}
	_ = netlink.LinkDel(pair) // left by the one before
	if err := netlink.LinkAdd(pair); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go speak(c, mode)
	}
}

// speak answers every command; the one that the mode names, with a failure or not at all.
func speak(c net.Conn, mode string) {
	defer c.Close()
	for {
		var head [4]byte
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return
		}
		b := make([]byte, binary.BigEndian.Uint32(head[:]))
		if _, err := io.ReadFull(c, b); err != nil {
			return
		}
		name := string(b[2 : 2+b[1]])
		answer := "\x01"
		switch {
		case mode == "refuse-"+name && b[0] == 0:
			answer = "\x01\x03\x07success\x00\x02no"
		case mode == "refuse-"+name:
			answer = "\x06"
		case mode == "drop-"+name:
			fmt.Println("ann@192.0.2.9 is to be ended")
			return
		case b[0] == 3 || b[0] == 4:
			answer = "\x05"
		}
		_, _ = c.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(answer))), answer...))
	}
}

// fake returns a program that says it is charon and is not.
func fake(t *testing.T, dir, mode string) string {
	t.Helper()
	path := filepath.Join(dir, "charon-systemd")
	testkit.StandIn(t, path, "", "PATH=/usr/sbin:/usr/bin:/sbin:/bin "+nested+"=fake-"+mode)
	return path
}

// TestMisbehaving shows that a charon that does not do as it should is noticed, and killed when it does not
// answer at all.
func TestMisbehaving(t *testing.T) {
	for _, mode := range []string{
		"deaf", "refuse-get-algorithms", "refuse-load-key", "refuse-load-cert", "refuse-ike-updown", "refuse-list-sas", "refuse-list-sa",
		"refuse-load-conn", "drop-terminate",
	} {
		t.Run(mode, func(t *testing.T) {
			dir := runtimeDir(t)
			cfg := config(dir)
			cfg.Binary = fake(t, dir, mode)
			s := launch(t, cfg, newLedger(t))
			want := "trouble part=ikev2 kind=internal"
			switch mode {
			case "deaf":
				want = "trouble part=ikev2 kind=unavailable"
			case "drop-terminate":
				s.core.told.Await(t, "resume", 1, 5*time.Second)
				nobody := session.Login{Proof: func(*[16]byte) bool { return false }}
				if _, err := s.Admit(session.Ref{Daemon: daemonID, Client: 5}, nobody); err == nil {
					t.Error("somebody got in without a password")
				}
				s.Kill(session.Ref{Daemon: daemonID, Client: 5})
				s.core.told.Await(t, "resume", 3, 5*time.Second) // the order is not lost with the connection
				s.stop()
				if !strings.Contains(s.log.String(), "mumbled part=ikev2 lines=") {
					t.Errorf("what it printed since the first login is not reported: %s", s.log)
				}
				return
			}
			testkit.Eventually(t, 15*time.Second, func() bool { return strings.Contains(s.log.String(), want) }, s.log.String)
			if strings.HasPrefix(mode, "refuse-load-c") || s.core.Count() != 0 {
				return
			}
			if s.core.told.Count("resume") != 0 {
				t.Errorf("journal %q", s.core.told.Entries())
			}
		})
	}
}

// TestUnprivilegedPeer shows that a socket of another user is not taken for charon's.
func TestUnprivilegedPeer(t *testing.T) {
	dir := runtimeDir(t)
	must(t, os.Mkdir(filepath.Join(dir, "charon3"), 0o711))
	l, err := net.Listen("unix", filepath.Join(dir, "charon3", "vici"))
	must(t, err)
	defer l.Close()
	s := start(t, config(dir), newLedger(t))
	if strings.Contains(s.log.String(), "adopted") {
		t.Error("adopted root")
	}
}
