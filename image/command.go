// Package image is the builder of the VPN server's image: the command
// lethe-image.
//
// `lock` turns the short list of what is wanted into digests, on the word of the
// archive's signatures (package image/lock); `fetch` fills a store with the inputs that
// the lock names (package image/store); `build` makes images of them (package
// image/build). doc/image.md is the manual.
package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lethe/fault"
	"lethe/image/lock"
	"lethe/image/release/cli"
	"lethe/image/store"
	"lethe/image/vm"
	"lethe/internal/command"
	"lethe/version"
)

// The exit codes of lethe-image.
const (
	exitOK = iota
	exitFailed
	exitUsage
	exitNotFound
	exitConflict
	exitUntrusted
	exitLater
	exitFull
)

const exitHelp = `Exit codes: 0 done, 1 failed, 2 wrong use or unreadable file, 3 not found,
4 the lock is not of this tree, the store is in use or a file is in the way,
5 something is not what was promised, or too old, 6 try again later, 7 disk full.
Errors are written to standard error as lines that begin with error: and hint:.`

func exitCode(k fault.Kind) int {
	switch k {
	case fault.Invalid:
		return exitUsage
	case fault.NotFound:
		return exitNotFound
	case fault.Conflict:
		return exitConflict
	case fault.Untrusted, fault.Expired:
		return exitUntrusted
	case fault.TooMany, fault.Unavailable:
		return exitLater
	case fault.Full:
		return exitFull
	}
	return exitFailed
}

// Machine is what the command takes from the machine that it runs on. Its zero
// value is of no use: see [Here].
type Machine struct {
	Dir     string    // the working directory
	Apt     string    // apt's configuration, /etc/apt
	Keyring string    // the archive's keys unless --keyring says otherwise
	Store   string    // the store unless --store says otherwise; "" when there is no place for one
	GoProxy string    // the environment's GOPROXY
	SumDB   string    // the checksum database's key; "" is the public one
	Plan    lock.Plan // what is wanted
	Needs   vm.Needs  // what virtual machines are made with
	Now     func() time.Time
	Slow    time.Duration // how long something may take before its progress is shown
}

// Here is the machine that the program runs on. getenv is os.Getenv.
func Here(getenv func(string) string) Machine {
	m := Machine{Dir: ".", Apt: "/etc/apt", Keyring: "/usr/share/keyrings/debian-archive-keyring.gpg", GoProxy: getenv("GOPROXY"),
		Plan: lock.Wanted(), Needs: vm.Debian(), Now: time.Now, Slow: 2 * time.Second}
	if dir := getenv("XDG_CACHE_HOME"); filepath.IsAbs(dir) {
		m.Store = filepath.Join(dir, "lethe-image")
	} else if home := getenv("HOME"); home != "" {
		m.Store = filepath.Join(home, ".cache", "lethe-image")
	}
	return m
}

// program is one run of lethe-image.
type program struct {
	m              Machine
	stdout, stderr io.Writer

	json                               bool
	started                            bool // the arguments were understood
	store, tree                        string
	mirror, security, keyring, goProxy string
	sources                            bool
}

// Run runs lethe-image with args (without the program's name) and returns its
// exit code.
func Run(ctx context.Context, args []string, stdout, stderr io.Writer, m Machine) int {
	p := &program{m: m, stdout: stdout, stderr: stderr}
	c := p.command()
	c.SetArgs(args)
	err := c.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	var e *fault.Error
	switch {
	case errors.As(err, &e):
	case errors.Is(err, context.Canceled):
		e = fault.New(fault.Internal, "interrupted").WithHint("repeat: what was fetched is kept")
	case p.started:
		e = fault.New(fault.Internal, err.Error())
	default: // cobra speaks of commands and flags
		e = fault.New(fault.Invalid, err.Error()).WithHint("see `lethe-image --help`")
	}
	fmt.Fprintln(stderr, "error:", e.Text)
	if e.Hint != "" {
		fmt.Fprintln(stderr, "hint:", e.Hint)
	}
	return exitCode(e.Kind)
}

