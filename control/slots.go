package control

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lethe/account"
	"lethe/fault"
	"lethe/internal/command"
	"lethe/private"
	"lethe/slot"
	"lethe/slot/memory"
	"lethe/slot/valkey"
)

// SlotsConfig says where the connection slots are counted: in this process
// unless it names a Valkey server, which many control planes can share.
type SlotsConfig struct {
	// Valkey is unix:///path, rediss://host:port or redis://127.0.0.1:port.
	Valkey string `json:"valkey,omitempty"`
	// Password is a file with the server's password in its first line, which
	// nobody else may read. Absent: none.
	Password string `json:"password,omitempty"`
	// CA is a file with PEM certificates to trust for rediss. Absent: the
	// system's.
	CA string `json:"ca,omitempty"`
}

// openSlots returns the store of the slots. It refuses a Valkey server that
// remembers.
func openSlots(ctx context.Context, c SlotsConfig) (slot.Store, error) {
	if c.Valkey == "" {
		if c.Password != "" || c.CA != "" {
			return nil, fault.New(fault.Invalid, "configuration: slots.password and slots.ca need slots.valkey")
		}
		return memory.New(slot.Lease), nil
	}
	v := valkey.Config{URL: c.Valkey, Lease: slot.Lease}
	if c.Password != "" {
		text, err := readPrivate(c.Password)
		if err != nil {
			return nil, err
		}
		v.Password = firstLine(text)
	}
	if c.CA != "" {
		roots := x509.NewCertPool()
		if b, err := os.ReadFile(c.CA); err != nil || !roots.AppendCertsFromPEM(b) {
			return nil, fault.Wrap(fault.Invalid, "slots.ca holds no certificate", err)
		}
		v.TLS = &tls.Config{RootCAs: roots}
	}
	s, err := valkey.Open(ctx, v)
	if err != nil {
		return nil, err // not s: a nil *valkey.Store in an interface is not nil
	}
	return s, nil
}

// The desk is a Unix socket in the data directory, at which the running service
// tells operator commands how many devices of an account are connected: with
// slots in memory nobody else knows. A caller sends an account's id and a line
// feed, and gets one JSON object.
const deskFile = "slots.sock"

// deskWait is how long either side waits for the other.
const deskWait = 5 * time.Second

// deskAnswer is what the desk says.
type deskAnswer struct {
	slot.Held
	Error string `json:"error,omitempty"` // name of a fault.Kind
}

// deskPath calls use with the desk's path. It goes through an open directory: a
// socket's path may have 107 bytes only, and a data directory's may have more.
func deskPath(dir string, use func(path string) error) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return use(fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), deskFile))
}

// openDesk listens at the desk. One that a killed service has left is replaced.
func openDesk(dir string) (l *net.UnixListener, err error) {
	err = deskPath(dir, func(path string) error {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if l, err = net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"}); err != nil {
			return err
		}
		l.SetUnlinkOnClose(false) // the path ends with this function
		return os.Chmod(path, 0o600)
	})
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, "the socket "+deskFile+" cannot be made in the data directory", err)
	}
	return l, nil
}

// serveDesk answers, one caller after the other, until ctx ends.
func serveDesk(ctx context.Context, l *net.UnixListener, slots *slot.Service) {
	stop := context.AfterFunc(ctx, func() { _ = l.SetDeadline(time.Now()) }) // the owner closes it
	defer stop()
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return
		}
		_ = conn.SetDeadline(time.Now().Add(deskWait)) // fails only when the caller has gone
		answerDesk(ctx, conn, slots)
		conn.Close()
	}
}

func answerDesk(ctx context.Context, conn io.ReadWriter, slots *slot.Service) {
	lines := bufio.NewScanner(io.LimitReader(conn, 64))
	if !lines.Scan() {
		return
	}
	var a deskAnswer
	var err error
	if a.Held, err = slots.Held(ctx, account.ID(lines.Text())); err != nil {
		a.Error = fault.Of(err).String()
	}
	_ = json.NewEncoder(conn).Encode(a) // the caller having gone is nobody's failure
}

// askDesk asks the running service.
func askDesk(ctx context.Context, dir string, id account.ID) (held slot.Held, err error) {
	var a deskAnswer
	err = deskPath(dir, func(path string) error {
		conn, err := (&net.Dialer{Timeout: deskWait}).DialContext(ctx, "unix", path)
		if err != nil {
			return err
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(deskWait)) // a failure shows in what follows
		if _, err := fmt.Fprintln(conn, id); err != nil {
			return err
		}
		return json.NewDecoder(io.LimitReader(conn, 256)).Decode(&a)
	})
	switch {
	case err != nil:
		return held, fault.Wrap(fault.Unavailable, "the service does not run, and only it knows who is connected", err).
			WithHint("start it; nothing of this is on a disk")
	case a.Error != "":
		return held, fault.New(fault.Parse(a.Error), "the service cannot tell how many devices are connected").
			WithHint("does its Valkey server answer?")
	}
	return a.Held, nil
}

func (p *program) slotsCommand() *cobra.Command {
	show := p.action("show EMAIL", "Show how many devices of an account are connected now, and how many may be", 1,
		func(ctx context.Context, c *Control, args []string) error {
			r, err := p.find(ctx, c, args[0])
			if err != nil {
				return err
			}
			held, err := askDesk(ctx, p.dir, r.ID)
			if err != nil {
				return err
			}
			return p.print(held, func(w io.Writer) {
				fmt.Fprintf(w, "connected\t%d\nlimit\t%d\n", held.Count, held.Limit)
			})
		})
	return command.Group("slots", "Show what the connection counter knows: how many, now", show)
}

// firstLine returns the first line of a text, without its end.
func firstLine(text private.Value[string]) private.Value[string] {
	line, _, _ := strings.Cut(text.Reveal(), "\n")
	return private.Of(strings.TrimSuffix(line, "\r"))
}
