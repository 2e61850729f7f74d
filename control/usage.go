package control

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"lethe/day"
	"lethe/fault"
	"lethe/internal/command"
	"lethe/location"
	"lethe/protocol"
	"lethe/usage"
)

// usageRow is the JSON of one row of usage: all that is known of a customer's
// day at a location.
type usageRow struct {
	Date     day.Day     `json:"date"`
	Location string      `json:"location"` // code, or location-N for one that was removed
	Country  string      `json:"country"`
	ISP      string      `json:"isp"`
	Protocol protocol.ID `json:"protocol"`
	In       uint64      `json:"mb_in"`
	Out      uint64      `json:"mb_out"`
}

// usageView is the JSON of usage show.
type usageView struct {
	Email string     `json:"email"`
	Rows  []usageRow `json:"rows"`
	In    uint64     `json:"mb_in"`
	Out   uint64     `json:"mb_out"`
}

func (v usageView) write(w io.Writer) {
	if len(v.Rows) == 0 {
		fmt.Fprintln(w, "no usage is known")
		return
	}
	fmt.Fprintln(w, "DATE\tLOCATION\tCOUNTRY\tISP\tPROTOCOL\tMB IN\tMB OUT")
	for _, r := range v.Rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%d\n", r.Date, r.Location, r.Country, or(r.ISP, "-"), r.Protocol, r.In, r.Out)
	}
	fmt.Fprintf(w, "total\t\t\t\t\t%d\t%d\n", v.In, v.Out)
}

// Usage returns the usage rows of an account from one day through another. It
// goes from the account to its present VPN user name to the user hash; there is
// no way back, and none to rows of a credential that was replaced.
func (c *Control) Usage(ctx context.Context, email string, from, through day.Day) ([]usage.Record, error) {
	r, err := c.Accounts.Find(ctx, email)
	if err != nil {
		return nil, hinted(err, fault.NotFound, "`lethe-control account list` shows them")
	}
	hash := usage.Hash(c.Salt, []byte(r.Credential.Username.Reveal()))
	return c.Store.UsageOf(ctx, hash, from, through)
}

func (p *program) usageCommand() *cobra.Command {
	var on date
	show := p.action("show EMAIL", "Show what is known of a customer's usage: days, locations, megabytes", 1,
		func(ctx context.Context, c *Control, args []string) error {
			from, through := day.Day(0), day.Day(0xffff)
			if on.set {
				from, through = on.Day, on.Day
			}
			email, err := p.email(args[0])
			if err != nil {
				return err
			}
			records, err := c.Usage(ctx, email, from, through)
			if err != nil {
				return err
			}
			d, err := c.Store.Directory(ctx)
			if err != nil {
				return err
			}
			v := viewUsage(email, records, d)
			return p.print(v, v.write)
		})
	show.Flags().Var(&on, "day", "only this day, for instance 2026-11-23")
	var days int
	purge := p.action("purge", "Remove old usage rows; the service does so every day by itself", 0,
		func(ctx context.Context, c *Control, _ []string) error {
			if days < 0 {
				return fault.New(fault.Invalid, "--older-than is negative").WithHint("want a number of days")
			}
			n, err := c.Purge(ctx, days)
			if err != nil {
				return err
			}
			return p.print(map[string]int64{"removed": n}, func(w io.Writer) { fmt.Fprintln(w, "removed", n, "rows") })
		})
	purge.Flags().IntVar(&days, "older-than", UsageDays, "age in days")
	return command.Group("usage", "Show and purge the daily usage", show, purge)
}

func viewUsage(email string, records []usage.Record, d location.Directory) usageView {
	codes := map[location.ID]string{}
	for _, l := range d.Locations {
		codes[l.ID] = l.Code
	}
	v := usageView{Email: email, Rows: []usageRow{}}
	for _, r := range records {
		v.Rows = append(v.Rows, usageRow{
			Date: r.Date, Location: or(codes[r.Location], fmt.Sprintf("location-%d", r.Location)),
			Country: r.Country, ISP: r.ISP, Protocol: r.Protocol, In: r.In, Out: r.Out,
		})
		v.In += r.In
		v.Out += r.Out
	}
	return v
}
