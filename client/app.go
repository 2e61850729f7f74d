package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"lethe/account"
	api "lethe/api/client"
	"lethe/fault"
	"lethe/location"
	"lethe/private"
)

// The exit codes of every command. They never change their meaning.
const (
	ExitOK        = 0
	ExitFailed    = 1 // anything that has no code of its own
	ExitUsage     = 2 // a wrong command line, an unknown location, a value that makes no sense
	ExitLoggedOut = 3 // not logged in, or the login has ended
	ExitRefused   = 4 // wrong password, licence ended, too many attempts, not allowed
	ExitNetwork   = 5 // the service or the VPN server cannot be reached
	ExitTimeout   = 6 // --timeout is over
	ExitNoHelper  = 7 // the helper is not running
	ExitLimit     = 8 // as many devices are connected as the licence allows
)

// coded is an error with an exit code that its kind does not tell.
type coded struct {
	cause *fault.Error
	code  int
}

func (c *coded) Error() string { return c.cause.Text }
func (c *coded) Unwrap() error { return c.cause }

var errLoggedOut error = &coded{fault.New(fault.Unauthenticated, "not logged in").WithHint("lethe login EMAIL"), ExitLoggedOut}

func usage(text, hint string) error {
	return &coded{fault.New(fault.Invalid, text).WithHint(hint), ExitUsage}
}

// exitCode returns the exit code that stands for err.
func exitCode(err error) int {
	var c *coded
	if errors.As(err, &c) {
		return c.code
	}
	if err == nil {
		return ExitOK
	}
	switch fault.Of(err) {
	case fault.Invalid, fault.NotFound:
		return ExitUsage
	case fault.Unauthenticated, fault.Denied, fault.Expired, fault.Conflict, fault.TooMany:
		return ExitRefused
	case fault.Unavailable, fault.Untrusted:
		return ExitNetwork
	}
	return ExitFailed
}

// settings are what is not secret: from flags, else the environment, else the file.
type settings struct {
	API    string `json:"api"`    // https address of the service
	CA     string `json:"ca"`     // file with PEM certificates to trust instead of the system's; may be empty
	Socket string `json:"socket"` // the helper's socket; default /run/lethe/helper.sock
}

const (
	defaultSettings = "/etc/lethe/app.json"
	defaultSocket   = "/run/lethe/helper.sock"
)

// app is one call of the program.
type app struct {
	in       io.Reader
	out, err io.Writer
	env      func(string) string
	json     bool
	flags    settings
}

// settings returns what applies. An unknown field in the file is an error.
func (a *app) settings() (settings, error) {
	var s settings
	path := a.env("LETHE_CONFIG")
	b, err := os.ReadFile(orElse(path, defaultSettings))
	if err == nil {
		d := json.NewDecoder(bytes.NewReader(b))
		d.DisallowUnknownFields()
		err = d.Decode(&s)
	} else if errors.Is(err, fs.ErrNotExist) && path == "" {
		err = nil
	}
	if err != nil {
		return s, &coded{fault.Wrap(fault.Invalid, "the settings cannot be read", err).
			WithHint(`want {"api": "https://…", "ca": "/…"} in ` + orElse(path, defaultSettings)), ExitUsage}
	}
	s.API = orElse(a.flags.API, orElse(a.env("LETHE_API"), s.API))
	s.CA = orElse(a.flags.CA, orElse(a.env("LETHE_CA"), s.CA))
	s.Socket = orElse(a.flags.Socket, orElse(a.env("LETHE_SOCKET"), orElse(s.Socket, defaultSocket)))
	return s, nil
}

