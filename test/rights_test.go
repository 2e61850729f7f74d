package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lethe/lab"
)

// agentUser is lethe-node's user in the image.
const agentUser = "64103"

// unitRights reads from the unit that is for the image what the agent may.
func unitRights(t *testing.T) []string {
	t.Helper()
	b, err := os.ReadFile("../systemd/lethe-node.service")
	if err != nil {
		t.Fatal(err)
	}
	field := func(name string) string {
		m := regexp.MustCompile(`(?m)^` + name + `=(.+)$`).FindSubmatch(b)
		if m == nil {
			t.Fatalf("the unit says nothing of %s", name)
		}
		return string(m[1])
	}
	if field("User") != "lethe-node" || field("CapabilityBoundingSet") != field("AmbientCapabilities") {
		t.Errorf("the unit runs as %s with %s of %s", field("User"), field("AmbientCapabilities"), field("CapabilityBoundingSet"))
	}
	caps, groups, bits := "-all", "", ""
	for _, c := range strings.Fields(field("AmbientCapabilities")) {
		caps += ",+" + strings.ToLower(strings.TrimPrefix(c, "CAP_"))
	}
	for _, g := range strings.Fields(field("SupplementaryGroups")) {
		groups += "," + map[string]string{"lethe-openvpn": "64100", "lethe-resolver": "64101", "lethe-ikev2": "64102"}[g]
	}
	for _, b := range strings.Fields(field("SecureBits")) {
		bits += ",+" + strings.ReplaceAll(b, "-", "_")
	}
	return []string{"--reuid", agentUser, "--regid", agentUser, "--groups", groups[1:], "--inh-caps", caps, "--ambient-caps", caps,
		"--bounding-set", caps, "--securebits", bits[1:], "--no-new-privs"}
}

// agent is a server's agent without a service manager.
type agent struct {
	*lab.Cmd
	log   string // file with what it says
	ended chan error
}

