package control

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"lethe/day"
	"lethe/fault"
	"lethe/internal/command"
)

// DefaultDir is where the data directory is unless --dir says otherwise.
const DefaultDir = "/var/lib/lethe-control"

// The exit codes of lethe-control.
const (
	exitOK = iota
	exitFailed
	exitUsage
	exitNotFound
	exitConflict
	exitDenied
	exitLater
	exitFull
)

const exitHelp = `Exit codes: 0 done, 1 failed, 2 wrong use or impossible value, 3 not found,
4 exists already or still in use, 5 not allowed, 6 try again later, 7 disk full.
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
	default:
		return exitFailed
	}
}

// program is one run of lethe-control.
type program struct {
	stdin          io.Reader
	lines          *bufio.Reader // of stdin
	stdout, stderr io.Writer

	dir     string
	json    bool
	started bool // the arguments were understood
}

// Run runs lethe-control with args (without the program's name) and returns its
// exit code. It reads nothing from the environment.
func Run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	p := &program{stdin: stdin, lines: bufio.NewReader(stdin), stdout: stdout, stderr: stderr}
	c := p.command()
	c.SetArgs(args)
	used, err := c.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	var e *fault.Error
	switch {
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
		Use:   "lethe-control",
		Short: "Run and operate the control plane of a Lethe VPN service",
		Long: "lethe-control runs and operates the control plane of a Lethe VPN service.\n\nEMAIL may be - everywhere: " +
			"the address is then read from standard input, and does not stand in the process list.\n\n" + exitHelp,
		SilenceUsage: true, SilenceErrors: true,
	}
	c.SetIn(p.stdin)
	c.SetOut(p.stdout)
	c.SetErr(p.stderr)
	command.FlagErrors(c)
	c.PersistentFlags().StringVar(&p.dir, "dir", DefaultDir, "data directory")
	c.PersistentFlags().BoolVar(&p.json, "json", false, "write JSON")
	c.AddCommand(p.initCommand(), p.serveCommand(), p.geoipCommand(), p.accountCommand(), p.licenceCommand(), p.locationCommand(), p.serverCommand(),
		p.usageCommand(), p.slotsCommand(), p.keysCommand(), p.checkCommand())
	command.StrictHelp(c)
	return c
}

// action returns a command that takes n arguments and works on the open data
// directory.
func (p *program) action(use, short string, n int, do func(ctx context.Context, c *Control, args []string) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: cobra.ExactArgs(n), RunE: func(cmd *cobra.Command, args []string) error {
		p.started = true
		c, err := Open(cmd.Context(), p.dir)
		if err != nil {
			return err
		}
		return errors.Join(do(cmd.Context(), c, args), c.Close())
	}}
}

// print writes v as JSON, or text for a person.
func (p *program) print(v any, text func(w io.Writer)) error {
	return command.Print(p.stdout, p.json, v, text)
}

// line reads one line of standard input, without its end.
func (p *program) line(what string) (string, error) {
	s, err := p.lines.ReadString('\n')
	if err != nil && s == "" {
		return "", fault.New(fault.Invalid, "no "+what+" on standard input")
	}
	return strings.TrimRight(s, "\r\n"), nil
}

// email returns an address given as argument, or read for -.
func (p *program) email(arg string) (string, error) {
	if arg == "-" {
		return p.line("e-mail address")
	}
	return arg, nil
}

// date is a flag that holds a day.
type date struct {
	day.Day
	set bool
}

// Set implements pflag.Value.
func (d *date) Set(s string) (err error) {
	d.Day, err = day.Parse(s)
	d.set = true
	return err
}

// String implements pflag.Value.
func (d *date) String() string {
	if !d.set {
		return ""
	}
	return d.Day.String()
}

// Type implements pflag.Value.
func (*date) Type() string { return "DATE" }

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
