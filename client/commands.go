package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"lethe/account"
	"lethe/event"
	"lethe/fault"
	"lethe/internal/command"
)

// Run is the program `lethe`: it runs the command line args (without the program's name) and
// returns the exit code. env looks a variable up as os.Getenv does; no secret is ever read from it.
func Run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer, env func(string) string) int {
	a := &app{in: stdin, out: stdout, err: stderr, env: env}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err != nil {
		a.fail(err)
	}
	return exitCode(err)
}

// fail shows an error as the person or the program that called can read it.
func (a *app) fail(err error) {
	p := ProblemOf(err)
	if errors.Is(err, context.Canceled) {
		p = &Problem{Kind: fault.Unavailable.String(), Text: "interrupted"}
	}
	if a.json {
		_ = a.show("error", struct {
			Error *Problem `json:"error"`
		}{p}, "")
		return
	}
	fmt.Fprintf(a.err, "error: %s\n", printableLine(p.Text))
	if p.Hint != "" {
		fmt.Fprintf(a.err, "hint: %s\n", printableLine(p.Hint))
	}
}

// show writes a result: with --json the value with its schema's name, else the text.
func (a *app) show(schema string, v any, text string) error {
	if !a.json {
		_, err := io.WriteString(a.out, text)
		return err
	}
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	head := fmt.Sprintf(`{"schema":"lethe.%s/1"`, schema)
	if len(b) > 2 {
		head += ","
	}
	_, err = fmt.Fprintf(a.out, "%s%s\n", head, b[1:])
	return err
}

// noteLine tells a person something beside the result.
func (a *app) noteLine(text string) {
	if !a.json {
		fmt.Fprintln(a.err, "note: "+text)
	}
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use: "lethe", Short: "The app of a VPN service that cannot say who did what",
		SilenceErrors: true, SilenceUsage: true, Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return command.Missing(c, args[0])
			}
			return c.Help()
		},
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		text := err.Error()
		return usage(printableLine(text[:min(len(text), 300)]), "see `"+c.CommandPath()+" --help`")
	})
	f := root.PersistentFlags()
	f.BoolVar(&a.json, "json", false, "answer in JSON (schemas in doc/app.md)")
	f.StringVar(&a.flags.API, "api", "", "https `address` of the service (default from LETHE_API or "+defaultSettings+")")
	f.StringVar(&a.flags.CA, "ca", "", "`file` with PEM certificates to trust instead of the system's")
	f.StringVar(&a.flags.Socket, "socket", "", "the helper's `socket` (default "+defaultSocket+")")
	root.AddCommand(a.signup(), a.login(), a.logout(), a.account(), a.locations(), a.connect(), a.status(), a.disconnect(),
		a.config(), a.credentials(), a.version(), a.helper())
	for _, c := range append(root.Commands(), root) {
		a.strict(c)
	}
	command.StrictHelp(root)
	return root
}

// strict makes wrong arguments usage errors everywhere.
func (a *app) strict(c *cobra.Command) {
	for _, sub := range c.Commands() {
		a.strict(sub)
	}
	check := c.Args
	c.Args = func(c *cobra.Command, args []string) error {
		switch {
		case check == nil || check(c, args) == nil:
			return nil
		case c.HasSubCommands():
			return command.Missing(c, args[0])
		case len(args) == 0:
			return usage("an argument is missing", "usage: "+c.UseLine())
		}
		return usage("too many arguments", "usage: "+c.UseLine())
	}
}

func (a *app) signup() *cobra.Command {
	return &cobra.Command{
		Use: "signup EMAIL", Short: "Make an account", Args: cobra.ExactArgs(1),
		Long: "Make an account. The password is asked for without echo, or read as one line from standard input.",
		RunE: func(c *cobra.Command, args []string) error {
			service, err := a.service()
			if err != nil {
				return err
			}
			defer service.Close()
			password, err := a.password(true)
			if err != nil {
				return err
			}
			defer a.progress("signing up")()
			if err := service.SignUp(c.Context(), args[0], password); err != nil {
				return err
			}
			return a.show("signup", struct{}{}, "the account is made; next: lethe login "+printable(args[0])+"\n")
		},
	}
}

