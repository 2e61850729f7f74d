package client_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"lethe/client"
)

// TestConnect walks the whole way once: before, connected, after.
func TestConnect(t *testing.T) {
	for name, open := range map[string]bool{"device for root only": false, "device for everybody": true} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.openTun = open
			before := r.machine()
			if seen, err := r.visit(webV4); err != nil || seen != customerV4 {
				t.Fatalf("before: seen as %q, %v", seen, err)
			}
			r.startHelper()
			start := time.Now()
			s := r.connect(client.Auto, vpnPassword, client.Connected)
			t.Logf("connected after %s", time.Since(start))
			if s.Transport != "udp" || s.Location != "nl-ams" || s.Server != "nl-ams-1" || !s.Lock || !s.IPv6 || s.Problem != nil {
				t.Errorf("status %+v", s)
			}
			if seen, err := r.visit(webV4); err != nil || !strings.HasPrefix(seen, "10.64.0.") {
				t.Errorf("IPv4: seen as %q, %v", seen, err)
			}
			if seen, err := r.visit(webV6); err != nil || !strings.HasPrefix(seen, "fd6c:6574:6865:64::") {
				t.Errorf("IPv6: seen as %q, %v", seen, err)
			}
			b, _ := os.ReadFile(r.resolv)
			if got := string(b); !strings.Contains(got, "nameserver 10.64.0.1\n") || strings.Contains(got, webV4) {
				t.Errorf("resolv.conf holds %q", got)
			}
			if err := r.ask("10.64.0.1"); err != nil {
				t.Errorf("the tunnel's resolver: %v", err)
			}
			if s := r.call(client.Request{Op: client.OpStatus}); s.Received == 0 || s.Sent == 0 {
				t.Errorf("no traffic counted: %+v", s)
			}
			r.checkProcess(open)
			start = time.Now()
			if s := r.call(client.Request{Op: client.OpDisconnect}); s.State != client.Disconnected || s.Lock {
				t.Errorf("after disconnect: %+v", s)
			}
			t.Logf("disconnected after %s", time.Since(start))
			if after := r.machine(); after != before {
				t.Errorf("something is left.\nbefore:\n%s\nafter:\n%s", before, after)
			}
			if seen, err := r.visit(webV4); err != nil || seen != customerV4 {
				t.Errorf("after: seen as %q, %v", seen, err)
			}
		})
	}
}

// children returns the ids of the OpenVPN processes on the customer machine.
func (r *rig) children() (pids []string) {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	fi, err := os.Stat("/var/run/netns/" + r.client)
	if err != nil {
		r.t.Fatal(err)
	}
	want := fmt.Sprintf("net:[%d]", fi.Sys().(*syscall.Stat_t).Ino)
	for _, path := range all {
		line, _ := os.ReadFile(path)
		pid := filepath.Base(filepath.Dir(path))
		ns, _ := os.Readlink("/proc/" + pid + "/ns/net")
		if ns == want && strings.Contains(string(line), "openvpn\x00--config\x00stdin") {
			pids = append(pids, pid)
		}
	}
	return pids
}

// checkProcess looks for secrets around the OpenVPN process and for its rights.
func (r *rig) checkProcess(unprivileged bool) {
	r.t.Helper()
	pids := r.children()
	if len(pids) != 1 {
		r.t.Fatalf("%d OpenVPN processes, want 1", len(pids))
	}
	for _, f := range []string{"cmdline", "environ"} {
		b, err := os.ReadFile("/proc/" + pids[0] + "/" + f)
		if err != nil || strings.Contains(string(b), "c4nary") || f == "environ" && len(b) > 0 {
			r.t.Errorf("%s holds %q, %v", f, b, err)
		}
	}
	b, _ := os.ReadFile("/proc/" + pids[0] + "/status")
	wantUID, wantCaps := "Uid:\t0\t", "CapEff:\t"
	if unprivileged {
		wantUID, wantCaps = "Uid:\t65534\t", "CapEff:\t0000000000001000\n"
	}
	if !strings.Contains(string(b), wantUID) || !strings.Contains(string(b), wantCaps) {
		r.t.Errorf("OpenVPN's rights: %s", b)
	}
	err := filepath.WalkDir(r.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || strings.HasPrefix(d.Name(), "vpn-") || d.Name() == "verify" {
			return err
		}
		b, err := os.ReadFile(path)
		if strings.Contains(string(b), "c4nary") {
			r.t.Errorf("%s holds a credential", path)
		}
		return err
	})
	if err != nil {
		r.t.Error(err)
	}
}
