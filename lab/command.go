package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"lethe/fault"
	"lethe/image/vm"
	"lethe/internal/command"
)

// cli is one run of the command lethe-lab.
type cli struct {
	in       io.Reader
	out, err io.Writer
	env      func(string) string
	opts     Options
	image    string     // for the first server; "" for none
	guest    vm.Options // what it runs on
}

// Run is the command lethe-lab. It returns the exit code: 0 for success, 1 for a
// failure, which is said on stderr, and what a command run on a machine returned.
func Run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer, env func(string) string) int {
	c := &cli{in: stdin, out: stdout, err: stderr, env: env}
	root := c.root()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit) && errors.Is(err, errOnMachine):
		return max(exit.ExitCode(), 1)
	}
	fmt.Fprintln(stderr, "error:", err)
	var f *fault.Error
	switch {
	case errors.Is(err, ErrNoLab):
		fmt.Fprintln(stderr, "hint: make up")
	case errors.As(err, &f) && f.Hint != "":
		fmt.Fprintln(stderr, "hint:", f.Hint)
	}
	return 1
}

// errOnMachine marks the failure of a command that a person ran on a machine: it has
// said itself what is wrong.
var errOnMachine = errors.New("on the machine")

func (c *cli) root() *cobra.Command {
	root := &cobra.Command{
		Use: "lethe-lab", Short: "A whole VPN service on this machine, in network namespaces",
		SilenceErrors: true, SilenceUsage: true,
	}
	f := root.PersistentFlags()
	f.StringVar(&c.opts.Prefix, "prefix", "lab", "name that tells labs apart: 1 to 6 small letters and digits")
	f.StringVar(&c.opts.Dir, "dir", "", "`directory` for the lab's files (default build/PREFIX beside build/bin)")
	f.StringVar(&c.opts.BinDir, "bin", "", "`directory` with the programs (default: where lethe-lab is)")
	root.PersistentPreRunE = func(*cobra.Command, []string) error { return c.defaults() }
	root.AddCommand(c.up(), c.serve(), c.down(), c.status(), c.shell(), c.operator(), c.run(), c.logs(), c.signal())
	command.StrictHelp(root)
	return root
}

func (c *cli) defaults() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if c.opts.BinDir == "" {
		c.opts.BinDir = filepath.Dir(self)
	}
	if c.opts.Dir == "" {
		c.opts.Dir = filepath.Join(c.opts.BinDir, "..", c.opts.Prefix)
	}
	if dir := c.env("GOCOVERDIR"); dir != "" {
		c.opts.Env = append(c.opts.Env, "GOCOVERDIR="+dir) // instrumented programs, see scripts/test
	}
	return nil
}

// shape adds the flags that say what to build.
func (c *cli) shape(cmd *cobra.Command) {
	cmd.Flags().IntVar(&c.opts.Customers, "customers", 1, "number of customer machines")
	cmd.Flags().BoolVar(&c.opts.Bare, "bare", false, "only network, web site and name servers")
	cmd.Flags().StringVar(&c.image, "image", "", "boot this `ISO` (lethe-image build --lab) in a virtual machine as the first VPN server")
	cmd.Flags().IntVar(&c.guest.Memory, "memory", 1024, "memory of the virtual machine in MiB")
	cmd.Flags().IntVar(&c.guest.CPUs, "cpus", 2, "CPUs of the virtual machine")
}

func (c *cli) up() *cobra.Command {
	tour := true
	cmd := &cobra.Command{
		Use: "up", Short: "Bring the lab up and show one customer's way through it", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			began := time.Now()
			if c.image != "" {
				path, err := filepath.Abs(c.image)
				if err != nil {
					return err
				}
				c.image = path
			}
			if err := c.background(cmd.Context()); err != nil {
				return err
			}
			info, err := (&Remote{c.opts.Prefix}).Info(cmd.Context())
			if err == nil && tour && !c.opts.Bare {
				err = Tour(cmd.Context(), info, c.out)
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(c.out, "\nThe lab is up (%.1f s). Go on with\n\n  make shell      the customer's machine: lethe connect, lethe status, curl %s\n"+
				"  make operator   the control plane's machine: lethe-control --help\n  make down       remove every trace\n",
				time.Since(began).Seconds(), SiteURL)
			return nil
		},
	}
	c.shape(cmd)
	cmd.Flags().BoolVar(&tour, "tour", true, "sign a customer up, connect, fetch a page, show the usage row")
	return cmd
}

