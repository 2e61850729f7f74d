package activator

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"lethe/attest"
	"lethe/attest/eventlog"
	"lethe/event"
	"lethe/fault"
	"lethe/image/layout"
	"lethe/internal/command"
	"lethe/private"
)

func (p *program) initCommand() *cobra.Command {
	var operators, addresses []string
	var trust, controlURL, controlCA, node string
	c := p.plain("init", "Make a data directory with keys and an empty record", 0, func(_ context.Context, _ []string) error {
		s := Setup{ControlURL: controlURL}
		for _, path := range operators {
			b, err := p.read(path)
			if err != nil {
				return err
			}
			s.Operators = append(s.Operators, string(b))
		}
		for _, text := range addresses {
			ip, err := netip.ParseAddr(text)
			if err != nil {
				return fault.New(fault.Invalid, "--control-address wants addresses, without port")
			}
			s.Control = append(s.Control, ip)
		}
		var err error
		if s.Trust, err = p.read(trust); err != nil {
			return err
		}
		if s.ControlCA, err = p.read(controlCA); err != nil {
			return err
		}
		b, err := p.read(node)
		if err != nil {
			return err
		}
		s.Node = private.Of(b)
		if err := Init(p.dir, s, time.Now()); err != nil {
			return err
		}
		return p.print(map[string]string{"dir": p.dir}, func(w io.Writer) {
			fmt.Fprintf(w, "made %s\nback up its keys directory now, and record.jsonl after every decision\n", p.dir)
		})
	})
	c.Long = "init makes a data directory with keys and an empty record. It never overwrites.\n\n" +
		"Operators are the people two of whom must sign to admit a release or to raise the floor; each has a key of\n" +
		"their own and gives its public half (PEM). The servers' keys are what `lethe-control keys node` prints."
	c.Flags().StringArrayVar(&operators, "operator", nil, "file with an operator's public key (repeat)")
	c.Flags().StringVar(&trust, "trust", "", "file with the keys and thresholds of releases, as for `lethe-image verify`")
	c.Flags().StringVar(&controlURL, "control-url", "", "where servers call the node API: https://name:port")
	c.Flags().StringArrayVar(&addresses, "control-address", nil, "address that servers dial for it (repeat)")
	c.Flags().StringVar(&controlCA, "control-ca", "", "file with the certificates that sign the node API's certificate")
	c.Flags().StringVar(&node, "node-keys", "-", "file with the servers' keys, - for standard input")
	return require(c, "operator", "trust", "control-url", "control-address", "control-ca")
}

func (p *program) enrolCommand() *cobra.Command {
	var address, log string
	var e Enrolment
	var public []string
	c := p.action("enrol SERVER", "See a new server's TPM, and keep it for an operator's confirmation", 1, func(ctx context.Context, a *Activator, args []string) error {
		var err error
		if e.Address, err = netip.ParseAddrPort(address); err != nil {
			ip, err := netip.ParseAddr(address)
			if err != nil {
				return fault.New(fault.Invalid, "--address wants an address, or address:port").WithHint(fmt.Sprintf("servers wait on port %d", layout.ActivationPort))
			}
			e.Address = netip.AddrPortFrom(ip, layout.ActivationPort)
		}
		for _, text := range public {
			ip, err := netip.ParseAddr(text)
			if err != nil {
				return fault.New(fault.Invalid, "--public wants addresses, without port")
			}
			e.Public = append(e.Public, ip)
		}
		if e.Profile == "" && log == "" {
			return fault.New(fault.Invalid, "--profile or --log is needed").WithHint("without a profile the server's event log is written, to make one from")
		}
		server, raw, err := a.Enrol(ctx, args[0], e, time.Now())
		if err != nil {
			return err
		}
		if log != "" {
			if err := p.write(log, raw, 0o600); err != nil {
				return err
			}
		}
		return p.print(server, func(w io.Writer) {
			fmt.Fprintf(w, "server:\t%s at %s\nEK:\t%s\nmaker's certificate:\t%s\n", server.ID, server.Address, server.EK, yes(len(server.EKCertificate) > 0))
			if e.Profile == "" {
				fmt.Fprintf(w, "not enrolled: without a profile. `lethe-activator profile draft %s` begins one\n", log)
				return
			}
			fmt.Fprintf(w, "It is the first machine that answered there. Compare the EK with what stands on its delivery note or\n"+
				"what it shows at its console, then: lethe-activator confirm %s --ek %s\n", server.ID, server.EK)
		})
	})
	c.Flags().StringVar(&address, "address", "", "where it waits: address or address:port")
	c.Flags().StringVar(&e.Flavour, "flavour", "", "of the image that it must run: vm, hardware")
	c.Flags().StringVar(&e.Profile, "profile", "", "rules for its firmware, see `lethe-activator profile`")
	c.Flags().StringArrayVar(&public, "public", nil, "address that customers dial (repeat)")
	c.Flags().StringVar(&log, "log", "", "write its event log to this file")
	return require(c, "address", "flavour")
}

