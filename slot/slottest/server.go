package slottest

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Server is a real Valkey (or Redis, which speaks the same) of a test's own, in
// a directory of its own.
type Server struct {
	Socket string // its Unix socket
	Dir    string // its directory: what it writes lies here
	Port   int    // on 127.0.0.1; 0 when it was started without
	cmd    *exec.Cmd
	ended  chan struct{}
}

// URL returns where the server is.
func (s *Server) URL() string { return "unix://" + s.Socket }

// PID returns the server's process.
func (s *Server) PID() int { return s.cmd.Process.Pid }

// Quiet are the settings under which a server keeps nothing.
func Quiet() []string {
	return []string{"--save", "", "--appendonly", "no", "--slowlog-log-slower-than", "-1"}
}

func program(t testing.TB) string {
	t.Helper()
	path, err := exec.LookPath("valkey-server")
	if err != nil {
		path, err = exec.LookPath("redis-server")
	}
	if err != nil {
		t.Fatal("neither valkey-server nor redis-server is installed; scripts/deps does it")
	}
	return path
}

// Product returns what [StartServer] starts: name and version, for instance "Valkey-8.1.1".
func Product(t testing.TB) string {
	t.Helper()
	out, err := exec.Command(program(t), "--version").Output()
	f := strings.Fields(string(out)) // Redis server v=7.0.15 sha=…
	if err != nil || len(f) < 3 || !strings.HasPrefix(f[2], "v=") {
		t.Fatalf("the server does not say which it is: %v, %q", err, out)
	}
	return f[0] + "-" + strings.TrimPrefix(f[2], "v=")
}

// StartServer starts a server with command line arguments and ends it with the
// test. With port it listens on a port of loopback as well.
func StartServer(t testing.TB, port bool, args ...string) *Server {
	t.Helper()
	program := program(t)
	dir, err := os.MkdirTemp("", "lethe-slot-") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for range 3 { // somebody may be faster at the port
		s := &Server{Socket: filepath.Join(dir, "s"), Dir: dir, ended: make(chan struct{})}
		if port {
			s.Port = freePort(t)
		}
		base := []string{"--port", strconv.Itoa(s.Port), "--bind", "127.0.0.1", "--unixsocket", s.Socket, "--dir", dir, "--logfile", ""}
		s.cmd = exec.Command(program, append(base, args...)...)
		s.cmd.Env = []string{"LC_ALL=C"} // it does not start with a locale that the machine lacks
		s.cmd.Dir, s.cmd.SysProcAttr = dir, &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if s.start(t) {
			return s
		}
	}
	t.Fatalf("%s does not start with %q", filepath.Base(program), args)
	return nil
}

// freePort returns a port of loopback on which nobody listens at the moment.
func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// start reports whether the server listens.
func (s *Server) start(t testing.TB) bool {
	t.Helper()
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(s.ended)
		_ = s.cmd.Wait() // says how it was ended
	}()
	t.Cleanup(s.Stop)
	for late := time.After(20 * time.Second); ; {
		c, err := net.Dial("unix", s.Socket)
		if err == nil {
			c.Close()
			return true
		}
		select {
		case <-s.ended:
			return false
		case <-late:
			t.Fatalf("the server does not listen: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Stop kills the server. It may be called again.
func (s *Server) Stop() {
	_ = s.cmd.Process.Kill() // fails when it has ended
	<-s.ended
}
