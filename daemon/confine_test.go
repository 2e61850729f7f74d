package daemon_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"lethe/daemon"
)

// probe is a hostile daemon: it tries what it should not and tells over descriptor 3 the number of
// the error that each try meets, 0 for none.
const probe = `use Socket; use POSIX (); my %a = @ARGV;
open(my $out, ">&=", 3) or exit 1;
sub try { my ($name, $f) = @_; $! = 0; my $ok = $f->(); printf $out "%s %d\n", $name, $ok ? 0 : $! + 0 }
sub tcp { my ($port, $f) = @_; socket(my $s, PF_INET, SOCK_STREAM, 0) or return 0; $f->($s, pack_sockaddr_in($port, inet_aton("127.0.0.1"))) }
try("read given", sub { open(my $f, "<", "$a{dir}/given/file") });
try("write its own", sub { open(my $f, ">", "$a{dir}/own/file") });
try("make a socket", sub { my $s; socket($s, PF_UNIX, SOCK_STREAM, 0) && bind($s, pack_sockaddr_un("$a{dir}/own/socket")) });
try("remove its own", sub { unlink("$a{dir}/own/file") });
try("null", sub { open(my $f, "+<", "/dev/null") });
try("a library", sub { open(my $f, "<", "/usr/share/perl5/../../bin/perl") });
try("listen on its port", sub { tcp($a{bind}, sub { bind($_[0], $_[1]) }) });
try("connect to its port", sub { tcp($a{connect}, sub { connect($_[0], $_[1]) }) });
try("netlink", sub { socket(my $s, 16, SOCK_RAW, 0) });
try("read another's", sub { open(my $f, "<", "$a{dir}/other/file") });
try("write what it may read", sub { open(my $f, "+<", "$a{dir}/given/file") });
try("write elsewhere", sub { open(my $f, ">", "$a{dir}/other/new") });
try("list elsewhere", sub { opendir(my $d, "$a{dir}/other") });
try("list processes", sub { opendir(my $d, "/proc") });
try("execute", sub { my $pid = fork // return 0; if (!$pid) { exec("/bin/true") or POSIX::_exit($! + 0) } waitpid($pid, 0); $! = $? >> 8; !$? });
try("listen on another port", sub { tcp($a{bind} + 1, sub { bind($_[0], $_[1]) }) });
try("connect to another port", sub { tcp($a{other}, sub { connect($_[0], $_[1]) }) });
try("signal another", sub { kill(0, $a{sibling}) });
try("trace another", sub { syscall(101, 16, $a{sibling} + 0, 0, 0) != -1 });
try("look into another", sub { opendir(my $d, "/proc/$a{sibling}/fd") });
try("a namespace", sub { syscall(272, 0x10000000) != -1 });
try("bpf", sub { syscall(321, 0, 0, 0) != -1 });
try("another architecture", sub { syscall(0x40000000 + 39) != -1 });
try("crypto sockets", sub { socket(my $s, 38, 5, 0) });
`

// probed runs the probe and returns what it met.
func probed(t *testing.T, c *daemon.Confinement, args ...string) map[string]unix.Errno {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p := start(t, daemon.Spec{Path: perl, Args: append([]string{"-e", probe}, args...), UID: uid, GID: uid, Files: []*os.File{w}, Confine: c})
	w.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if code, err := p.Wait(t.Context()); code != 0 || err != nil {
		t.Fatalf("the probe ends with %d, %v:\n%s", code, err, b)
	}
	got := map[string]unix.Errno{}
	for line := range strings.Lines(string(b)) {
		i := strings.LastIndexByte(line, ' ')
		n, _ := strconv.Atoi(strings.TrimSpace(line[i:]))
		got[line[:i]] = unix.Errno(n)
	}
	return got
}