// firstExtra is the number of the first of [exec.Cmd.ExtraFiles].
const firstExtra = 3

// background starts `lethe-lab serve` as a process of its own session and
// passes on what it says until the lab is up.
func (c *cli) background(ctx context.Context) (err error) {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	s := exec.Command(self, "serve", "--prefix", c.opts.Prefix, "--dir", c.opts.Dir, "--bin", c.opts.BinDir,
		fmt.Sprintf("--progress=%d", firstExtra), fmt.Sprintf("--customers=%d", c.opts.Customers), fmt.Sprintf("--bare=%t", c.opts.Bare),
		"--image", c.image, fmt.Sprintf("--memory=%d", c.guest.Memory), fmt.Sprintf("--cpus=%d", c.guest.CPUs))
	s.ExtraFiles = []*os.File{w}
	s.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = errors.Join(s.Start(), w.Close())
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Process.Signal(syscall.SIGTERM) }) // it may have ended
	defer stop()
	var said strings.Builder
	if _, err := io.Copy(io.MultiWriter(c.out, &said), r); err != nil {
		return err
	}
	if !strings.HasSuffix(said.String(), upLine) {
		return errors.Join(errors.New("the lab did not come up"), context.Cause(ctx), s.Wait())
	}
	return s.Process.Release()
}

// upLine ends the progress of a lab that came up.
const upLine = "✓ lab is up\n"

func (c *cli) serve() *cobra.Command {
	var fd int
	cmd := &cobra.Command{
		Use: "serve", Short: "Hold a lab until it is taken down (up starts this)", Args: cobra.NoArgs, Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			syscall.CloseOnExec(fd) // the machines' first processes must not keep it open
			progress := os.NewFile(uintptr(fd), "progress")
			defer progress.Close()
			c.opts.Step = Progress(progress)
			if c.image != "" {
				// One server: it is what there is to see, and the tour's.
				c.guest.Medium, c.opts.Locations = c.image, Places()[:1]
				c.opts.Guests = map[string]vm.Options{Places()[0].Code: c.guest}
			}
			l, err := New(cmd.Context(), c.opts)
			if err != nil {
				fmt.Fprintln(progress, "error:", err)
				return err
			}
			if _, err := io.WriteString(progress, upLine); err != nil {
				return errors.Join(err, l.Close()) // nobody knows of this lab
			}
			if err := progress.Close(); err != nil {
				return errors.Join(err, l.Close())
			}
			select {
			case <-cmd.Context().Done():
			case <-l.Done():
			}
			return l.Close()
		},
	}
	c.shape(cmd)
	cmd.Flags().IntVar(&fd, "progress", firstExtra, "open descriptor on which to tell the progress; it is closed when the lab is up")
	return cmd
}

// Progress returns an [Options].Step that writes a line for each step when it
// is done, with the time it took.
func Progress(w io.Writer) func(string) func(error) {
	return func(name string) func(error) {
		began := time.Now()
		return func(err error) {
			mark := "✓"
			if err != nil {
				mark = "✗"
			}
			fmt.Fprintf(w, "%s %s … %.1f s\n", mark, name, time.Since(began).Seconds())
		}
	}
}

func (c *cli) down() *cobra.Command {
	return &cobra.Command{
		Use: "down", Short: "Remove every trace of the lab", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return Down(cmd.Context(), c.opts.Prefix, c.opts.Dir) },
	}
}

