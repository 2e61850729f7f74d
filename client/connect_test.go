package client_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"lethe/client"
	"lethe/fault"
)

// TestConnectCommands is a day of the app with a real helper, server and service.
func TestConnectCommands(t *testing.T) {
	r := newRig(t)
	s := newService(t, r.server)
	p := newPerson(t, s)
	s.accounts["ada@example.org"] = accountPassword
	r.startHelper()
	p.env["LETHE_SOCKET"] = r.socket()
	off := `{"schema":"lethe.status/1","state":"disconnected","lock":false,"ipv6":false,"attempts":0,"seconds":0,"received":0,"sent":0}` + "\n"
	p.expect(0, off, "", "status", "--json")
	p.expect(0, "disconnected\nnetwork lock:  off\n", "", "status")
	p.expect(0, off, "", "disconnect", "--json")
	p.expect(3, "error: not logged in\nhint: .*\n", "", "connect")
	p.expect(0, "logged in.*", accountPassword, "login", "ada@example.org")
	p.expect(2, "error: no location \"nowhere\"\nhint: .*\n", "", "connect", "nowhere")
	p.expect(0, `{"schema":"lethe.status/1","state":"connected","lock":true,"location":"nl-ams","country":"NL","city":"Amsterdam","server":"nl-ams-1","protocol":"openvpn","transport":"udp","ipv6":true,"addresses":["10.64.0.2","fd6c:6574:6865:64::2"],"attempts":0,"seconds":0,"received":.*,"sent":.*}`+"\n", "", "connect", "nl", "--json")
	p.expect(0, "connected to Amsterdam, NL (nl-ams) for .* s\nserver:        nl-ams-1, OpenVPN over UDP\naddresses:     10.64.0.2, fd6c:6574:6865:64::2\nreceived:      .*\nsent:          .*\nnetwork lock:  on\n", "", "status")
	p.expect(0, "connected to Amsterdam, NL (nl-ams)\nserver:        nl-ams-1, OpenVPN over TCP\naddresses:     .*\nnetwork lock:  on\n", "", "connect", "--transport", "tcp")

	p.expect(2, "error: no protocol pptp\nhint: auto, openvpn or ikev2\n", "", "connect", "--protocol", "pptp")
	p.expect(2, "error: IKEv2 goes over UDP only\nhint: .*\n", "", "connect", "--protocol", "ikev2", "--transport", "tcp")
	p.expect(5, "error: no server of nl-ams can be used in this way\nhint: .*\n", "", "connect", "--protocol", "ikev2")
	if _, out, _ := p.types("", "__complete", "connect", "--protocol", ""); !strings.HasPrefix(out, "auto\nopenvpn\nikev2\n") {
		t.Errorf("completion offers %q", out)
	}

	// Blocked: the copies do, though nobody can be asked.
	s.stop()
	s.set(func() { s.password = "wrong" })
	r.killHelper()
	r.startHelper()
	p.expect(0, "blocked\nnetwork lock:  on\nproblem:       the network lock is up and there is no tunnel\nhint:          .*\n", "", "status")
	p.age(time.Minute)
	p.expect(0, "connecting to Amsterdam, NL (nl-ams)\nnetwork lock:  on\n", "", "connect", "--no-wait")
	r.await(client.Connected)
	p.expect(0, "disconnected\nnetwork lock:  off\n", "", "disconnect")
	p.expect(0, "connected to Amsterdam, NL (nl-ams)\nserver:        nl-ams-1, OpenVPN over UDP\n.*note: the service cannot be reached; going on with the last copy of locations and credential\n", "", "connect")
	p.expect(0, "disconnected\nnetwork lock:  off\n", "", "disconnect")
}

