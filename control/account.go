package control

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"lethe/account"
	"lethe/fault"
	"lethe/internal/command"
)

// accountView is the JSON of an account. Passwords and the VPN credential are
// not in it.
type accountView struct {
	ID       account.ID      `json:"id"`
	Email    string          `json:"email"`
	Disabled bool            `json:"disabled"`
	Licence  account.Licence `json:"licence"`
	App      *account.App    `json:"app"` // null before the first login
}

func viewOf(r account.Record) accountView {
	v := accountView{ID: r.ID, Email: r.Email.Reveal(), Disabled: r.Disabled, Licence: r.Licence}
	if r.App != (account.App{}) {
		v.App = &r.App
	}
	return v
}

func (v accountView) write(w io.Writer) {
	fmt.Fprintf(w, "e-mail\t%s\nid\t%s\ndisabled\t%s\n", v.Email, v.ID, yes(v.Disabled))
	fmt.Fprintf(w, "plan\t%s\ndevices\t%d\npaid until\t%s\nlicence disabled\t%s\n",
		or(v.Licence.Plan, "none"), v.Licence.Devices, v.until(), yes(v.Licence.Disabled))
	if v.App != nil {
		fmt.Fprintf(w, "app\t%s %s\n", v.App.OS, v.App.Version)
	}
}

func (v accountView) until() string {
	if v.Licence.PaidUntil == 0 {
		return "never"
	}
	return v.Licence.PaidUntil.String()
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// find returns the account whose e-mail address is arg.
func (p *program) find(ctx context.Context, c *Control, arg string) (account.Record, error) {
	email, err := p.email(arg)
	if err != nil {
		return account.Record{}, err
	}
	r, err := c.Accounts.Find(ctx, email)
	return r, hinted(err, fault.NotFound, "`lethe-control account list` shows them")
}

// onAccount returns a command that does something to one account and then
// shows it.
func (p *program) onAccount(use, short string, do func(ctx context.Context, c *Control, id account.ID) error) *cobra.Command {
	return p.action(use, short, 1, func(ctx context.Context, c *Control, args []string) error {
		r, err := p.find(ctx, c, args[0])
		if err != nil {
			return err
		}
		if err := do(ctx, c, r.ID); err != nil {
			return err
		}
		if r, err = c.Store.Account(ctx, r.ID); err != nil {
			return err
		}
		v := viewOf(r)
		return p.print(v, v.write)
	})
}

func (p *program) accountCommand() *cobra.Command {
	create := p.action("create EMAIL", "Make an account; the password comes from the terminal or standard input", 1,
		func(ctx context.Context, c *Control, args []string) error {
			email, err := p.email(args[0])
			if err != nil {
				return err
			}
			password, err := p.password(ctx)
			if err != nil {
				return err
			}
			id, err := c.Accounts.Create(ctx, email, password)
			if err != nil {
				return err
			}
			r, err := c.Store.Account(ctx, id)
			if err != nil {
				return err
			}
			v := viewOf(r)
			return p.print(v, v.write)
		})
	list := p.action("list", "List accounts in the order of e-mail addresses", 0,
		func(ctx context.Context, c *Control, _ []string) error {
			views := []accountView{}
			err := c.Accounts.Each(ctx, func(r account.Record) error { views = append(views, viewOf(r)); return nil })
			if err != nil {
				return err
			}
			return p.print(map[string]any{"accounts": views}, func(w io.Writer) {
				fmt.Fprintln(w, "E-MAIL\tPLAN\tDEVICES\tPAID UNTIL\tDISABLED")
				for _, v := range views {
					fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\n", v.Email, or(v.Licence.Plan, "none"), v.Licence.Devices, v.until(),
						yes(v.Disabled || v.Licence.Disabled))
				}
			})
		})
	remove := p.action("delete EMAIL", "Remove an account and all that is known of it", 1,
		func(ctx context.Context, c *Control, args []string) error {
			r, err := p.find(ctx, c, args[0])
			if err != nil {
				return err
			}
			if err := c.Accounts.Delete(ctx, r.ID); err != nil {
				return err
			}
			return p.removed(string(r.ID))
		})
	nothing := func(context.Context, *Control, account.ID) error { return nil }
	setDisabled := func(disabled bool) func(context.Context, *Control, account.ID) error {
		return func(ctx context.Context, c *Control, id account.ID) error {
			return c.Accounts.SetDisabled(ctx, id, disabled)
		}
	}
	return command.Group("account", "Make, show, disable and remove accounts", create, list,
		p.onAccount("show EMAIL", "Show an account", nothing),
		p.onAccount("disable EMAIL", "End all logins of an account, to the app and to servers", setDisabled(true)),
		p.onAccount("enable EMAIL", "Allow a disabled account again", setDisabled(false)),
		p.onAccount("password EMAIL", "Set a new password, from the terminal or standard input",
			func(ctx context.Context, c *Control, id account.ID) error {
				password, err := p.password(ctx)
				if err != nil {
					return err
				}
				return c.Accounts.SetPassword(ctx, id, password)
			}),
		remove)
}

// licenceFlags are the flags of licence create and licence extend.
type licenceFlags struct {
	plan    string
	devices int
	until   date
}

func (f *licenceFlags) on(c *cobra.Command, plan string, devices int) *cobra.Command {
	c.Flags().StringVar(&f.plan, "plan", plan, "name of the plan: small letters, digits, hyphens")
	c.Flags().IntVar(&f.devices, "devices", devices, "devices connected at once, 1 to 255")
	c.Flags().Var(&f.until, "until", "last day, for instance 2027-01-31 (required)")
	_ = c.MarkFlagRequired("until") // fails only for a flag that is not there
	return c
}

func (p *program) licenceCommand() *cobra.Command {
	var made, longer licenceFlags
	create := p.onAccount("create EMAIL", "Give an account a licence", func(ctx context.Context, c *Control, id account.ID) error {
		return c.Accounts.CreateLicence(ctx, id, made.plan, made.devices, made.until.Day)
	})
	extend := p.onAccount("extend EMAIL", "Move the last day of a licence, and change plan or devices if given",
		func(ctx context.Context, c *Control, id account.ID) error {
			_, err := c.Accounts.Extend(ctx, id, longer.plan, longer.devices, longer.until.Day)
			return err
		})
	disable := p.onAccount("disable EMAIL", "End a licence now", func(ctx context.Context, c *Control, id account.ID) error {
		return c.Accounts.DisableLicence(ctx, id)
	})
	return command.Group("licence", "Make, extend and end licences", made.on(create, "standard", 5), longer.on(extend, "", 0), disable)
}

// removed says what is gone.
func (p *program) removed(what string) error {
	return p.print(map[string]string{"removed": what}, func(w io.Writer) { fmt.Fprintln(w, "removed", what) })
}
