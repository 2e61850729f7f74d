package client

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lethe/fault"
	"lethe/location"
)

// isCutOff reports whether the lock is up without a tunnel, so that asking the service is in vain.
// When the helper does not run there is no telling, and the service is asked.
func (a *app) isCutOff(ctx context.Context) bool {
	s, err := a.settings()
	if err != nil {
		return false
	}
	now, err := Call(ctx, s.Socket, Request{Op: OpStatus})
	return err == nil && now.Lock && now.State != Connected
}

// freshness is how long connect waits for the service before it uses its copies.
const freshness = 4 * time.Second

// target makes the target of a connect from the command line, the list of locations and, if they are
// wanted, the rights. The service is asked for the present ones unless the lock stands in the
// way; when it does not answer, the copies on this machine do. What the service says is not
// paid for is not tried.
func (a *app) target(ctx context.Context, args []string, protocol, transport string, withRights bool) (*Target, rights, error) {
	offline := a.isCutOff(ctx)
	asking, cancel := context.WithTimeout(ctx, freshness)
	defer cancel()
	d, stale, err := a.directory(asking, offline)
	if err != nil {
		return nil, rights{}, err
	}
	if stale && !offline {
		a.noteLine("the service cannot be reached; going on with the last copy of locations and credential")
	}
	k, err := a.keep()
	var last storedLast
	if err == nil {
		_, err = k.read(lastFile, &last)
	}
	if err != nil {
		return nil, rights{}, err
	}
	p, t := Protocol(protocol), Transport(transport)
	switch {
	case !p.known():
		return nil, rights{}, usage("no protocol "+printable(protocol), "auto, openvpn or ikev2")
	case !t.known():
		return nil, rights{}, usage("no transport "+printable(transport), "auto, udp or tcp")
	case p == IKEv2 && t == TCP:
		return nil, rights{}, usage("IKEv2 goes over UDP only", "--protocol openvpn --transport tcp")
	}
	l, err := choose(d, strings.Join(args, " "), last.Location)
	if err != nil {
		return nil, rights{}, err
	}
	var r rights
	if withRights {
		if r, err = a.rights(asking, offline || stale); err == nil && r.fresh {
			err = unlicensed(r.licence)
		}
		if err != nil {
			return nil, rights{}, err
		}
	}
	target := &Target{Location: l, Servers: servers(d, l), Protocol: p, Transport: t, Credential: r.credential}
	return target, r, target.usable()
}

// usable checks and cleans what the service sent, with the rules of the helper.
func (t *Target) usable() error {
	w := wireTarget{t.Location, t.Servers, t.Protocol, t.Transport, "-", "-", nil}
	clean, err := w.check()
	if err != nil {
		return fault.Wrap(fault.Unavailable, "no server of "+t.Location.Code+" can be used in this way", err).
			WithHint("try --protocol auto --transport auto, or another location")
	}
	t.Servers = clean.Servers
	return nil
}

