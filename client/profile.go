package client

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"lethe/fault"
	"lethe/location"
	profiles "lethe/profile"
	"lethe/protocol"
)

// export is one call of `lethe config export`.
type export struct {
	a                     *app
	transport, kind, file string
	qr                    bool
}

func (a *app) config() *cobra.Command {
	group := &cobra.Command{Use: "config", Short: "Use the system's own VPN client instead of the app", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	e := export{a: a}
	var formats strings.Builder
	for _, f := range profiles.Formats() {
		fmt.Fprintf(&formats, "  %-15s %s\n", f.Name, f.For)
	}
	c := &cobra.Command{
		Use: "export [LOCATION]", Short: "Write a profile for OpenVPN, Apple's systems, Android, Windows, NetworkManager or strongSwan",
		Args: cobra.ArbitraryArgs, ValidArgsFunction: a.completeLocation,
		Long: "Write a file by which the system's own client connects. It holds no password, and the user name only\n" +
			"where the client does not ask for it: `lethe credentials show` prints both. Formats:\n\n" + formats.String(),
		RunE: func(c *cobra.Command, args []string) error { return e.run(c.Context(), args) },
	}
	c.Flags().StringVar(&e.transport, "transport", "udp", "udp, tcp or auto; of OpenVPN")
	c.Flags().StringVar(&e.kind, "format", "ovpn", strings.Join(profiles.Names(), ", "))
	c.Flags().StringVarP(&e.file, "output", "o", "", "write to this `file` (mode 0600) instead of standard output")
	c.Flags().BoolVar(&e.qr, "qr", false, "draw the profile as a QR code; with -o, an image in PNG form")
	_ = c.RegisterFlagCompletionFunc("transport", cobra.FixedCompletions([]string{"udp", "tcp", "auto"}, cobra.ShellCompDirectiveNoFileComp))
	_ = c.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(profiles.Names(), cobra.ShellCompDirectiveNoFileComp))
	group.AddCommand(c)
	return group
}

func (e *export) run(ctx context.Context, args []string) error {
	formats, err := e.formats()
	if err == nil && e.qr && e.a.json && e.file == "" {
		err = usage("a QR code is not JSON", "-o FILE writes it as an image")
	}
	if err != nil {
		return err
	}
	done := e.a.progress("asking")
	l, servers, r, err := e.place(ctx, args, formats[0].Named)
	done()
	if err != nil {
		return err
	}
	f, s, err := firstFit(formats, servers, l)
	if err != nil {
		return err
	}
	request := profiles.Request{Server: s, Username: r.credential.Username}
	if f.Beside && e.file != "" && !e.qr {
		path, err := filepath.Abs(e.file)
		if err != nil {
			return fault.Wrap(fault.Internal, "the file's place is unknown", err)
		}
		request.CA = filepath.Join(filepath.Dir(path), s.ID+".pem")
	}
	p, err := f.Render(request)
	if errors.Is(err, profiles.ErrPath) {
		return usage("the format "+f.Name+" names the CA's file, and takes no blanks and the like in its path", "-o FILE in another directory, or no -o: then the CA is in the profile")
	}
	if err != nil {
		return fault.Wrap(fault.Untrusted, "no profile can be made of the service's description of the server", err)
	}
	if e.qr {
		if p.Text, err = e.draw(p.Text, s); err != nil {
			return err
		}
	}
	return e.hand(f, l, request, p)
}

// formats returns the formats that may be meant: with --transport auto both of OpenVPN's.
func (e *export) formats() ([]profiles.Format, error) {
	f, ok := profiles.Find(e.kind)
	if !ok {
		return nil, usage("no format "+printable(e.kind), strings.Join(profiles.Names(), ", "))
	}
	tcp, _ := profiles.Find("ovpn-tcp")
	switch {
	case e.transport != "udp" && e.transport != "tcp" && e.transport != "auto":
		return nil, usage("no transport "+printable(e.transport), "auto, udp or tcp")
	case e.kind == "ovpn" && e.transport == "tcp":
		return []profiles.Format{tcp}, nil
	case e.kind == "ovpn" && e.transport == "auto":
		return []profiles.Format{f, tcp}, nil
	}
	return []profiles.Format{f}, nil
}