// decide appends a decision about a server or release.
func (p *program) decide(a *Activator, r *Record, done string) error {
	if err := a.Store.Append(time.Now(), func(*State) (*Record, error) { return r, nil }); err != nil {
		return err
	}
	return p.print(r, func(w io.Writer) { fmt.Fprintln(w, done) })
}

func (p *program) confirmCommand() *cobra.Command {
	var ek string
	c := p.action("confirm SERVER", "Say that an enrolled machine is the one at that place", 1, func(_ context.Context, a *Activator, args []string) error {
		err := a.Store.View(func(s *State) error {
			if server := s.servers[args[0]]; server != nil && server.EK.String() != ek {
				return fault.New(fault.Conflict, "the server was enrolled with another EK: "+server.EK.String()).WithHint("another machine answered; revoke it and find out why")
			}
			return nil
		})
		if err != nil {
			return err
		}
		return p.decide(a, &Record{Kind: Confirmed, Server: args[0]}, args[0]+" is confirmed")
	})
	c.Flags().StringVar(&ek, "ek", "", "digest of the EK that the machine must have")
	return require(c, "ek")
}

func (p *program) revokeCommand() *cobra.Command {
	c := p.action("revoke SERVER", "Never activate a server again", 1, func(_ context.Context, a *Activator, args []string) error {
		return p.decide(a, &Record{Kind: ServerRevoked, Server: args[0]}, args[0]+" is revoked; what it has ends with its certificates")
	})
	c.Long = "revoke takes a server out of the inventory. It is activated no more; secrets that it has been given end with\n" +
		"its certificates, and with its power. The name can be enrolled anew."
	return c
}

func (p *program) activateCommand() *cobra.Command {
	return p.action("activate SERVER", "Attest a server now, and give it secrets", 1, func(ctx context.Context, a *Activator, args []string) error {
		o, err := a.Activate(ctx, args[0], time.Now)
		if err != nil {
			return err
		}
		return p.print(o, func(w io.Writer) {
			fmt.Fprintf(w, "%s runs release %d and has secrets until %s\n", o.Server, o.Version, moment(o.Until))
		})
	})
}

// listed is what list prints.
type listed struct {
	Activator string    `json:"activator"`
	Records   uint64    `json:"records"`
	Head      string    `json:"head"`
	Floor     uint64    `json:"floor"`
	Servers   []*Server `json:"servers"`
}

func (s *Server) status() string {
	switch {
	case s.Revoked:
		return "revoked"
	case !s.Confirmed:
		return "to be confirmed"
	case s.Last != nil:
		return "refused: " + s.Last.Code
	case s.Accepted == nil:
		return "not seen yet"
	}
	return "activated"
}