// TestConnectRefused: what the server refuses, and what takes too long, have their exit codes.
func TestConnectRefused(t *testing.T) {
	r := newRig(t)
	s := newService(t, r.server)
	p := newPerson(t, s)
	s.accounts["ada@example.org"] = accountPassword
	s.password = "wrong"
	r.startHelper()
	p.env["LETHE_SOCKET"] = r.socket()
	p.expect(0, "logged in.*", accountPassword, "login", "ada@example.org")
	p.age(time.Minute)
	start := time.Now()
	p.expect(4, "error: user name or password refused\nhint: .*\n", "", "connect", "nl-ams")
	if d := time.Since(start); d > time.Second {
		t.Errorf("refused after %s", d)
	}
	p.expect(0, "disconnected\n.*", "", "disconnect")
	s.set(func() { s.password = "expired" })
	p.expect(0, ".*", "", "credentials", "show") // notices the change
	p.age(time.Minute)
	p.expect(4, `{"schema":"lethe.error/1","error":{"kind":"expired","text":"the licence has ended","hint":".*"}}`+"\n", "", "connect", "nl-ams", "--json")
	p.expect(0, "disconnected\n.*", "", "disconnect")
	p.expect(6, "error: not connected to us-nyc after 700ms.*\nhint: the helper goes on trying behind the network lock; .*\n", "", "connect", "us-nyc", "--timeout", "700ms")
	p.expect(0, "connecting to New York, US (us-nyc)\nnetwork lock:  on\n.*", "", "status")

	// Somebody else disconnects while the app waits.
	done := make(chan int)
	go func() {
		code, _, _ := p.types("", "connect", "us-nyc")
		done <- code
	}()
	r.await(client.Connecting)
	time.Sleep(200 * time.Millisecond)
	r.call(client.Request{Op: client.OpDisconnect})
	select {
	case code := <-done:
		if code != 4 && code != 0 {
			t.Errorf("exit code %d", code)
		}
	case <-time.After(10 * time.Second):
		t.Error("the app still waits")
	}
}

// TestWatch: every change is a line, until the person has seen enough.
func TestWatch(t *testing.T) {
	r := newRig(t)
	r.startHelper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	read, write := io.Pipe()
	done := make(chan int)
	go func() {
		done <- client.Run(ctx, []string{"status", "--watch", "--json", "--socket", r.socket()}, strings.NewReader(""), write, io.Discard,
			func(k string) string { return "" })
		write.Close()
	}()
	lines := bufio.NewScanner(read)
	go func() {
		r.call(client.Request{Op: client.OpConnect, Target: r.target(client.UDP, vpnPassword)})
	}()
	var states []string
	for lines.Scan() {
		var s struct {
			Schema string
			State  client.State
		}
		if err := json.Unmarshal(lines.Bytes(), &s); err != nil || s.Schema != "lethe.status/1" {
			t.Fatalf("%s: %v", lines.Text(), err)
		}
		if states = append(states, s.State.String()); s.State == client.Connected {
			break
		}
	}
	cancel()
	go func() { _, _ = io.Copy(io.Discard, read) }()
	if code := <-done; code != 0 {
		t.Errorf("exit code %d", code)
	}
	if got := strings.Join(states, " "); !strings.Contains(got, "connecting") {
		t.Errorf("states %s", got)
	}
	// A watcher does not outlive the helper.
	killed := make(chan struct{})
	go func() {
		defer close(killed)
		time.Sleep(100 * time.Millisecond)
		r.killHelper()
	}()
	err := client.Watch(t.Context(), r.socket(), client.Request{Op: client.OpWatch}, func(client.Status) bool { return true })
	if fault.Of(err) != fault.Unavailable {
		t.Errorf("after the helper's end: %v", err)
	}
	<-killed
	r.startHelper()
	r.call(client.Request{Op: client.OpDisconnect})
}

