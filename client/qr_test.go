package client_test

import (
	"bytes"
	"image"
	"image/color"
	"image/png"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"lethe/client"
	"lethe/location"
	"lethe/protocol"
)

// scan has zbar, which is what many phones and desktops read codes with, read a picture.
func scan(t *testing.T, file string) string {
	t.Helper()
	out, err := exec.Command("zbarimg", "--raw", "-q", "-Sdisable", "-Sqrcode.enable", file).Output()
	if err != nil {
		t.Fatalf("zbarimg: %v", err)
	}
	return strings.TrimSuffix(string(out), "\n")
}

// screen is what a terminal shows of a text of half blocks: a picture with 4 by 8 pixels a letter, in the
// colours that the text sets and on a background of another. It knows no more of a terminal than is used.
func screen(t *testing.T, text string, background color.Color) image.Image {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	palette := map[string]color.Color{"16": color.Black, "231": color.White}
	const wide, high = 4, 8
	columns := 0
	for i, l := range lines {
		l, ok := strings.CutPrefix(l, "\x1b[38;5;16;48;5;231m")
		l, end := strings.CutSuffix(l, "\x1b[0m")
		if !ok || !end || strings.Contains(l, "\x1b") {
			t.Fatalf("line %d does not set its colours: %q", i, lines[i])
		}
		lines[i], columns = l, max(columns, len([]rune(l)))
	}
	margin := 5 * high
	picture := image.NewRGBA(image.Rect(0, 0, columns*wide+2*margin, len(lines)*high+2*margin))
	for y := range picture.Rect.Dy() {
		for x := range picture.Rect.Dx() {
			picture.Set(x, y, background)
		}
	}
	for row, l := range lines {
		for column, letter := range []rune(l) {
			upper, lower := palette["231"], palette["231"]
			switch letter {
			case '█':
				upper, lower = palette["16"], palette["16"]
			case '▀':
				upper = palette["16"]
			case '▄':
				lower = palette["16"]
			case ' ':
			default:
				t.Fatalf("line %d has %q", row, letter)
			}
			for y := range high {
				for x := range wide {
					c := upper
					if y >= high/2 {
						c = lower
					}
					picture.Set(margin+column*wide+x, margin+row*high+y, c)
				}
			}
		}
	}
	return picture
}

// TestQR: any text that fits is read back as it was, from the image and from a dark and a light terminal.
func TestQR(t *testing.T) {
	dir := t.TempDir()
	var every strings.Builder
	for every.Len() < client.MaxQR {
		for c := byte(' '); c <= '~' && every.Len() < client.MaxQR; c++ {
			every.WriteByte(c)
		}
	}
	for _, n := range []int{1, 57, 850, 2000, client.MaxQR} {
		text := every.String()[:n-1] + "x" // no blank at the end, which zbarimg would not show
		terminal, picture, columns, err := client.DrawQR([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, "qr.png")
		if err := os.WriteFile(file, picture, 0o600); err != nil {
			t.Fatal(err)
		}
		if got := scan(t, file); got != text {
			t.Errorf("the image of %d bytes says %q", n, got)
		}
		for name, background := range map[string]color.Color{"dark": color.Black, "light": color.White} {
			shown := screen(t, string(terminal), background)
			if want := columns*4 + 80; shown.Bounds().Dx() != want {
				t.Errorf("%d pixels wide, want %d", shown.Bounds().Dx(), want)
			}
			var b bytes.Buffer
			if err := png.Encode(&b, shown); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
			if got := scan(t, file); got != text {
				t.Errorf("a %s terminal says of %d bytes %q", name, n, got)
			}
		}
	}
	if _, _, _, err := client.DrawQR([]byte(every.String() + "x")); err == nil {
		t.Error("a byte too many")
	}
}

// TestConfigExportQR draws what fits and says of what does not what else would.
func TestConfigExportQR(t *testing.T) {
	server, _, _ := newServer(t)
	server.Endpoints = append(server.Endpoints, location.Endpoint{Protocol: protocol.IKEv2, Port: 500})
	s := newService(t, server)
	p := newPerson(t, s)
	s.accounts["ada@example.org"] = accountPassword
	p.expect(0, "logged in; next: lethe connect\n", accountPassword, "login", "ada@example.org")
	dir := t.TempDir()
	for _, format := range []string{"sswan", "ovpn"} {
		plain, picture := filepath.Join(dir, "plain"), filepath.Join(dir, "qr.png")
		p.expect(0, "note: .*", "", "config", "export", "nl", "--format", format, "-o", plain)
		p.expect(0, "note: .*", "", "config", "export", "nl", "--format", format, "--qr", "-o", picture)
		want, err := os.ReadFile(plain)
		if err != nil {
			t.Fatal(err)
		}
		if got := scan(t, picture); got != string(want) {
			t.Errorf("%s: the code says %q", format, got)
		}
	}
	p.expect(0, "\x1b[38;5;16;48;5;231m   .*▀.*▄.*█.*\x1b[0m\nnote: .*", "", "config", "export", "nl", "--format", "sswan", "--qr")
	p.expect(2, "error: the profile has .* bytes, and a QR code holds 2953\nhint: without --qr it is a file; formats that fit: ovpn, ovpn-tcp, sswan, windows\n",
		"", "config", "export", "nl", "--format", "mobileconfig", "--qr")
	p.expect(2, `{"schema":"lethe.error/1","error":{"kind":"invalid","text":"a QR code is not JSON","hint":"-o FILE writes it as an image"}}`+"\n", "", "config", "export", "nl", "--format", "sswan", "--qr", "--json")
	picture := filepath.Join(dir, "json.png")
	p.expect(0, `{"schema":"lethe.config/1",.*"format":"sswan",.*"file":"`+picture+`"}`+"\n", "", "config", "export", "nl", "--format", "sswan", "--qr", "--json", "-o", picture)
	if fi, err := os.Stat(picture); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi, err)
	}
	// On a terminal that is too narrow half a code would be of no use.
	master, slave := openPTY(t)
	go func() { _, _ = io.Copy(io.Discard, master) }()
	for columns, want := range map[uint16]int{80: 2, 200: 0} {
		if err := unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: columns}); err != nil {
			t.Fatal(err)
		}
		var errs bytes.Buffer
		code := client.Run(t.Context(), []string{"config", "export", "nl", "--format", "sswan", "--qr"}, nil, slave, &errs, func(k string) string { return p.env[k] })
		if code != want || want != 0 && !regexp.MustCompile(`^error: the terminal has 80 columns, and the QR code needs [0-9]+\nhint: .*-o FILE\n$`).Match(errs.Bytes()) {
			t.Errorf("%d columns: exit code %d, %s", columns, code, errs.String())
		}
	}
	slave.Close()
	master.Close()
}
