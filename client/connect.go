package client

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lethe/account"
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

// target makes the target of a connect from the command line, the list of locations and, if it is
// wanted, the credential. The service is asked for the present ones unless the lock stands in the
// way; when it does not answer, the copies on this machine do.
func (a *app) target(ctx context.Context, args []string, transport string, withCredential bool) (*Target, error) {
	offline := a.isCutOff(ctx)
	asking, cancel := context.WithTimeout(ctx, freshness)
	defer cancel()
	d, stale, err := a.directory(asking, offline)
	if err != nil {
		return nil, err
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
		return nil, err
	}
	l, err := choose(d, strings.Join(args, ""), last.Location)
	if err != nil {
		return nil, err
	}
	var credential account.Credential
	if withCredential {
		if credential, err = a.fetchCredential(asking, offline || stale); err != nil {
			return nil, err
		}
	}
	t := Transport(transport)
	if t != Auto && t != UDP && t != TCP {
		return nil, usage("no transport "+printable(transport), "auto, udp or tcp")
	}
	target := &Target{Location: l, Servers: servers(d, l), Transport: t, Credential: credential}
	return target, target.usable()
}

// usable checks and cleans what the service sent, with the rules of the helper.
func (t *Target) usable() error {
	w := wireTarget{t.Location, t.Servers, t.Transport, "-", "-"}
	clean, err := w.check()
	if err != nil {
		return fault.Wrap(fault.Unavailable, "no server of "+t.Location.Code+" can be used in this way", err).
			WithHint("try --transport auto, or another location")
	}
	t.Servers = clean.Servers
	return nil
}

func (a *app) connect() *cobra.Command {
	var (
		transport    string
		wait, noWait bool
		timeout      time.Duration
	)
	c := &cobra.Command{
		Use: "connect [LOCATION]", Short: "Connect", Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeLocation,
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
			ctx, cancel := context.WithTimeout(c.Context(), timeout)
			defer cancel()
			// The helper first: without it nothing else is worth while.
			if _, err := Call(ctx, s.Socket, Request{Op: OpStatus}); err != nil {
				return helperErr(err)
			}
			defer a.progress("connecting")()
			target, err := a.target(ctx, args, transport, true)
			if err != nil {
				return err
			}
			status, err := Call(ctx, s.Socket, Request{Op: OpConnect, Target: target})
			if err != nil {
				return helperErr(err)
			}
			if k, err := a.keep(); err == nil {
				if err := k.write(lastFile, storedLast{target.Location.Code}); err != nil {
					a.noteLine(ProblemOf(err).Text)
				}
			}
			if wait && !noWait {
				status, err = a.await(ctx, s.Socket, target.Location, timeout)
			}
			if err != nil {
				return err
			}
			return a.show("status", status, statusText(status))
		},
	}
	f := c.Flags()
	f.StringVar(&transport, "transport", string(Auto), "auto, udp or tcp")
	f.BoolVar(&wait, "wait", true, "wait until the tunnel is up")
	f.BoolVar(&noWait, "no-wait", false, "return as soon as the helper has begun")
	f.DurationVar(&timeout, "timeout", 30*time.Second, "how long to wait; the helper goes on trying")
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

// statusText is a status for people.
func statusText(s Status) string {
	var b strings.Builder
	b.WriteString(s.State.String())
	if s.Location != "" {
		b.WriteString(" " + printable(s.Location))
	}
	if s.State == Connected {
		fmt.Fprintf(&b, " by %s over %s", printable(s.Server), printable(s.Transport))
		if !s.IPv6 {
			b.WriteString(" (IPv6 is blocked: the server has none)")
		}
	}
	b.WriteString("\n")
	if s.State == Connected {
		fmt.Fprintf(&b, "received %s, sent %s\n", megabytes(s.Received), megabytes(s.Sent))
	}
	if s.Lock {
		b.WriteString("network lock: on\n")
	} else {
		b.WriteString("network lock: off\n")
	}
	if s.Problem != nil {
		b.WriteString("problem: " + printableLine(s.Problem.Text) + "\n")
		if s.Problem.Hint != "" {
			b.WriteString("hint: " + printableLine(s.Problem.Hint) + "\n")
		}
	}
	return b.String()
}

func megabytes(n uint64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }

func (a *app) status() *cobra.Command {
	var watch bool
	c := &cobra.Command{
		Use: "status", Short: "Show whether the tunnel and the network lock are up", Args: cobra.NoArgs,
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
			err = Watch(c.Context(), s.Socket, Request{Op: op}, func(now Status) bool {
				failed = a.show("status", now, statusText(now))
				return watch && failed == nil
			})
			if watch && errors.Is(err, context.Canceled) {
				return nil // the person has seen enough
			}
			return errors.Join(failed, helperErr(err))
		},
	}
	c.Flags().BoolVar(&watch, "watch", false, "go on and show every change, until interrupted")
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
			return a.show("status", status, statusText(status))
		},
	}
}
