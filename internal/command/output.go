package command

import (
	"encoding/json"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"lethe/fault"
)

// Group returns a command that only has subcommands.
func Group(use, short string, sub ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return fault.New(fault.Invalid, c.CommandPath()+" needs a subcommand").WithHint("see `" + c.CommandPath() + " --help`")
	}}
	c.AddCommand(sub...)
	return c
}

// Print writes v as a line of JSON, or text for a person, in columns where it has tabs.
func Print(out io.Writer, asJSON bool, v any, text func(w io.Writer)) error {
	var b strings.Builder
	if asJSON {
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		if err := e.Encode(v); err != nil {
			return err
		}
	} else {
		w := tabwriter.NewWriter(&b, 0, 4, 2, ' ', 0)
		text(w)
		_ = w.Flush() // a strings.Builder takes everything
	}
	if _, err := io.WriteString(out, b.String()); err != nil {
		return fault.Wrap(fault.Unavailable, "the answer cannot be written", err)
	}
	return nil
}

// FlagErrors makes wrong flags of a program, and of its commands, errors with a hint.
func FlagErrors(root *cobra.Command) {
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return fault.New(fault.Invalid, err.Error()).WithHint("see `" + c.CommandPath() + " --help`")
	})
}