// TestSocket: junk is refused with a clear error, strangers are refused, and the helper lives on.
func TestSocket(t *testing.T) {
	r := newRig(t)
	before := r.machine()
	r.startHelper("--group", "nogroup")
	for name, junk := range map[string]string{
		"nothing": "\n", "no json": "connect please\n", "other version": `{"v":2,"op":"status"}` + "\n",
		"unknown field": `{"v":1,"op":"status","config":"up /bin/sh"}` + "\n", "unknown op": `{"v":1,"op":"shell"}` + "\n",
		"no target": `{"v":1,"op":"connect"}` + "\n", "too long": strings.Repeat("x", client.MaxLine+1),
	} {
		conn, err := net.Dial("unix", r.socket())
		if err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = io.WriteString(conn, junk) }()
		var reply client.Reply
		err = json.NewDecoder(conn).Decode(&reply)
		if err != nil || reply.Error == nil || reply.Error.Kind != "invalid" {
			t.Errorf("%s: %+v, %v", name, reply, err)
		}
		conn.Close()
	}
	for _, c := range []struct {
		name     string
		uid, gid uint32
		code     int
	}{
		{"member", 12345, 65534, 0}, {"stranger", 12345, 12345, 4},
	} {
		self := filepath.Join(r.dir, "lethe")
		if _, err := os.Stat(self); err != nil {
			exe, _ := os.Executable()
			b, _ := os.ReadFile(exe)
			r.write(self, b, 0o755)
		}
		cmd := exec.Command(self, "status", "--socket", r.socket())
		cmd.Env = []string{asProgram + "=1", "HOME=/nonexistent"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: c.uid, Gid: c.gid, NoSetGroups: false}}
		out, err := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != c.code {
			t.Errorf("%s: exit code %d, want %d: %s, %v", c.name, code, c.code, out, err)
		}
	}
	if after := r.machine(); after != before {
		t.Errorf("something changed: %s", after)
	}
	_ = r.helper.Process.Signal(syscall.SIGTERM)
	_ = r.helper.Wait()
	// A socket that everybody may open: the helper asks who it is.
	out, err := r.program("helper", "--group", "no-such-group").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "error: helper: no such group") {
		t.Errorf("%v: %s", err, out)
	}
	silent := r.program("helper")
	silent.Env = append(silent.Env, "NOTIFY_SOCKET=/nonexistent/notify")
	if out, err := silent.CombinedOutput(); err == nil || !strings.Contains(string(out), "error: helper: the service manager does not answer") {
		t.Errorf("%v: %s", err, out)
	}
	r.startHelper("--group", "nogroup")
	if err := os.Chmod(r.socket(), 0o666); err != nil {
		t.Fatal(err)
	}
	for uid, want := range map[uint32]int{12345: 4, 1: 4, 65534: 0} { // the last one's group is in the user database
		cmd := exec.Command(filepath.Join(r.dir, "lethe"), "status", "--socket", r.socket())
		cmd.Env = []string{asProgram + "=1"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: 12345}}
		out, _ := cmd.CombinedOutput()
		if cmd.ProcessState.ExitCode() != want || want == 4 && !strings.Contains(string(out), "error: you may not use the helper") {
			t.Errorf("user %d: %s", uid, out)
		}
	}
	cmd := exec.Command(filepath.Join(r.dir, "lethe"), "helper", "--runtime-dir", filepath.Join(r.dir, "x"))
	cmd.Env = []string{asProgram + "=1"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 12345, Gid: 12345}}
	if out, _ := cmd.CombinedOutput(); !strings.Contains(string(out), "error: the helper must run as root") {
		t.Errorf("not root: %s", out)
	}
}