func orElse(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// keep returns the customer's state directory (XDG Base Directory Specification).
func (a *app) keep() (keep, error) {
	dir := a.env("XDG_STATE_HOME")
	if dir == "" && a.env("HOME") != "" {
		dir = filepath.Join(a.env("HOME"), ".local", "state")
	}
	if !filepath.IsAbs(dir) {
		return keep{}, usage("no place for the app's files", "set HOME or XDG_STATE_HOME to an absolute path")
	}
	return keep{filepath.Join(dir, "lethe")}, nil
}

// service returns a client of the API.
func (a *app) service() (*api.Client, error) {
	s, err := a.settings()
	if err != nil {
		return nil, err
	}
	if s.API == "" {
		return nil, usage("no service is set", "use --api https://…, or LETHE_API, or "+defaultSettings)
	}
	c := api.Config{URL: s.API}
	if s.CA != "" {
		pem, err := os.ReadFile(s.CA)
		roots := x509.NewCertPool()
		if err != nil || !roots.AppendCertsFromPEM(pem) {
			return nil, &coded{fault.Wrap(fault.Invalid, "no certificate can be read from the file of --ca", err), ExitUsage}
		}
		c.TLS = &tls.Config{RootCAs: roots}
	}
	return api.New(c)
}

// session is what most commands need: the service, the state directory and the token.
func (a *app) session() (*api.Client, keep, account.Token, error) {
	k, err := a.keep()
	var token account.Token
	if err == nil {
		token, err = k.token()
	}
	var c *api.Client
	if err == nil {
		c, err = a.service()
	}
	return c, k, token, err
}

// expired turns the service's refusal of a token into "not logged in".
func expired(err error) error {
	if err != nil && fault.Of(err) == fault.Unauthenticated {
		return &coded{fault.Wrap(fault.Unauthenticated, "the login has ended", err).WithHint("lethe login EMAIL"), ExitLoggedOut}
	}
	return err
}

// password reads a password: from the terminal without echo, twice if it is a new one, or one line
// from standard input.
func (a *app) password(fresh bool) (private.Value[string], error) {
	if f, ok := a.in.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		first, err := a.prompt(f, "Password: ")
		if err == nil && fresh {
			var again string
			if again, err = a.prompt(f, "The same again: "); err == nil && again != first {
				return private.Value[string]{}, usage("the two passwords differ", "")
			}
		}
		return a.nonEmpty(first, err)
	}
	b, err := io.ReadAll(io.LimitReader(a.in, 4096))
	line, _, _ := strings.Cut(string(b), "\n")
	return a.nonEmpty(strings.TrimSuffix(line, "\r"), err)
}

func (a *app) prompt(f *os.File, text string) (string, error) {
	fmt.Fprint(a.err, text)
	b, err := term.ReadPassword(int(f.Fd()))
	fmt.Fprintln(a.err)
	return string(b), err
}

func (a *app) nonEmpty(password string, err error) (private.Value[string], error) {
	if err != nil || password == "" {
		return private.Value[string]{}, usage("no password was given", "type it, or give it as one line on standard input")
	}
	return private.Of(password), nil
}

// directory returns the list of locations: the service's, or with stale set the last copy because
// the service cannot be reached or (offline) must not be asked.
func (a *app) directory(ctx context.Context, offline bool) (d location.Directory, stale bool, err error) {
	k, err := a.keep()
	var have storedDirectory
	if err == nil {
		_, err = k.read(directoryFile, &have)
	}
	if err != nil {
		return d, false, err
	}
	if offline && have.Tag != "" {
		return have.Directory, true, nil
	}
	c, _, token, err := a.session()
	if err != nil {
		return d, false, err
	}
	defer c.Close()
	fresh, tag, changed, err := c.Directory(ctx, token, have.Tag)
	switch {
	case err != nil && fault.Of(err) == fault.Unavailable && have.Tag != "":
		return have.Directory, true, nil
	case err != nil || !changed:
		return have.Directory, false, expired(err)
	}
	return fresh, false, k.write(directoryFile, storedDirectory{tag, fresh})
}

// progress shows on a terminal that something is still going on, from the third second on. The
// returned function ends it; it may be called again.
func (a *app) progress(what string) func() {
	f, ok := a.err.(*os.File)
	if !ok || a.json || !term.IsTerminal(int(f.Fd())) {
		return func() {}
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for n := 1; ; n++ {
			select {
			case <-stop:
				if n > 2 {
					fmt.Fprint(a.err, "\r\x1b[K")
				}
				return
			case <-tick.C:
				if n > 1 {
					fmt.Fprintf(a.err, "\r\x1b[K%s… %d s", what, n)
				}
			}
		}
	}()
	return sync.OnceFunc(func() {
		close(stop)
		<-stopped
	})
}