func (a *app) login() *cobra.Command {
	return &cobra.Command{
		Use: "login EMAIL", Short: "Log in on this machine", Args: cobra.ExactArgs(1),
		Long: "Log in. The password is asked for without echo, or read as one line from standard input; it is not kept.",
		RunE: func(c *cobra.Command, args []string) error {
			service, err := a.service()
			var k keep
			if err == nil {
				k, err = a.keep()
			}
			if err != nil {
				return err
			}
			defer service.Close()
			password, err := a.password(false)
			if err != nil {
				return err
			}
			defer a.progress("logging in")()
			token, err := service.Login(c.Context(), args[0], password, account.App{OS: "linux", Version: Version})
			if err == nil {
				err = k.write(tokenFile, storedToken{token.Reveal()})
			}
			if err != nil {
				return err
			}
			a.stock(c.Context())
			return a.show("login", struct{}{}, "logged in; next: lethe connect\n")
		},
	}
}

// stock fetches what connect needs later, so that it works when the service cannot be reached. What
// is missing then is fetched, and its error shown, at the next connect.
func (a *app) stock(ctx context.Context) {
	if _, _, err := a.directory(ctx, false); err != nil {
		a.noteLine("the list of locations is not there yet: " + ProblemOf(err).Text)
	}
	r, err := a.rights(ctx, false)
	if err != nil {
		a.noteLine("the VPN credential is not there yet: " + ProblemOf(err).Text)
	} else if err := unlicensed(r.licence); r.fresh && err != nil {
		a.noteLine(ProblemOf(err).Text)
	}
}

func (a *app) logout() *cobra.Command {
	return &cobra.Command{
		Use: "logout", Short: "Log out and forget token and credential on this machine", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			service, k, token, err := a.session()
			if err != nil {
				return err
			}
			defer service.Close()
			defer a.progress("logging out")()
			told := service.Logout(c.Context(), token)
			if err := k.forget(); err != nil {
				return err
			}
			if told != nil && fault.Of(told) != fault.Unauthenticated {
				return fault.Wrap(fault.Of(told), "logged out here, but the service could not be told", told).
					WithHint("the token ends by itself; it is no longer on this machine")
			}
			return a.show("logout", struct{}{}, "logged out\n")
		},
	}
}

func (a *app) account() *cobra.Command {
	return &cobra.Command{
		Use: "account", Short: "Show the licence", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			service, _, token, err := a.session()
			if err != nil {
				return err
			}
			defer service.Close()
			defer a.progress("asking")()
			l, err := service.Licence(c.Context(), token)
			if err != nil {
				return expired(err)
			}
			text := fmt.Sprintf("plan:       %s\ndevices:    %d\npaid until: %s\n", printable(l.Plan), l.Devices, l.PaidUntil)
			if l.Plan == "" {
				text = ""
			}
			why := unlicensed(l)
			if why != nil {
				text += ProblemOf(why).Text + "\n"
			}
			return a.show("account", struct {
				Licence account.Licence `json:"licence"`
				Active  bool            `json:"active"`
			}{l, why == nil}, text)
		},
	}
}

// listed is a location as `lethe locations --json` prints it.
type listed struct {
	Code      string   `json:"code"`
	Country   string   `json:"country"`
	City      string   `json:"city"`
	Servers   int      `json:"servers"` // that take customers now
	Protocols []string `json:"protocols"`
}

func (a *app) locations() *cobra.Command {
	return &cobra.Command{
		Use: "locations", Short: "List where you can connect", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			done := a.progress("asking")
			d, stale, err := a.directory(c.Context(), a.isCutOff(c.Context()))
			done()
			if err != nil {
				return err
			}
			out := struct {
				Stale     bool     `json:"stale"` // a copy from before, the service was not asked
				Locations []listed `json:"locations"`
			}{stale, []listed{}}
			var text strings.Builder
			for _, l := range byName(d.Locations) {
				entry := listed{l.Code, l.Country, l.City, 0, []string{}}
				for _, s := range servers(d, l) {
					entry.Servers++
					for _, e := range s.Endpoints {
						if p := e.Protocol.String(); !slices.Contains(entry.Protocols, p) {
							entry.Protocols = append(entry.Protocols, p)
						}
					}
				}
				slices.Sort(entry.Protocols)
				out.Locations = append(out.Locations, entry)
				fmt.Fprintf(&text, "%-16s %s  %-24s %s\n", l.Code, l.Country, printable(l.City), count(entry.Servers, "server"))
			}
			if stale {
				a.noteLine("this is the last copy: the service cannot be reached")
			}
			return a.show("locations", out, text.String())
		},
	}
}

