package openvpn_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lethe/event"
	"lethe/internal/testkit"
	"lethe/openvpn"
	"lethe/protocol"
	"lethe/session"
)

// fakeMain stands in for an openvpn that misbehaves. It reads its configuration from standard
// input like the real one.
func fakeMain(mode string) {
	path := ""
	for sc := bufio.NewScanner(os.Stdin); sc.Scan(); {
		if rest, ok := strings.CutPrefix(sc.Text(), "management "); ok {
			path = strings.TrimSuffix(rest, " unix")
		}
	}
	if mode == "deaf" {
		time.Sleep(time.Minute)
		return
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	for i := 0; ; i++ {
		c, err := l.Accept()
		if err != nil {
			return
		}
		switch mode {
		case "liar": // answers what nobody asked
			_, _ = io.WriteString(c, "SUCCESS: a\nSUCCESS: b\nSUCCESS: c\n")
			_, _ = io.Copy(io.Discard, c)
		case "mute": // says nothing on the first connection
			if i > 0 {
				go refuse(c)
			}
		case "refuser": // lets a client in and says that it is not there
			go refuse(c)
		case "busy": // takes its time for every command about a client
			go dawdle(c)
		}
	}
}

func refuse(c net.Conn) {
	for sc := bufio.NewScanner(c); sc.Scan(); {
		switch f := strings.Fields(sc.Text()); f[0] {
		case "hold":
			_, _ = io.WriteString(c, "SUCCESS: hold release succeeded\n")
		case "status":
			_, _ = io.WriteString(c, ">CLIENT:ESTABLISHED,9\n>CLIENT:ENV,END\nTITLE\tx\nCLIENT_LIST\tu\tr\t\t\t\t\t\t\tu\t5\nEND\n"+
				">CLIENT:CONNECT,1,0\n>CLIENT:ENV,username=u\n>CLIENT:ENV,password="+password+"\n>CLIENT:ENV,END\n>CLIENT:REAUTH,2,0\n>CLIENT:ENV,END\n")
		case "END", "client-deny", "client-pending-auth", "client-kill":
			fmt.Println("u/192.0.2.9:1194 is not there")
			_, _ = io.WriteString(c, "ERROR: "+f[0]+" command failed\n")
		}
	}
}

// dawdle lets a client in and answers late. A command that comes before the answer to the one before
// it is reported as a renegotiation; when all three wakes have come in order, the client leaves.
func dawdle(c net.Conn) {
	lines := make(chan string)
	go func() {
		for sc := bufio.NewScanner(c); sc.Scan(); {
			lines <- sc.Text()
		}
	}()
	_, _ = <-lines, <-lines // hold release, status 3
	_, _ = io.WriteString(c, "SUCCESS: hold release succeeded\nTITLE\tx\nEND\n>CLIENT:CONNECT,1,0\n>CLIENT:ENV,username=u\n>CLIENT:ENV,password="+password+"\n>CLIENT:ENV,END\n")
	for _, last := range []string{"END", "client-pending-auth", "client-pending-auth", "client-pending-auth"} {
		for l := range lines {
			if strings.HasPrefix(l, last) {
				break
			}
		}
		select {
		case <-lines:
			_, _ = io.WriteString(c, ">CLIENT:REAUTH,1,1\n>CLIENT:ENV,END\n")
			return
		case <-time.After(400 * time.Millisecond): // longer than any wake waits
		}
		_, _ = io.WriteString(c, "SUCCESS: command succeeded\n")
	}
	_, _ = io.WriteString(c, ">CLIENT:DISCONNECT,1\n>CLIENT:ENV,END\n")
}

// fake returns a program that says it is openvpn and is not.
func fake(t *testing.T, dir, mode string) string {
	t.Helper()
	path := filepath.Join(dir, "openvpn")
	testkit.StandIn(t, path, `[ "$1" = --version ] && exec openvpn --version`, nested+"=fake-"+mode)
	return path
}

func TestMisbehaving(t *testing.T) {
	namespace(t)
	for i, tt := range []struct {
		mode  string
		until func(*server) bool
	}{
		{"deaf", func(s *server) bool {
			return strings.Contains(s.log.String(), "kind=unavailable") && strings.Contains(s.log.String(), "restarted")
		}},
		{"mute", func(s *server) bool { return s.core.told.Count("admit") == 1 }},
		{"liar", func(s *server) bool { return strings.Contains(s.log.String(), "trouble part=openvpn kind=internal") }},
		{"refuser", func(s *server) bool {
			return s.core.told.Count("admit") == 1 && s.core.told.Count("end") == 1 && s.core.told.Count("renew") == 1
		}},
		{"busy", func(s *server) bool { return s.core.told.Count("end") == 1 && s.core.told.Count("renew") == 0 }},
	} {
		t.Run(tt.mode, func(t *testing.T) {
			t.Parallel()
			dir := runtimeDir(t)
			cfg := config(dir)
			cfg.Binary, cfg.FirstDaemon = fake(t, dir, tt.mode), uint8(10+i)
			cfg.Transports = cfg.Transports[:1]
			s := start(t, cfg, newCore())
			testkit.Eventually(t, 20*time.Second, func() bool { return tt.until(s) }, func() string { return fmt.Sprint(s.log, s.core.told.Entries()) })
			s.Kill(session.Ref{Daemon: cfg.FirstDaemon, Client: 1})
			s.stop()
			if tt.mode == "refuser" && !strings.Contains(s.log.String(), "mumbled part=openvpn lines=") {
				t.Errorf("what it printed is not reported: %s", s.log)
			}
		})
	}
}

// TestNotStartable takes away what a process needs before it starts.
func TestNotStartable(t *testing.T) {
	namespace(t)
	dir := runtimeDir(t)
	cfg := config(dir)
	cfg.FirstDaemon = 20
	must(t, testkit.Command("ip link add lethe20 type veth peer name lethe20p")) // no tunnel device can have that name
	s := start(t, func() openvpn.Config { c := cfg; c.Binary = "/usr/sbin/../sbin/openvpn"; return c }(), newCore())
	testkit.Eventually(t, 5*time.Second, func() bool { return strings.Contains(s.log.String(), "trouble part=openvpn kind=internal") }, s.log.String)
	s.stop()

	must(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	cfg.RuntimeDir = filepath.Join(dir, "file", "sub")
	bad, err := openvpn.New(cfg, newCore(), event.New(io.Discard))
	must(t, err)
	if err := bad.Run(context.Background()); err == nil || !strings.Contains(err.Error(), "runtime directory") {
		t.Errorf("got %v", err)
	}

	// A directory that cannot be cleared: a file system is mounted in it.
	cfg.RuntimeDir, cfg.FirstDaemon = dir, 30
	cfg.Transports = []openvpn.Transport{{Protocol: protocol.OpenVPNUDP, Alone: udpPort, Port: udpPort, Processes: 1}}
	busy := filepath.Join(dir, "openvpn30")
	must(t, os.Mkdir(busy, 0o700))
	must(t, testkit.Command("mount -t tmpfs lethe-ov "+busy))
	defer func() { must(t, testkit.Command("umount "+busy)) }()
	cfg.Binary = "/usr/sbin/../sbin/openvpn"
	s = start(t, cfg, newCore())
	testkit.Eventually(t, 5*time.Second, func() bool { return strings.Contains(s.log.String(), "trouble part=openvpn kind=internal") }, s.log.String)
	s.stop()
}

func TestUnprivilegedPeer(t *testing.T) {
	namespace(t)
	dir := runtimeDir(t)
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	must(t, err)
	defer l.Close()
	if pid := openvpn.Peer(filepath.Join(dir, "s"), uid); pid != 0 {
		t.Errorf("a socket of root was taken for one of user %d", uid)
	}
	if pid := openvpn.Peer(filepath.Join(dir, "s"), 0); pid != os.Getpid() {
		t.Errorf("got process %d, want %d", pid, os.Getpid())
	}
}