func (p *program) listCommand() *cobra.Command {
	return p.action("list", "List servers and how they are", 0, func(_ context.Context, a *Activator, _ []string) error {
		l := listed{Servers: []*Server{}}
		err := a.Store.View(func(s *State) error {
			l.Activator, l.Records, l.Head, l.Floor = s.id.String(), s.number, s.hash.String(), s.floor
			for _, id := range slices.Sorted(maps.Keys(s.servers)) {
				kept := *s.servers[id]
				l.Servers = append(l.Servers, &kept)
			}
			return nil
		})
		if err != nil {
			return err
		}
		return p.print(l, func(w io.Writer) {
			fmt.Fprintln(w, "SERVER\tADDRESS\tFLAVOUR\tPROFILE\tSTATE\tRELEASE\tUNTIL\tEK")
			for _, s := range l.Servers {
				var until time.Time
				if s.Accepted != nil {
					until = s.Accepted.Until
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\n", s.ID, s.Address, s.Flavour, s.Profile, s.status(), s.Version, moment(until), s.EK)
			}
			fmt.Fprintf(w, "\nfloor: %d, records: %d\n", l.Floor, l.Records)
		})
	})
}

// maxWhy is how many decisions why shows.
const maxWhy = 20

func (p *program) whyCommand() *cobra.Command {
	return p.action("why SERVER", "Show the last decisions about a server, and what they mean", 1, func(_ context.Context, a *Activator, args []string) error {
		all := []*Record{}
		err := a.Store.Each(func(r *Record) {
			if r.Server == args[0] {
				all = append(all, r)
			}
		})
		if err != nil {
			return err
		}
		if len(all) == 0 {
			return fault.New(fault.NotFound, "nothing was ever decided about this server").WithHint("`lethe-activator list` shows all servers")
		}
		all = all[max(0, len(all)-maxWhy):]
		return p.print(all, func(w io.Writer) {
			for _, r := range all {
				what := string(r.Kind)
				switch {
				case r.Refuse != nil:
					what = "refused: " + meaning(r.Refuse)
				case r.Accept != nil:
					what = fmt.Sprintf("accepted with release %d, start %d of the TPM, until %s", r.Version, r.Accept.Memory.Resets, moment(r.Accept.Until))
				}
				fmt.Fprintf(w, "%d\t%s\t%s\n", r.Number, moment(r.Time), what)
			}
		})
	})
}

// meaning returns a refusal in words.
func meaning(r *RefusalRecorded) string {
	for _, reason := range attest.Reasons() {
		if reason.Code() == r.Code {
			return (&attest.Refusal{Reason: reason, Detail: r.Detail}).Error()[len("server refused: "):]
		}
	}
	return r.Code
}

func (p *program) profileCommand() *cobra.Command {
	set := p.action("set FILE", "Set the rules for a kind of machine", 1, func(_ context.Context, a *Activator, args []string) error {
		b, err := p.read(args[0])
		if err != nil {
			return err
		}
		profile, err := attest.ParseProfile(b)
		if err != nil {
			return err
		}
		return p.decide(a, &Record{Kind: ProfileSet, Profile: profile}, fmt.Sprintf("profile %s has %d rules", profile.Name, len(profile.Rules)))
	})
	list := p.action("list", "List profiles", 0, func(_ context.Context, a *Activator, _ []string) error {
		all := []*attest.Profile{}
		err := a.Store.View(func(s *State) error {
			for _, name := range slices.Sorted(maps.Keys(s.profiles)) {
				all = append(all, s.profiles[name])
			}
			return nil
		})
		if err != nil {
			return err
		}
		return p.print(all, func(w io.Writer) {
			fmt.Fprintln(w, "PROFILE\tRULES")
			for _, x := range all {
				fmt.Fprintf(w, "%s\t%d\n", x.Name, len(x.Rules))
			}
		})
	})
	var name string
	draft := p.plain("draft LOG", "Make rules from an event log, for a person to look through", 1, func(_ context.Context, args []string) error {
		b, err := p.read(args[0])
		if err != nil {
			return err
		}
		l, err := eventlog.Parse(b)
		if err != nil {
			return fault.Wrap(fault.Invalid, err.Error(), err)
		}
		p.json = true
		return p.print(attest.Draft(name, l), nil)
	})
	draft.Flags().StringVar(&name, "name", "draft", "of the profile")
	return command.Group("profile", "Rules for machines' firmware", set, list, draft)
}

func (p *program) authoritiesCommand() *cobra.Command {
	return p.action("authorities DIR", "Write what customers and the control plane verify servers with into a directory", 1, func(_ context.Context, a *Activator, args []string) error {
		vpn, api, tlsCrypt := a.Authorities()
		files := map[string]string{"vpn-ca.pem": vpn, "api-ca.pem": api, "tls-crypt.key": tlsCrypt.Reveal()}
		for _, name := range slices.Sorted(maps.Keys(files)) {
			if err := p.write(args[0]+"/"+name, []byte(files[name]), 0o600); err != nil {
				return err
			}
		}
		return p.print(slices.Sorted(maps.Keys(files)), func(w io.Writer) {
			fmt.Fprintln(w, "vpn-ca.pem and tls-crypt.key are for `lethe-control server add`, api-ca.pem is its client_ca")
		})
	})
}

func (p *program) runCommand() *cobra.Command {
	c := p.action("run", "Visit servers until told to stop: activate those that wait, renew the others", 0, func(ctx context.Context, a *Activator, _ []string) error {
		return a.Run(ctx, event.New(p.stderr))
	})
	c.Long = "run visits all confirmed servers until told to stop. Servers without secrets are attested and activated; the\n" +
		"others are attested again when half of their certificates' life is over. Other commands work meanwhile."
	return c
}