func (a *app) credentials() *cobra.Command {
	group := &cobra.Command{Use: "credentials", Short: "The VPN user name and password", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	show := func(c account.Credential) error {
		u, p := c.Username.Reveal(), c.Password.Reveal()
		return a.show("credentials", struct {
			Username string `json:"username"`
			Password string `json:"password"`
		}{u, p}, fmt.Sprintf("user name: %s\npassword:  %s\n", printable(u), printableLine(p)))
	}
	group.AddCommand(&cobra.Command{
		Use: "show", Short: "Print them, for the system's own VPN client", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			defer a.progress("asking")()
			got, err := a.rights(c.Context(), a.isCutOff(c.Context()))
			if err != nil {
				return err
			}
			return show(got.credential)
		},
	}, &cobra.Command{
		Use: "replace", Short: "Get new ones; the old ones end everywhere", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			service, k, token, err := a.session()
			if err != nil {
				return err
			}
			defer service.Close()
			defer a.progress("asking")()
			got, err := service.ReplaceCredential(c.Context(), token)
			if err == nil {
				have, _, _ := k.rights() // a damaged copy is replaced
				_, err = k.putRights(rights{credential: got, licence: have.licence})
			}
			if err != nil {
				return expired(err)
			}
			a.noteLine("servers learn of them within a minute; until then they take the old ones")
			return show(got)
		},
	})
	return group
}

func (a *app) version() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return a.show("version", struct {
				Version string `json:"version"`
				Go      string `json:"go"`
				OS      string `json:"os"`
				Arch    string `json:"arch"`
			}{Version, runtime.Version(), runtime.GOOS, runtime.GOARCH}, "lethe "+Version+"\n")
		},
	}
}

func (a *app) helper() *cobra.Command {
	var cfg HelperConfig
	c := &cobra.Command{
		Use: "helper", Short: "Run the root helper (a service manager starts it)", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg.Socket = a.flags.Socket
			cfg.RuntimeDir = orElse(cfg.RuntimeDir, a.env("RUNTIME_DIRECTORY"))
			cfg.StateDir = orElse(cfg.StateDir, a.env("STATE_DIRECTORY"))
			return NewHelper(cfg, event.New(a.err)).Run(c.Context())
		},
	}
	f := c.Flags()
	f.StringVar(&cfg.RuntimeDir, "runtime-dir", "", "`directory` for sockets (default $RUNTIME_DIRECTORY or /run/lethe)")
	f.StringVar(&cfg.StateDir, "state-dir", "", "`directory` for what must be restored (default $STATE_DIRECTORY or /var/lib/lethe)")
	f.StringVar(&cfg.Group, "group", "", "`group` whose members may use the helper (default: only root)")
	f.StringVar(&cfg.ResolvConf, "resolv-conf", "", "resolver configuration `file` (default /etc/resolv.conf)")
	f.StringVar(&cfg.OpenVPN, "openvpn", "", "`path` of OpenVPN (default /usr/sbin/openvpn)")
	f.StringVar(&cfg.Charon, "charon", "", "`path` of strongSwan's charon-systemd (default /usr/sbin/charon-systemd)")
	f.StringVar(&cfg.NFT, "nft", "", "`path` of nft (default /usr/sbin/nft)")
	f.StringVar(&cfg.Resolvectl, "resolvectl", "", "`path` of resolvectl (default /usr/bin/resolvectl)")
	f.DurationVar(&cfg.Mend, "mend", 0, "how often lock, routes and resolvers are checked and repaired (default 5s)")
	f.DurationVar(&cfg.Beat, "beat", 0, "how often the service is told that this device is still connected (default 30s)")
	f.DurationVar(&cfg.Silence, "silence", 0, "how long an IKEv2 server may be silent before the tunnel counts as lost (default 1m0s)")
	f.Uint32Var(&cfg.UID, "openvpn-uid", 0, "user `id` that OpenVPN and charon run as where it may open /dev/net/tun (default 65534)")
	f.Uint32Var(&cfg.GID, "openvpn-gid", 0, "group `id` that goes with it (default 65534)")
	return c
}

// completeLocation offers the locations of the last copy; it asks nobody.
func (a *app) completeLocation(_ *cobra.Command, args []string, _ string) (codes []string, _ cobra.ShellCompDirective) {
	var have storedDirectory
	if k, err := a.keep(); err == nil && len(args) == 0 {
		if _, err := k.read(directoryFile, &have); err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
	}
	for _, l := range byName(have.Directory.Locations) {
		codes = append(codes, fmt.Sprintf("%s\t%s, %s", l.Code, printable(l.City), l.Country))
	}
	return codes, cobra.ShellCompDirectiveNoFileComp
}