func (c *cli) info(ctx context.Context) (*Info, error) { return (&Remote{c.opts.Prefix}).Info(ctx) }

func (c *cli) status() *cobra.Command {
	asJSON := false
	cmd := &cobra.Command{
		Use: "status", Short: "Show machines and services", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			info, err := c.info(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(c.out).Encode(info)
			}
			for _, m := range info.Machines {
				fmt.Fprintf(c.out, "%-12s %s", m.Name, m.Namespace)
				for _, d := range m.Addresses {
					fmt.Fprintf(c.out, " %s %s", d.V4, d.V6)
				}
				fmt.Fprintln(c.out)
				for _, u := range info.Units {
					if u.Machine == m.Name {
						fmt.Fprintf(c.out, "    %-20s %-10s pid %d, restarts %d\n", u.Unit, u.State, u.PID, u.Restarts)
					}
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "answer in JSON")
	return cmd
}

func (c *cli) shell() *cobra.Command {
	return &cobra.Command{
		Use: "shell [MACHINE]", Short: "A shell on a machine, the customer's unless another is named", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.enter(cmd.Context(), append(args, customerName(0))[0], "bash", "--norc")
		},
	}
}

func (c *cli) operator() *cobra.Command {
	return &cobra.Command{
		Use: "operator", Short: "A shell on the control plane's machine", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.enter(cmd.Context(), "control", "bash", "--norc") },
	}
}

func (c *cli) run() *cobra.Command {
	cmd := &cobra.Command{
		Use: "run MACHINE COMMAND [ARGUMENT]…", Short: "Run one command on a machine", Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[1] == "--" && len(args) > 2 {
				args = append(args[:1], args[2:]...)
			}
			return c.enter(cmd.Context(), args[0], args[1:]...)
		},
	}
	cmd.Flags().SetInterspersed(false)
	return cmd
}

// enter runs a command on a machine with this process's streams.
func (c *cli) enter(ctx context.Context, machine string, args ...string) error {
	info, err := c.info(ctx)
	if err != nil {
		return err
	}
	m := info.Machine(machine)
	if m == nil {
		names := make([]string, len(info.Machines))
		for i, m := range info.Machines {
			names[i] = m.Name
		}
		return fmt.Errorf("no machine %q: there are %s", machine, strings.Join(names, ", "))
	}
	command := m.Command(context.WithoutCancel(ctx), args[0], args[1:]...) // Ctrl-C is for the command
	command.Stdin, command.Stdout, command.Stderr = c.in, c.out, c.err
	command.Env = append(command.Env, "TERM="+c.env("TERM"), `PS1=[`+machine+`] \w \$ `)
	err = command.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return errors.Join(errOnMachine, err)
	}
	return err
}

func (c *cli) logs() *cobra.Command {
	return &cobra.Command{
		Use: "logs [UNIT]", Short: "Print what services wrote", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			info, err := c.info(cmd.Context())
			if err != nil {
				return err
			}
			pattern := "*"
			if len(args) == 1 {
				pattern = filepath.Base(args[0])
			}
			paths, err := filepath.Glob(filepath.Join(info.Dir, "log", pattern+".log"))
			if err != nil || len(paths) == 0 {
				return errors.Join(err, fmt.Errorf("no output of a unit %q", pattern))
			}
			for _, path := range paths {
				b, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				fmt.Fprintf(c.out, "== %s\n%s", strings.TrimSuffix(filepath.Base(path), ".log"), b)
			}
			return nil
		},
	}
}

func (c *cli) signal() *cobra.Command {
	kill := false
	cmd := &cobra.Command{
		Use: "restart UNIT", Short: "Restart a service, or kill it to see it come back", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if r := (&Remote{c.opts.Prefix}); kill {
				return r.Kill(cmd.Context(), args[0])
			} else {
				return r.Restart(cmd.Context(), args[0])
			}
		},
	}
	cmd.Flags().BoolVar(&kill, "kill", false, "kill -9 its main process")
	return cmd
}