func (a *app) connect() *cobra.Command {
	var (
		protocol, transport string
		wait, noWait        bool
		timeout             time.Duration
	)
	c := &cobra.Command{
		Use: "connect [LOCATION]", Short: "Connect to a location", Args: cobra.ArbitraryArgs, ValidArgsFunction: a.completeLocation,
		Long: `Connect to a location: a code of ` + "`lethe locations`" + `, a country's code or a city; without one
to the last used or else the first. From now on until ` + "`lethe disconnect`" + ` nothing leaves this machine
beside the tunnel, whatever happens to the app, the helper or the tunnel.`,
		RunE: func(c *cobra.Command, args []string) error {
			if timeout <= 0 {
				return usage("--timeout must be more than nothing", "for instance --timeout 30s")
			}
			s, err := a.settings()
			if err != nil {
				return err
			}
			began := time.Now()
			asking, cancel := context.WithTimeout(c.Context(), timeout)
			defer cancel()
			// The helper first: without it nothing else is worth while.
			if _, err := Call(asking, s.Socket, Request{Op: OpStatus}); err != nil {
				return helperErr(err)
			}
			done := a.progress("connecting")
			defer done()
			target, r, err := a.target(asking, args, protocol, transport, true)
			if err != nil {
				return err
			}
			if target.Slot, err = a.slot(asking, r.fresh); err != nil {
				return err
			}
			if !c.Flags().Changed("timeout") && r.unheard() > 0 {
				timeout += r.unheard()
			}
			ctx, cancel := context.WithDeadline(c.Context(), began.Add(timeout))
			defer cancel()
			status, err := Call(ctx, s.Socket, Request{Op: OpConnect, Target: target})
			if err != nil {
				target.Slot.giveBack(c.Context())
				return helperErr(err)
			}
			if k, err := a.keep(); err == nil {
				if err := k.write(lastFile, storedLast{target.Location.Code}); err != nil {
					a.noteLine(ProblemOf(err).Text)
				}
			}
			done()
			switch {
			case wait && !noWait:
				status, err = a.insist(ctx, s.Socket, target, r, timeout)
			case r.unheard() > 0:
				a.noteLine("servers learn of new accounts, licences and credentials within a minute and refuse them until then")
			}
			if err != nil {
				return err
			}
			return a.show("status", status, statusText(status, false))
		},
	}
	f := c.Flags()
	f.StringVar(&protocol, "protocol", Auto, "auto (the first that comes up), openvpn or ikev2")
	f.StringVar(&transport, "transport", Auto, "auto, udp or tcp")
	f.BoolVar(&wait, "wait", true, "wait until the tunnel is up")
	f.BoolVar(&noWait, "no-wait", false, "return as soon as the helper has begun")
	f.DurationVar(&timeout, "timeout", 30*time.Second, "how long to wait; a new account, licence or credential adds up to a minute to the default")
	_ = c.RegisterFlagCompletionFunc("protocol", cobra.FixedCompletions([]string{"auto", "openvpn", "ikev2"}, cobra.ShellCompDirectiveNoFileComp))
	_ = c.RegisterFlagCompletionFunc("transport", cobra.FixedCompletions([]string{"auto", "udp", "tcp"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

// await waits until the tunnel is up or there is no hope.
func (a *app) await(ctx context.Context, socket string, l location.Location, timeout time.Duration) (last Status, err error) {
	err = Watch(ctx, socket, Request{Op: OpWatch}, func(s Status) bool {
		last = s
		return s.State == Connecting || s.State == Reconnecting
	})
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		text := fmt.Sprintf("not connected to %s after %s", l.Code, timeout)
		if last.Problem != nil {
			text += ": " + last.Problem.Text
		}
		return last, &coded{fault.Wrap(fault.Unavailable, text, err).
			WithHint("the helper goes on trying behind the network lock; `lethe status --watch` shows it, `lethe disconnect` ends it"), ExitTimeout}
	case err != nil:
		return last, helperErr(err)
	case last.State == Connected:
		return last, nil
	case last.Problem != nil:
		return last, last.Problem.Err()
	}
	return last, fault.New(fault.Conflict, "somebody else has disconnected meanwhile").WithHint("see `lethe status`")
}

// helperErr gives the errors of the helper's socket their exit codes.
func helperErr(err error) error {
	var e *fault.Error
	if errors.As(err, &e) && e.Kind == fault.NotFound {
		return &coded{e, ExitNoHelper}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return &coded{fault.Wrap(fault.Unavailable, "the helper did not answer in time", err).WithHint("see `lethe status`"), ExitTimeout}
	}
	return err
}

func (a *app) status() *cobra.Command {
	var watch bool
	c := &cobra.Command{
		Use: "status", Short: "Show whether the tunnel and the network lock are up", Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := a.settings()
			if err != nil {
				return err
			}
			op := OpStatus
			if watch {
				op = OpWatch
			}
			var failed error
			var last string
			err = Watch(c.Context(), s.Socket, Request{Op: op}, func(now Status) bool {
				text := statusText(now, true)
				if watch {
					text = statusLine(now)
				}
				if text != last || a.json {
					failed = a.show("status", now, text)
				}
				last = text
				return watch && failed == nil
			})
			if watch && errors.Is(err, context.Canceled) {
				return nil // the person has seen enough
			}
			return errors.Join(failed, helperErr(err))
		},
	}
	c.Flags().BoolVar(&watch, "watch", false, "go on and show every change as a line, until interrupted")
	return c
}

func (a *app) disconnect() *cobra.Command {
	return &cobra.Command{
		Use: "disconnect", Short: "Take the tunnel and the network lock down", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := a.settings()
			if err != nil {
				return err
			}
			defer a.progress("disconnecting")()
			status, err := Call(c.Context(), s.Socket, Request{Op: OpDisconnect})
			if err != nil {
				return helperErr(err)
			}
			return a.show("status", status, statusText(status, false))
		},
	}
}
