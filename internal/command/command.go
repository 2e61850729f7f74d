// Package command is what the command lines of all programs have in common beyond cobra: a command that there
// is not is an error with a hint, also where help was asked for, and so is every other wrong use.
package command

import (
	"fmt"

	"github.com/spf13/cobra"

	"lethe/fault"
)

// Missing says that c has no command of that name, and which it may have been.
func Missing(c *cobra.Command, name string) *fault.Error {
	hint := "see `" + c.CommandPath() + " --help`"
	c.SuggestionsMinimumDistance = 2
	if near := c.SuggestionsFor(name); len(near) > 0 {
		hint = "did you mean `" + c.CommandPath() + " " + near[0] + "`?"
	}
	return fault.New(fault.Invalid, fmt.Sprintf("no command %q", name)).WithHint(hint)
}

// StrictHelp makes the help command of a program fail with [Missing] where there is no such command: cobra's
// prints the program's usage and reports success. root has all its other commands.
func StrictHelp(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	for _, help := range root.Commands() {
		if help.Name() == "help" {
			help.Args = func(_ *cobra.Command, args []string) error {
				if at, rest, _ := root.Find(args); len(rest) > 0 {
					return Missing(at, rest[0])
				}
				return nil
			}
		}
	}
}
