package command

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"lethe/fault"
)

// Misuse returns what is wrong with a command line of c that cobra has refused
// with err, in the words of the other errors, with the way out as its hint.
func Misuse(c *cobra.Command, err error) *fault.Error {
	help, usage := "see `"+c.CommandPath()+" --help`", "usage: "+c.UseLine()
	var name string
	if _, scanned := fmt.Sscanf(err.Error(), "unknown command %q", &name); scanned == nil && c.HasSubCommands() {
		return Missing(c, name)
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
