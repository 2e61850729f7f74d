package notify_test

import (
	"bytes"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lethe/notify"
)

// manager listens as a service manager does and points NOTIFY_SOCKET there.
func manager(t *testing.T, name string) *net.UnixConn {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	t.Setenv("NOTIFY_SOCKET", name)
	return c
}

// receive returns the next datagram and the descriptors in it.
func receive(t *testing.T, c *net.UnixConn) (string, []int) {
	t.Helper()
	b, oob := make([]byte, 4096), make([]byte, 4096)
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	n, on, _, _, err := c.ReadMsgUnix(b, oob)
	if err != nil {
		t.Fatal(err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:on])
	if err != nil {
		t.Fatal(err)
	}
	var fds []int
	for i := range messages {
		got, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, got...)
	}
	return string(b[:n]), fds
}

func memfd(t *testing.T, content string) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "test")
	t.Cleanup(func() { f.Close() })
	if _, err := f.WriteString(content); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestStates(t *testing.T) {
	for name, address := range map[string]string{
		"path":     filepath.Join(t.TempDir(), "s"),
		"abstract": "@lethe-notify-test-" + strconv.Itoa(os.Getpid()),
	} {
		t.Run(name, func(t *testing.T) {
			c := manager(t, address)
			f := memfd(t, "kept")
			for _, step := range []struct {
				do    func() error
				want  string
				files int
			}{
				{notify.Ready, "READY=1", 0},
				{func() error { return notify.Store("ledger", f) }, "FDSTORE=1\nFDNAME=ledger\nFDPOLL=0", 1},
				{func() error { return notify.Remove("ledger") }, "FDSTOREREMOVE=1\nFDNAME=ledger", 0},
				{notify.Stopping, "STOPPING=1", 0},
			} {
				if err := step.do(); err != nil {
					t.Fatal(err)
				}
				got, fds := receive(t, c)
				if got != step.want || len(fds) != step.files {
					t.Errorf("got %q and %d descriptors, want %q and %d", got, len(fds), step.want, step.files)
				}
				for _, fd := range fds {
					b := make([]byte, 16)
					n, _ := unix.Pread(fd, b, 0)
					if unix.Close(fd); string(b[:n]) != "kept" {
						t.Errorf("the descriptor holds %q, want %q", b[:n], "kept")
					}
				}
			}
		})
	}
}

func TestNoManager(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	f := memfd(t, "")
	for i, err := range []error{notify.Ready(), notify.Stopping(), notify.Store("a", f), notify.Remove("a")} {
		if err != nil {
			t.Errorf("call %d: %v", i, err)
		}
	}
	got, err := notify.Restore()
	if err != nil || len(got) != 0 {
		t.Errorf("got %v, %v, want nothing", got, err)
	}
}

func TestRefused(t *testing.T) {
	f := memfd(t, "")
	closed := memfd(t, "")
	closed.Close()
	gone := filepath.Join(t.TempDir(), "gone")
	for name, c := range map[string]struct {
		socket string
		do     func() error
		want   string
	}{
		"empty name":   {gone, func() error { return notify.Store("", f) }, "want 1 to 255"},
		"colon":        {gone, func() error { return notify.Store("a:b", f) }, "want 1 to 255"},
		"control":      {gone, func() error { return notify.Remove("a\nb") }, "want 1 to 255"},
		"long name":    {gone, func() error { return notify.Remove(strings.Repeat("a", 256)) }, "want 1 to 255"},
		"closed file":  {gone, func() error { return notify.Store("a", closed) }, "use of closed file"},
		"nobody there": {gone, func() error { return notify.Store("a", f) }, "tell the service manager"},
		"vsock":        {"vsock:2:9", notify.Ready, "neither a path nor an abstract socket"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("NOTIFY_SOCKET", c.socket)
			if err := c.do(); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	t.Run("no descriptors left", func(t *testing.T) {
		t.Setenv("NOTIFY_SOCKET", gone)
		var old unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
			t.Fatal(err)
		}
		none := unix.Rlimit{Cur: 0, Max: old.Max}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
			t.Fatal(err)
		}
		err := notify.Ready()
		if e := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); e != nil {
			t.Fatal(e)
		}
		if err == nil || !strings.Contains(err.Error(), "too many open files") {
			t.Errorf("got %v, want too many open files", err)
		}
	})
}