// TestConfinement runs one hostile daemon twice, with and without a sandbox: what is refused, the sandbox refuses.
func TestConfinement(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("other users need root")
	}
	dir := t.TempDir()
	for d := dir; d != "/tmp" && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"given", "own", "other"} {
		path := filepath.Join(dir, d)
		if err := os.Mkdir(path, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(path, "file"), nil, 0o666); err != nil {
			t.Fatal(err)
		}
		for _, p := range []string{path, filepath.Join(path, "file")} {
			if err := os.Chown(p, uid, uid); err != nil {
				t.Fatal(err)
			}
		}
	}
	// Two listeners, one of which the daemon may dial, and a pair of free ports.
	var ports []int
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	free := freePair(t)
	sibling := start(t, daemon.Spec{Path: perl, Args: []string{"-e", "sleep 600"}, UID: uid, GID: uid})
	args := []string{"dir", dir, "bind", fmt.Sprint(free), "connect", fmt.Sprint(ports[0]), "other", fmt.Sprint(ports[1]),
		"sibling", fmt.Sprint(sibling.Identity().PID)}
	without := probed(t, nil, args...)
	for name, errno := range without {
		// Nobody makes namespaces or loads programs without privileges on every machine.
		if errno != 0 && name != "a namespace" && name != "bpf" && name != "crypto sockets" && name != "another architecture" {
			t.Errorf("without a sandbox: %s: %v", name, errno)
		}
	}
	if err := os.Remove(filepath.Join(dir, "own", "socket")); err != nil {
		t.Fatal(err)
	}
	with := probed(t, &daemon.Confinement{
		Read: []string{filepath.Join(dir, "given"), filepath.Join(dir, "not there")}, Write: []string{filepath.Join(dir, "own")},
		Bind: []uint16{uint16(free)}, Connect: []uint16{uint16(ports[0])},
	}, args...)
	may := map[string]bool{"read given": true, "write its own": true, "make a socket": true, "remove its own": true, "null": true, "a library": true,
		"listen on its port": true, "connect to its port": true, "netlink": true}
	if len(with) != len(without) || len(with) < 20 {
		t.Fatalf("%d answers with a sandbox, %d without", len(with), len(without))
	}
	for name, errno := range with {
		if may[name] != (errno == 0) {
			t.Errorf("with a sandbox: %s: %v", name, errno)
		}
	}
	for name, want := range map[string]unix.Errno{"a namespace": unix.EPERM, "bpf": unix.EPERM, "another architecture": unix.ENOSYS,
		"crypto sockets": unix.EAFNOSUPPORT, "execute": unix.EACCES} {
		if with[name] != want {
			t.Errorf("%s: got %v, want %v", name, with[name], want)
		}
	}
	// The agent itself is as it was.
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(status), "\nNoNewPrivs:\t0\n") || !strings.Contains(string(status), "\nSeccomp:\t0\n") {
		t.Error("the agent is confined")
	}
}

// freePair returns a port that is free, as the next one is.
func freePair(t *testing.T) int {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := l.Addr().(*net.TCPAddr).Port
		next, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port+1))
		l.Close()
		if err == nil {
			next.Close()
			return port
		}
	}
	t.Fatal("no two free ports")
	return 0
}

// TestConfinedScript: a script may be a daemon too, with its interpreter and what lies beside it.
func TestConfinedScript(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "daemon")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"+dir+"/helper && exit 7\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "helper"), []byte("#!/bin/sh\nexit 0\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	p := start(t, daemon.Spec{Path: script, UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), Confine: &daemon.Confinement{}})
	if code, err := p.Wait(t.Context()); code != 7 || err != nil {
		t.Errorf("exit %d, %v", code, err)
	}
	for name, content := range map[string]string{"text": "no program", "empty": "", "nowhere": "#!/nonexistent/sh\n"} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := daemon.Start(t.Context(), daemon.Spec{Path: path, Confine: &daemon.Confinement{}}); err == nil {
			t.Errorf("%s was started", name)
		}
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	for name, path := range map[string]string{"below a file": dir + "/text/x", "a pipe": fmt.Sprintf("/proc/self/fd/%d", r.Fd())} {
		if _, err := daemon.Start(t.Context(), daemon.Spec{Path: "/bin/true", Confine: &daemon.Confinement{Write: []string{path}}}); err == nil || !strings.Contains(err.Error(), "landlock") {
			t.Errorf("a sandbox with an impossible path, %s: %v", name, err)
		}
	}
}