func (p *program) command() *cobra.Command {
	c := &cobra.Command{
		Use: "lethe-image", Short: "Build the image of a Lethe VPN server",
		Long:         "lethe-image pins and fetches what the image of a Lethe VPN server is made of, builds it, and signs and checks releases.\n\n" + exitHelp,
		SilenceUsage: true, SilenceErrors: true,
	}
	c.SetOut(p.stdout)
	c.SetErr(p.stderr)
	flags := c.PersistentFlags()
	flags.BoolVar(&p.json, "json", false, "write JSON")
	flags.StringVar(&p.tree, "tree", "", "directory of Lethe's source, with go.mod (default: the working directory or one above it)")
	flags.StringVar(&p.store, "store", p.m.Store, "directory of the inputs")
	network := func(c *cobra.Command) *cobra.Command {
		c.Flags().StringVar(&p.mirror, "mirror", "", "root of a Debian archive (default: the one in apt's sources)")
		c.Flags().StringVar(&p.security, "security-mirror", "", "root of Debian's security archive (default: the one in apt's sources, or beside --mirror)")
		c.Flags().StringVar(&p.goProxy, "go-proxy", "", "Go module proxy (default: the first in GOPROXY)")
		return c
	}
	locking := network(&cobra.Command{Use: "lock", Short: "Resolve every input to a digest, and write " + lock.FileName, Args: cobra.NoArgs,
		Long: "Resolve what is wanted to packages, sources, toolchain and modules with their digests,\nverified against the signatures of the archive, and write them to " + lock.FileName + " in the tree.\n" +
			"What the archive holds now is taken; see the changes with git diff.",
		RunE: func(c *cobra.Command, _ []string) error { return p.lock(c.Context()) }})
	locking.Flags().StringVar(&p.keyring, "keyring", p.m.Keyring, "OpenPGP keys of the archive")
	fetching := network(&cobra.Command{Use: "fetch", Short: "Fill the store with the inputs that the lock names", Args: cobra.NoArgs,
		Long: "Fetch every input that " + lock.FileName + " names and the store lacks, and verify those that it has.\nInterrupted, it goes on where it stopped.",
		RunE: func(c *cobra.Command, _ []string) error { return p.fetch(c.Context()) }})
	fetching.Flags().BoolVar(&p.sources, "sources", false, "fetch Debian's source packages as well")
	c.AddCommand(locking, fetching, network(p.buildCommand()), p.bootCommand(),
		&cobra.Command{Use: "prune", Short: "Remove from the store what the lock does not name", Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error { return p.prune() }},
		&cobra.Command{Use: "version", Short: "Print the version", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error {
			return p.print(map[string]string{"version": version.String()}, "lethe-image "+version.String())
		}})
	c.AddCommand(p.inspectCommand())
	c.AddCommand(cli.Commands()...)
	command.StrictHelp(c)
	return c
}

// print writes v as JSON, or a line for a person.
func (p *program) print(v any, text string) error {
	if p.json {
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		text = string(b)
	}
	if _, err := fmt.Fprintln(p.stdout, text); err != nil {
		return fault.Wrap(fault.Unavailable, "the answer cannot be written", err)
	}
	return nil
}

// root finds the tree: the directory whose go.mod says lethe.
func (p *program) root() (string, error) {
	p.started = true
	dir, err := filepath.Abs(filepath.Join(p.m.Dir, p.tree))
	if filepath.IsAbs(p.tree) {
		dir = p.tree
	}
	if err != nil {
		return "", err
	}
	for {
		b, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(b), "module lethe\n") {
			return dir, nil
		}
		if above := filepath.Dir(dir); above != dir && p.tree == "" {
			dir = above
			continue
		}
		return "", fault.New(fault.NotFound, "this is not Lethe's source tree").WithHint("go there, or name it with --tree")
	}
}

// open returns the store.
func (p *program) open() (*store.Store, error) {
	if p.store == "" {
		return nil, fault.New(fault.Invalid, "there is no place for the store: HOME is not set").WithHint("name one with --store")
	}
	return store.Open(p.store)
}

// network returns where things come from.
func (p *program) network() *lock.Network {
	mirrors := lock.ReadApt(os.DirFS(p.m.Apt))
	if p.mirror != "" {
		main := strings.TrimRight(p.mirror, "/")
		mirrors = map[string]string{lock.Main: main, lock.Security: main + "-security"}
	}
	if p.security != "" {
		mirrors[lock.Security] = strings.TrimRight(p.security, "/")
	}
	proxy := p.goProxy
	for _, u := range strings.FieldsFunc(p.m.GoProxy, func(r rune) bool { return r == ',' || r == '|' }) {
		if proxy == "" && strings.HasPrefix(u, "http") {
			proxy = u
		}
	}
	if proxy == "" {
		proxy = "https://proxy.golang.org"
	}
	return &lock.Network{Mirrors: mirrors, Proxy: strings.TrimRight(proxy, "/")}
}

// load reads the tree's lock, nil when there is none, and its go.sum.
func load(root string) (l *lock.Lock, text, sum []byte, err error) {
	if sum, err = os.ReadFile(filepath.Join(root, "go.sum")); err != nil {
		return nil, nil, nil, fault.Wrap(fault.NotFound, "the tree has no go.sum that can be read", err).WithHint("take it from the tree's history")
	}
	text, err = os.ReadFile(filepath.Join(root, lock.FileName))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil, sum, nil
	}
	if err != nil {
		return nil, nil, nil, fault.Wrap(fault.Denied, lock.FileName+" cannot be read", err)
	}
	l, err = lock.Parse(text)
	return l, text, sum, err
}
