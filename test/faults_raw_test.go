package test

import (
	"bufio"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"lethe/account"
	"lethe/lab"
)

// outcome is how a login by OpenVPN's own client ended.
type outcome string

const (
	gotIn      outcome = "in"      // the tunnel is up
	gotRefused outcome = "refused" // AUTH_FAILED
	gotNothing outcome = "nothing" // neither before the time was over
)

// rawClient is an OpenVPN client without the app.
type rawClient struct {
	cmd     *lab.Cmd
	outcome outcome
	reason  string // after AUTH_FAILED
	took    time.Duration
	ended   chan struct{}
	cancel  context.CancelFunc
}

// dial starts an OpenVPN client on a machine and waits for the outcome. User
// name and password go through a file, which can hold every byte but NUL and
// line feed. Addresses and routes are not set: several clients fit on a machine.
func (w *trial) dial(m *lab.Machine, profile string, username, secret []byte, limit time.Duration) *rawClient {
	w.t.Helper()
	n := w.raw.Add(1)
	config, file := m.Data(fmt.Sprintf("raw%d.ovpn", n)), m.Data(fmt.Sprintf("raw%d.auth", n))
	for path, text := range map[string]string{config: profile, file: string(username) + "\n" + string(secret) + "\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			w.t.Error(err)
		}
	}
	r := &rawClient{outcome: gotNothing, ended: make(chan struct{})}
	var ctx context.Context
	ctx, r.cancel = context.WithCancel(w.ctx)
	r.cmd = m.Command(ctx, "openvpn", "--config", config, "--auth-user-pass", file, "--dev", fmt.Sprintf("raw%d", n), "--dev-type", "tun",
		"--ifconfig-noexec", "--route-noexec", "--verb", "3", "--auth-retry", "none", "--connect-retry", "1", "1", "--server-poll-timeout", "20")
	r.cmd.Cancel = func() error { return r.cmd.Process.Signal(syscall.SIGTERM) }
	out, err := r.cmd.StdoutPipe()
	began := time.Now()
	if err == nil {
		err = r.cmd.Start()
	}
	if err != nil {
		w.t.Error(err)
		r.cancel()
		close(r.ended)
		return r
	}
	known := make(chan struct{})
	go func() {
		defer close(r.ended)
		r.follow(out, known)
		_ = r.cmd.Wait() // by its own exit code or by our signal
		os.Remove(config)
		os.Remove(file)
	}()
	w.t.Cleanup(r.close)
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-known:
	case <-timer.C:
		r.close()
	}
	r.took = time.Since(began)
	return r
}

// follow reads the client's output and closes known when the outcome is known.
func (r *rawClient) follow(out io.Reader, known chan<- struct{}) {
	decided := false
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		line := lines.Text()
		_, reason, denied := strings.Cut(line, "AUTH_FAILED")
		switch {
		case decided:
			continue
		case denied:
			r.outcome, r.reason = gotRefused, strings.TrimPrefix(reason, ",")
		case strings.Contains(line, "Initialization Sequence Completed"):
			r.outcome = gotIn
		default:
			continue
		}
		decided = true
		close(known)
	}
	if !decided {
		close(known)
	}
}

// close ends the client, which tells the server.
func (r *rawClient) close() {
	r.cancel()
	<-r.ended
}

// login is dial that ends at once.
func (w *trial) login(profile string, username, secret []byte, limit time.Duration) *rawClient {
	w.t.Helper()
	r := w.dial(w.Customer(mallory), profile, username, secret, limit)
	r.close()
	return r
}

// credential returns the VPN credential of an account.
func (w *trial) credential(email string) (username, secret []byte) {
	w.t.Helper()
	books := w.books()
	defer books.Close()
	r, err := books.Accounts.Find(w.ctx, email)
	w.check(err)
	return reveal(r.Credential)
}

func reveal(c account.Credential) (username, secret []byte) {
	return []byte(c.Username.Reveal()), []byte(c.Password.Reveal())
}

// knownUser wants carol, whom every server knows, to get in by OpenVPN's client.
func (w *trial) knownUser(profile string) {
	w.t.Helper()
	username, secret := w.credential(w.person(carol).email)
	if r := w.login(w.profiles[profile], username, secret, 20*time.Second); r.outcome != gotIn {
		w.t.Errorf("%s: a known user: %s %q after %v", profile, r.outcome, r.reason, r.took)
	}
}

// tlsCrypt wraps control packets as OpenVPN's clients do (--tls-crypt in
// openvpn(8); the format is in doc/tls-crypt-v2.txt and ssl_pkt.h of its source),
// so that a probe gets as far as the daemon's own parsers.
type tlsCrypt struct{ key [256]byte }

func (w *trial) tlsCrypt() (c tlsCrypt) {
	w.t.Helper()
	text, err := os.ReadFile(w.Control().Data("tls-crypt.key"))
	w.check(err)
	var digits strings.Builder
	for line := range strings.Lines(string(text)) {
		if line[0] != '#' && line[0] != '-' {
			digits.WriteString(strings.TrimSpace(line))
		}
	}
	if n, err := hex.Decode(c.key[:], []byte(digits.String())); err != nil || n != len(c.key) {
		w.t.Fatalf("tls-crypt key of %d bytes: %v", n, err)
	}
	return c
}

// The opcodes of OpenVPN's control packets (ssl_pkt.h).
const (
	controlV1   = 4
	ackV1       = 5
	resetClient = 7
)

// wrap returns an authentic packet of a client: header, packet number and time,
// tag, and the content encrypted with the tag as initialisation vector.
func (c tlsCrypt) wrap(opcode byte, session uint64, number uint32, content []byte) []byte {
	p := []byte{opcode << 3}
	p = binary.BigEndian.AppendUint64(p, session)
	p = binary.BigEndian.AppendUint32(p, number)
	p = binary.BigEndian.AppendUint32(p, uint32(time.Now().Unix()))
	tag := hmac.New(sha256.New, c.key[192:224])
	tag.Write(p)
	tag.Write(content)
	sum := tag.Sum(nil)
	block, err := aes.NewCipher(c.key[128:160])
	if err != nil {
		panic(err)
	}
	p = append(p, sum...)
	sealed := make([]byte, len(content))
	cipher.NewCTR(block, sum[:16]).XORKeyStream(sealed, content)
	return append(p, sealed...)
}

// hello returns the first packet of a client, which the server answers.
func (c tlsCrypt) hello(session uint64) []byte {
	return c.wrap(resetClient, session, 1, []byte{0, 0, 0, 0, 0}) // no acknowledgements, message number 0
}