// place returns the location that a person means, its servers that take customers, and the credential if
// it is wanted. What the service does not say now is taken from the copies on this machine.
func (e *export) place(ctx context.Context, args []string, named bool) (l location.Location, all []location.Server, r rights, err error) {
	offline := e.a.isCutOff(ctx)
	asking, cancel := context.WithTimeout(ctx, freshness)
	defer cancel()
	d, stale, err := e.a.directory(asking, offline)
	var k keep
	if err == nil {
		k, err = e.a.keep()
	}
	var last storedLast
	if err == nil {
		_, err = k.read(lastFile, &last)
	}
	if err != nil {
		return l, nil, r, err
	}
	if stale && !offline {
		e.a.noteLine("the service cannot be reached; going on with the last copy of locations and credential")
	}
	l, err = choose(d, strings.Join(args, " "), last.Location)
	if err == nil && named {
		r, err = e.a.rights(asking, offline || stale)
	}
	return l, servers(d, l), r, err
}

// firstFit returns the first server, and the first of formats that it fits.
func firstFit(formats []profiles.Format, servers []location.Server, l location.Location) (profiles.Format, location.Server, error) {
	for _, f := range formats {
		for _, s := range servers {
			if f.Fits(s) {
				return f, s, nil
			}
		}
	}
	return profiles.Format{}, location.Server{}, fault.New(fault.NotFound, "no server of "+l.Code+" can be used by a profile of the format "+formats[0].Name).
		WithHint("there: " + strings.Join(profiles.Fitting(servers), ", "))
}

// draw returns a profile as a QR code, for the terminal or as an image.
func (e *export) draw(text []byte, s location.Server) ([]byte, error) {
	if len(text) > maxQR {
		var small []string
		for _, f := range profiles.Formats() {
			if p, err := f.Render(profiles.Request{Server: s}); err == nil && len(p.Text) <= maxQR && f.Fits(s) {
				small = append(small, f.Name)
			}
		}
		return nil, usage(fmt.Sprintf("the profile has %d bytes, and a QR code holds %d", len(text), maxQR),
			"without --qr it is a file; formats that fit: "+strings.Join(small, ", "))
	}
	code, err := newQR(text)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, "the QR code cannot be made", err)
	}
	if e.file != "" {
		return code.png()
	}
	if f, ok := e.a.out.(*os.File); ok {
		if columns, _, err := term.GetSize(int(f.Fd())); err == nil && columns < code.columns() {
			return nil, usage(fmt.Sprintf("the terminal has %d columns, and the QR code needs %d", columns, code.columns()),
				"make it wider or its letters smaller, or write an image: -o FILE")
		}
	}
	return code.terminal(), nil
}

// hand writes the profile where it is wanted, and the CA beside it.
func (e *export) hand(f profiles.Format, l location.Location, r profiles.Request, p profiles.File) error {
	out := struct {
		Location  string `json:"location"`
		Server    string `json:"server"`
		Format    string `json:"format"`
		Transport string `json:"transport"`
		File      string `json:"file,omitempty"`
		CA        string `json:"ca,omitempty"`
		Profile   string `json:"profile,omitempty"`
	}{l.Code, r.Server.ID, f.Name, "udp", e.file, r.CA, ""}
	if f.Protocol == protocol.OpenVPNTCP {
		out.Transport = "tcp"
	}
	if e.file == "" {
		out.Profile = string(p.Text)
	} else {
		err := replaceFile(e.file, p.Text, 0o600)
		if err == nil && r.CA != "" {
			err = replaceFile(r.CA, p.CA, 0o600)
		}
		if err != nil {
			return fault.Wrap(fault.Full, "the file cannot be written", err).WithHint("does its directory exist and have room?")
		}
	}
	if f.Named {
		e.a.noteLine("the client needs the password that `lethe credentials show` prints")
	} else {
		e.a.noteLine("the client will ask for the user name and password that `lethe credentials show` prints")
	}
	shown := out.Profile
	if shown != "" && !strings.HasSuffix(shown, "\n") {
		shown += "\n"
	}
	return e.a.show("config", out, shown)
}
