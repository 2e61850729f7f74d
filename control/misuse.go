package control

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"lethe/fault"
)

// misuse returns what is wrong with a command line of c that cobra has refused
// with err, in the words of the other errors, with the way out as its hint.
func misuse(c *cobra.Command, err error) *fault.Error {
	help, usage := "see `"+c.CommandPath()+" --help`", "usage: "+c.UseLine()
	var name string
	if _, scanned := fmt.Sscanf(err.Error(), "unknown command %q", &name); scanned == nil && c.HasSubCommands() {
		if near := nearest(c, name); near != "" {
			help = "did you mean `" + c.CommandPath() + " " + near + "`?"
		}
		return fault.New(fault.Invalid, fmt.Sprintf("no command %q", name)).WithHint(help)
	}
	lacking, args := missing(c), c.Flags().Args()
	switch wrong := c.ValidateArgs(args) != nil; {
	case wrong && len(args) < wanted(c):
		return fault.New(fault.Invalid, "an argument is missing").WithHint(usage)
	case wrong:
		return fault.New(fault.Invalid, "too many arguments").WithHint(usage)
	case len(lacking) > 0:
		return fault.New(fault.Invalid, strings.Join(lacking, ", ")+" must be given").WithHint(help)
	}
	return fault.New(fault.Invalid, err.Error()).WithHint(help)
}

// nearest returns the subcommand of c that looks most like name, or nothing.
func nearest(c *cobra.Command, name string) string {
	c.SuggestionsMinimumDistance = 2
	return slices.Concat(c.SuggestionsFor(name), []string{""})[0]
}

// wanted returns how many arguments c's usage names.
func wanted(c *cobra.Command) int { return len(strings.Fields(c.Use)) - 1 }

// missing returns the required flags of c that were not given.
func missing(c *cobra.Command) (flags []string) {
	c.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Annotations[cobra.BashCompOneRequiredFlag] != nil && !f.Changed {
			flags = append(flags, "--"+f.Name)
		}
	})
	return flags
}
