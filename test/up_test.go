package test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lethe/image/imagetest"
	"lethe/lab"
)

// TestUp is what `make up` and `make down` do, with the program that they run.
func TestUp(t *testing.T) {
	up(t, nil, "✓ VPN server nl-ams-1 in Amsterdam", "✓ VPN server us-nyc-1 in New York")
}

// TestUpImage is what `make image` does once the image is built.
func TestUpImage(t *testing.T) {
	up(t, []string{"--image", imagetest.ISO(t, "vm-lab")}, "✓ "+lab.GuestStep, "✓ VPN server nl-ams-1 in Amsterdam")
}

// up brings a lab up, whose steps are shown, and down again; between, it is a customer.
func up(t *testing.T, flags []string, steps ...string) {
	dir, err := os.MkdirTemp("", "up")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	prefix := newPrefix()
	run := func(args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), bootPatience)
		defer cancel()
		c := exec.CommandContext(ctx, filepath.Join(programs, "lethe-lab"), append([]string{"--prefix", prefix, "--dir", filepath.Join(dir, "lab")}, args...)...)
		c.Env = append(os.Environ(), environment(t)...)
		var out bytes.Buffer
		c.Stdout, c.Stderr = &out, &out
		err := c.Run()
		return out.String(), err
	}
	t.Cleanup(func() {
		if out, err := run("down"); err != nil {
			t.Error(err, out)
		}
		noTrace(t, prefix)
	})
	out, err := run(append([]string{"up"}, flags...)...)
	if err != nil {
		logs, _ := run("logs")
		t.Fatal(err, out, logs, output(filepath.Join(dir, "lab.failed")))
	}
	for _, want := range append(steps, "✓ lab is up",
		"customer-1$ lethe connect nl-ams --protocol openvpn", "nl-ams-1, OpenVPN over UDP", "customer-1$ lethe connect nl-ams --protocol ikev2", "nl-ams-1, IKEv2 over UDP", "address: 198.51.100.1", "host: www.river.example",
		"nl-ams    DE       Elbe Telekom  openvpn-udp", "nl-ams    DE       Elbe Telekom  ikev2 ", "make down",
	) {
		if !strings.Contains(out, want) {
			t.Errorf("up does not show %q:\n%s", want, out)
		}
	}
	if out, err := run("run", "customer-1", "--", "lethe", "status"); err != nil || !strings.Contains(out, "disconnected") {
		t.Errorf("status: %v: %s", err, out)
	}
}

// TestStory lets two customers of different networks connect to different
// places at once, over UDP and over TCP, and checks the two rows that remain.
func TestStory(t *testing.T) {
	l := newLab(t, func(o *lab.Options) { o.Customers = 2 })
	gentle(t, l, 2)
	ada, bob := newCustomer(t, l, 0), newCustomer(t, l, 1)
	ada.connect("nl-ams", "--protocol", "openvpn", "--transport", "udp")
	bob.connect("us-nyc", "--protocol", "openvpn", "--transport", "tcp")
	for c, exit := range map[*customer]string{ada: "198.51.100.1", bob: "198.51.100.2"} {
		for _, family := range []string{"-4", "-6"} {
			want := map[string]string{"-4": "address: " + exit, "-6": "address: 2001:db8:2::" + strings.TrimPrefix(exit, "198.51.100.")}[family]
			page, err := c.Run(deadline(t), "curl", "-sS", "-m", "20", family, lab.SiteURL)
			if err != nil || !strings.HasPrefix(page, want) || !strings.HasSuffix(page, "host: www.river.example\n") {
				t.Errorf("%s: curl %s: got %q, %v, want %q…", c.Name, family, page, err, want)
			}
		}
	}
	if _, err := ada.Run(deadline(t), "curl", "-sS", "-m", "60", "--limit-rate", "5M", "-o", "/dev/null", lab.SiteURL+"bytes/20000000"); err != nil {
		t.Error(err)
	}
	if _, err := bob.Run(deadline(t), "sh", "-c", "head -c 10000000 /dev/zero | curl -sS -m 60 --limit-rate 5M --data-binary @- "+lab.SiteURL+"sink"); err != nil {
		t.Error(err)
	}
	ada.must("", "disconnect")
	bob.must("", "disconnect")
	today := time.Now().UTC().Format(time.DateOnly)
	one := func(rows []usageRow) bool { return len(rows) > 0 }
	for _, c := range []struct {
		email           string
		want            usageRow
		minIn, minOut   uint64
		moreIn, moreOut uint64
	}{
		// 20 MB and 10 MB of content and the headers around it, at most a tenth.
		{ada.email, usageRow{Date: today, Location: "nl-ams", Country: "DE", ISP: "Elbe Telekom", Protocol: "openvpn-udp"}, 20, 0, 2, 2},
		{bob.email, usageRow{Date: today, Location: "us-nyc", Country: "FR", ISP: "Loire Net", Protocol: "openvpn-tcp"}, 0, 10, 2, 2},
	} {
		rows := usage(t, l, c.email, one)
		got := rows[0]
		if len(rows) != 1 || got.In < c.minIn || got.In > c.minIn+c.moreIn || got.Out < c.minOut || got.Out > c.minOut+c.moreOut {
			t.Errorf("%s: got %+v, want one row with %d MB in and %d MB out", c.email, rows, c.minIn, c.minOut)
		}
		got.In, got.Out = 0, 0
		if got != c.want {
			t.Errorf("%s: got %+v, want %+v", c.email, got, c.want)
		}
	}
}