func (a *agent) said() string {
	b, err := os.ReadFile(a.log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func startAgent(t *testing.T, m *lab.Machine, rights []string) *agent {
	t.Helper()
	a := &agent{ended: make(chan error, 1)}
	a.Cmd = m.Command(deadline(t), "setpriv", append(rights, "/run/lethe-node-program", "run", "--runtime-dir", "/run/lethe-node")...)
	a.Env = append(a.Env, "GOCOVERDIR=/run/cover", "GORACE=atexit_sleep_ms=0")
	log, err := os.CreateTemp(t.TempDir(), "agent")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	a.log, a.Stdout, a.Stderr = log.Name(), log, log
	if err := a.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { a.ended <- a.Wait() }()
	return a
}

// end sends the agent a signal and waits for its end.
func (a *agent) end(signal unix.Signal) error {
	_ = a.Process.Signal(signal) // it may have ended
	return <-a.ended
}

// activate hands the agent its secrets as soon as it takes them.
func (a *agent) activate(t *testing.T, l *lab.Lab, m *lab.Machine) {
	t.Helper()
	until(t, 30*time.Second, func() string { return "the agent takes no secrets" }, func() bool { return l.Activate(deadline(t), m) == nil })
}

// TestRights runs a server's agent as the user, with the groups and the capabilities of its unit, and nothing else:
// it closes the firewall, takes its secrets and serves both protocols. Its daemons have what they are
// declared to have.
func TestRights(t *testing.T) {
	l := newLab(t, func(o *lab.Options) { o.Locations = lab.Places()[:1] })
	ctx, m := deadline(t), l.Server(0)
	if err := l.Stop(ctx, m.Name); err != nil {
		t.Fatal(err)
	}
	// The machine's /run is the one directory that everybody on it can reach.
	copyFile(t, filepath.Join(programs, "lethe-node"), m.Path("/run/lethe-node-program"))
	for name, owner := range map[string]int{"lethe-node": 64103, "cover": 64103} {
		path := m.Path("/run/" + name)
		if err := os.MkdirAll(path, 0o711); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, owner, owner); err != nil {
			t.Fatal(err)
		}
	}
	rights := unitRights(t)
	first := startAgent(t, m, rights)
	first.activate(t, l, m)
	g := newCustomer(t, l, 0)
	for _, protocol := range []string{"openvpn", "ikev2"} {
		g.connect("nl-ams", "--protocol", protocol)
		if page, err := g.Run(ctx, "curl", "-sS", "-m", "20", lab.SiteURL); err != nil || !strings.Contains(page, "address: "+m.Addresses[0].V4.String()) {
			t.Errorf("%s: %q, %v", protocol, page, err)
		}
		if protocol == "ikev2" {
			declared(t, m)
		}
		if protocol == "openvpn" {
			g.must("", "disconnect")
		}
	}
	// The next agent finds the daemons of one that was killed, by what it may read of them.
	_ = first.end(unix.SIGKILL)
	second := startAgent(t, m, rights)
	second.activate(t, l, m)
	for _, part := range []string{"openvpn", "ikev2", "resolver"} {
		until(t, 30*time.Second, func() string { return "nobody takes " + part + " over:\n" + second.said() }, func() bool {
			return strings.Contains(second.said(), "adopted part="+part)
		})
	}
	if state, err := l.ActivationState(ctx, m); err != nil || state.Drivers == nil || state.Drivers.OpenVPN == "" || state.Drivers.IKEv2 == "" {
		t.Errorf("the state is %+v, %v", state, err)
	}
	if err := second.end(unix.SIGTERM); err != nil {
		t.Error(err)
	}
	if t.Failed() {
		t.Logf("the first agent said\n%s\nthe second\n%s", first.said(), second.said())
	}
	keepCoverage(t, m.Path("/run/cover"))
}

// declared holds every daemon's user, groups and capabilities against what it should have.
func declared(t *testing.T, m *lab.Machine) {
	t.Helper()
	pids, err := m.PIDs()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{ // numbers of capabilities(7): 10 is CAP_NET_BIND_SERVICE, 12 CAP_NET_ADMIN
		"unbound":        "64101 0000000000000400 1 2",
		"charon-systemd": "64102 0000000000001000 1 2", // it gives the ports' back
		"openvpn":        "64100 0000000000000000 1 2",
	}
	seen := map[string]bool{}
	for _, pid := range pids {
		status, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
		f := map[string]string{}
		for line := range strings.Lines(string(status)) {
			key, value, _ := strings.Cut(line, ":")
			f[key] = strings.TrimSpace(value)
		}
		exe, _ := os.Readlink(filepath.Join("/proc", strconv.Itoa(pid), "exe"))
		name := filepath.Base(exe)
		if want[name] == "" || f["Uid"] == "" {
			continue
		}
		seen[name] = true
		uid, _, _ := strings.Cut(f["Uid"], "\t")
		got := strings.Join([]string{uid, f["CapEff"], f["NoNewPrivs"], f["Seccomp"]}, " ")
		if name == "openvpn" && strings.HasPrefix(got, "64100 0000000000000400") {
			continue // the one whose port is below 1024
		}
		if got != want[name] || f["Groups"] != "" || f["CapEff"] != f["CapPrm"] {
			t.Errorf("%s runs as %s, groups %q, permitted %s; want %s", name, got, f["Groups"], f["CapPrm"], want[name])
		}
	}
	if len(seen) != len(want) {
		t.Errorf("only %v run", seen)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("install", "-m", "755", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// keepCoverage takes what a program left that may not write where the others do.
func keepCoverage(t *testing.T, from string) {
	t.Helper()
	files, _ := filepath.Glob(from + "/*")
	if to := os.Getenv("LETHE_COVER"); to != "" {
		for _, f := range files {
			copyFile(t, f, filepath.Join(to, filepath.Base(f)))
		}
	}
}