// TestStrangeHelper: answers that make no sense are errors, not crashes.
func TestStrangeHelper(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	answers := make(chan string, 1)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = bufio.NewReader(conn).ReadBytes('\n')
			_, _ = io.WriteString(conn, <-answers)
			conn.Close()
		}
	}()
	for answer, kind := range map[string]fault.Kind{
		"junk\n": fault.Invalid, `{"v":9}` + "\n": fault.Invalid, `{"v":1}` + "\n": fault.Invalid, "": fault.Unavailable,
		`{"v":1,"error":{"kind":"full","text":"x"}}` + "\n": fault.Full, `{"v":1,"status":{"state":"asleep"}}` + "\n": fault.Invalid,
	} {
		answers <- answer
		if _, err := client.Call(t.Context(), socket, client.Request{Op: client.OpStatus}); fault.Of(err) != kind {
			t.Errorf("%q: %v, want %s", answer, err, kind)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := client.Call(ctx, socket, client.Request{Op: client.OpStatus}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a helper that says nothing: %v", err)
	}
	p := newPerson(t, nil)
	p.env["LETHE_SOCKET"] = socket
	go func() {
		time.Sleep(200 * time.Millisecond)
		answers <- ""
	}()
	p.expect(6, "error: the helper did not answer in time\nhint: .*\n", "", "connect", "--timeout", "100ms")
}

// TestResolved: where systemd-resolved keeps resolv.conf, it is told; the file is not touched. The
// recorder stands in for resolvectl, which needs a system bus.
func TestResolved(t *testing.T) {
	r := newRig(t)
	target := filepath.Join(r.dir, "systemd", "resolve", "stub-resolv.conf")
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		t.Fatal(err)
	}
	r.write(target, []byte("nameserver 127.0.0.53\n"), 0o644)
	link := filepath.Join(r.dir, "link")
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	calls, recorder := filepath.Join(r.dir, "calls"), filepath.Join(r.dir, "resolvectl")
	r.write(recorder, []byte("#!/bin/sh\necho \"$@\" >> "+calls+"\n[ ! -e "+r.dir+"/broken ]\n"), 0o755)
	r.startHelper("--resolv-conf", link, "--resolvectl", recorder)
	r.connect(client.UDP, vpnPassword, client.Connected)
	b, _ := os.ReadFile(calls)
	want := "dns lethe-udp fd6c:6574:6865:64::1 10.64.0.1\ndomain lethe-udp ~.\ndefault-route lethe-udp yes\n"
	if !bytes.HasPrefix(b, []byte(want)) {
		t.Errorf("resolvectl was called with\n%swant\n%s", b, want)
	}
	if b, _ := os.ReadFile(target); string(b) != "nameserver 127.0.0.53\n" {
		t.Errorf("the file was touched: %q", b)
	}
	r.call(client.Request{Op: client.OpDisconnect})
	r.write(filepath.Join(r.dir, "broken"), nil, 0o600)
	r.call(client.Request{Op: client.OpConnect, Target: r.target(client.UDP, vpnPassword)})
	r.eventually(5*time.Second, "it is said", func() bool {
		s := r.call(client.Request{Op: client.OpStatus})
		return s.Problem != nil && strings.Contains(s.Problem.Text, "systemd-resolved did not take")
	})
	r.call(client.Request{Op: client.OpDisconnect})
}

// BenchmarkConnect is the time from the request to the tunnel and back, with a real server.
func BenchmarkConnect(b *testing.B) {
	b.Run("udp", func(b *testing.B) { benchmark(b, client.UDP) })
	b.Run("tcp", func(b *testing.B) { benchmark(b, client.TCP) })
}

func benchmark(b *testing.B, transport client.Transport) {
	var up time.Duration
	r := newRig(b)
	r.startHelper()
	for b.Loop() {
		start := time.Now()
		r.connect(transport, vpnPassword, client.Connected)
		up += time.Since(start)
		r.call(client.Request{Op: client.OpDisconnect})
	}
	b.ReportMetric(float64(up.Milliseconds())/float64(b.N), "ms/connect")
}

// BenchmarkStatus is one status request.
func BenchmarkStatus(b *testing.B) {
	r := newRig(b)
	r.startHelper()
	for b.Loop() {
		r.call(client.Request{Op: client.OpStatus})
	}
}