func TestParse(t *testing.T) {
	for name, c := range map[string]struct {
		pid, count, names string
		list              []string
		err               string
	}{
		"nothing":       {"", "", "", nil, ""},
		"no count":      {"7", "", "", nil, ""},
		"other process": {"8", "1", "a", nil, ""},
		"named":         {"7", "2", "a:b c", []string{"a", "b c"}, ""},
		"unnamed":       {"7", "2", "", []string{"unknown", "unknown"}, ""},
		"none":          {"7", "0", "", []string{}, ""},
		"pid":           {"x", "1", "a", nil, "LISTEN_PID is no process id"},
		"negative pid":  {"-7", "1", "a", nil, "LISTEN_PID is no process id"},
		"count":         {"7", "two", "a", nil, "LISTEN_FDS is not a number"},
		"large count":   {"7", "4097", "a", nil, "LISTEN_FDS is not a number from 0 to 4096"},
		"fewer names":   {"7", "2", "a", nil, "1 names for 2 descriptors"},
		"bad name":      {"7", "2", "a:\x00", nil, "name 1 is not printable ASCII"},
		"empty name":    {"7", "2", ":a", nil, "name 0 is not printable ASCII"},
	} {
		t.Run(name, func(t *testing.T) {
			n, list, err := notify.Parse(c.pid, c.count, c.names, 7)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("got %v, want %q", err, c.err)
				}
				return
			}
			if err != nil || n != len(c.list) || strings.Join(list, ":") != strings.Join(c.list, ":") {
				t.Errorf("got %d %q %v, want %q", n, list, err, c.list)
			}
		})
	}
}

// passed sets the environment as for a process with n descriptors.
func passed(t *testing.T, n int, names string) {
	t.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	t.Setenv("LISTEN_FDS", strconv.Itoa(n))
	t.Setenv("LISTEN_FDNAMES", names)
}

func TestRestore(t *testing.T) {
	const base = 900
	for i, content := range []string{"first", "second", "third"} {
		if err := unix.Dup2(int(memfd(t, content).Fd()), base+i); err != nil {
			t.Fatal(err)
		}
	}
	passed(t, 3, "ledger:secrets:ledger")
	files, err := notify.RestoreAt(base)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"ledger": "third", "secrets": "second"} {
		f := files[name]
		if f == nil {
			t.Fatalf("no file %s", name)
		}
		defer f.Close()
		b := make([]byte, 16)
		n, err := f.ReadAt(b, 0)
		if err != nil && err != io.EOF || string(b[:n]) != want {
			t.Errorf("%s: got %q, %v, want %q", name, b[:n], err, want)
		}
		if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("%s stays open on exec (%v)", name, err)
		}
	}
	if _, err := unix.FcntlInt(base, unix.F_GETFD, 0); err == nil {
		t.Error("the superseded file is still open")
	}
	for _, v := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		if _, ok := os.LookupEnv(v); ok {
			t.Errorf("%s is still in the environment", v)
		}
	}
}

func TestRestoreRefuses(t *testing.T) {
	passed(t, 2, "a")
	if _, err := notify.Restore(); err == nil || !strings.Contains(err.Error(), "1 names for 2") {
		t.Errorf("got %v, want a complaint about the names", err)
	}
	passed(t, 1, "a")
	if _, err := notify.RestoreAt(950); err == nil || !strings.Contains(err.Error(), "950 is not open") {
		t.Errorf("got %v, want a complaint about the descriptor", err)
	}
}

// TestSystemd lets systemd's own client talk to the same kind of socket as
// ours does, so that the manager in these tests is known to be right.
func TestSystemd(t *testing.T) {
	tool, err := exec.LookPath("systemd-notify")
	if err != nil {
		t.Skip("systemd-notify is not installed")
	}
	c := manager(t, filepath.Join(t.TempDir(), "s"))
	command := exec.Command(tool, "--ready", "--no-block")
	var out bytes.Buffer
	command.Stderr = &out
	if err := command.Run(); err != nil {
		t.Skipf("systemd-notify does not work here: %v: %s", err, out.Bytes())
	}
	theirs, _ := receive(t, c)
	if err := notify.Ready(); err != nil {
		t.Fatal(err)
	}
	ours, _ := receive(t, c)
	if strings.TrimSpace(theirs) != ours {
		t.Errorf("got %q, systemd sends %q", ours, theirs)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("7", "2", "a:b")
	f.Add("7", "1", "")
	f.Add("x", "-1", "::")
	f.Fuzz(func(t *testing.T, pid, count, names string) {
		n, list, err := notify.Parse(pid, count, names, 7)
		if err == nil && n != len(list) {
			t.Errorf("%d descriptors with %d names", n, len(list))
		}
	})
}
