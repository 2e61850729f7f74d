package activator

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/cobra"

	"lethe/attest"
	"lethe/fault"
	"lethe/internal/command"
)

// DefaultDir is where the data directory is unless --dir says otherwise.
const DefaultDir = "/var/lib/lethe-activator"

// The exit codes of lethe-activator.
const (
	exitOK = iota
	exitFailed
	exitUsage
	exitNotFound
	exitConflict
	exitDenied
	exitLater
	exitFull
	exitRefused
)

const exitHelp = `Exit codes: 0 done, 1 failed, 2 wrong use or impossible value, 3 not found,
4 exists already or contradicts the record, 5 not allowed, 6 try again later,
7 disk full, 8 a server, a signature or the record does not verify.
Errors are written to standard error as lines that begin with error: and hint:.`

func exitCode(k fault.Kind) int {
	switch k {
	case fault.Invalid:
		return exitUsage
	case fault.NotFound:
		return exitNotFound
	case fault.Conflict:
		return exitConflict
	case fault.Denied, fault.Expired, fault.Unauthenticated:
		return exitDenied
	case fault.TooMany, fault.Unavailable:
		return exitLater
	case fault.Full:
		return exitFull
	case fault.Untrusted:
		return exitRefused
	default:
		return exitFailed
	}
}

// program is one run of lethe-activator.
type program struct {
	stdin          io.Reader
	stdout, stderr io.Writer

	dir     string
	json    bool
	started bool // the arguments were understood
}

// Run runs lethe-activator with args (without the program's name) and returns its
// exit code. It reads nothing from the environment.
func Run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	p := &program{stdin: stdin, stdout: stdout, stderr: stderr}
	c := p.command()
	c.SetArgs(args)
	used, err := c.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	var e *fault.Error
	var refusal *attest.Refusal
	switch {
	case errors.As(err, &refusal):
		e = fault.New(fault.Untrusted, refusal.Error()).WithHint("doc/activation.md says what each reason means; `lethe-activator why SERVER` shows the last ones")
	case errors.As(err, &e):
	case p.started: // no cause in the text, it may hold what it should not
		e = fault.New(fault.Internal, "an unforeseen failure")
	default: // cobra speaks of commands and flags
		e = command.Misuse(used, err)
	}
	fmt.Fprintln(stderr, "error:", e.Text)
	if e.Hint != "" {
		fmt.Fprintln(stderr, "hint:", e.Hint)
	}
	return exitCode(e.Kind)
}

func (p *program) command() *cobra.Command {
	c := &cobra.Command{
		Use:   "lethe-activator",
		Short: "Decide which VPN servers are told secrets",
		Long: "lethe-activator attests the VPN servers of a Lethe service and gives secrets to those that run a released\n" +
			"image on the machine that belongs to the place.\n\n" + exitHelp,
		SilenceUsage: true, SilenceErrors: true,
	}
	c.SetIn(p.stdin)
	c.SetOut(p.stdout)
	c.SetErr(p.stderr)
	command.FlagErrors(c)
	c.PersistentFlags().StringVar(&p.dir, "dir", DefaultDir, "data directory")
	c.PersistentFlags().BoolVar(&p.json, "json", false, "write JSON")
	c.AddCommand(p.initCommand(), p.enrolCommand(), p.confirmCommand(), p.listCommand(), p.whyCommand(), p.revokeCommand(), p.activateCommand(),
		p.profileCommand(), p.releaseCommand(), p.floorCommand(), p.signCommand(), p.logCommand(), p.authoritiesCommand(), p.runCommand())
	command.StrictHelp(c)
	return c
}

// plain returns a command that takes n arguments and needs no data directory.
func (p *program) plain(use, short string, n int, do func(ctx context.Context, args []string) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: cobra.ExactArgs(n), RunE: func(c *cobra.Command, args []string) error {
		p.started = true
		return do(c.Context(), args)
	}}
}

// action returns a command that takes n arguments and works on the open data directory.
func (p *program) action(use, short string, n int, do func(ctx context.Context, a *Activator, args []string) error) *cobra.Command {
	return p.plain(use, short, n, func(ctx context.Context, args []string) error {
		a, err := Open(p.dir)
		if err != nil {
			return err
		}
		return do(ctx, a, args)
	})
}

// require makes flags necessary.
func require(c *cobra.Command, flags ...string) *cobra.Command {
	for _, f := range flags {
		_ = c.MarkFlagRequired(f) // it exists
	}
	return c
}

// print writes v as JSON, or text for a person.
func (p *program) print(v any, text func(w io.Writer)) error {
	return command.Print(p.stdout, p.json, v, text)
}

// maxFile bounds files that are read whole.
const maxFile = 2 << 20

// read reads a small file, or standard input for -.
func (p *program) read(path string) ([]byte, error) {
	var r io.Reader = p.stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, fileFault(path, err)
		}
		defer f.Close()
		r = f
	}
	b, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return nil, fileFault(path, err)
	}
	if len(b) > maxFile {
		return nil, fault.New(fault.Invalid, path+" is too large")
	}
	return b, nil
}

func fileFault(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fault.Wrap(fault.NotFound, "there is no file "+path, err)
	case errors.Is(err, fs.ErrExist):
		return fault.Wrap(fault.Conflict, path+" exists already", err)
	}
	return fault.Wrap(fault.Unavailable, path+" cannot be read or written", err)
}

// write makes a file, or writes to standard output for -. It never writes over.
func (p *program) write(path string, b []byte, mode fs.FileMode) error {
	if path == "-" {
		_, err := p.stdout.Write(b)
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return fileFault(path, err)
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err != nil {
		return fileFault(path, err)
	}
	return nil
}

// readKey reads an operator's private key: PKCS #8 in PEM.
func (p *program) readKey(path string) (crypto.Signer, error) {
	b, err := p.read(path)
	if err != nil {
		return nil, err
	}
	defer clear(b)
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, fault.New(fault.Invalid, path+" is no private key (PKCS #8 in PEM)").WithHint("openssl genpkey -algorithm ed25519 makes one")
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	signer, ok := k.(crypto.Signer)
	if err != nil || !ok {
		return nil, fault.New(fault.Invalid, path+" is no private key that signs")
	}
	return signer, nil
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// moment prints a time for people.
func moment(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02 15:04:05")
}
