package command_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"lethe/fault"
	"lethe/internal/command"
)

func TestStrictHelp(t *testing.T) {
	for _, lax := range []bool{false, true} { // programs whose root takes arguments find commands in another way
		for line, want := range map[string]string{
			"help":              "Usage:\n  tool",
			"help show":         "Usage:\n  tool show",
			"help show one":     "Usage:\n  tool show one",
			"help nonsense":     "no command \"nonsense\", see `tool --help`",
			"help show two":     "no command \"two\", see `tool show --help`",
			"help show one all": "no command \"all\", see `tool show one --help`",
			"help shwo":         "no command \"shwo\", did you mean `tool show`?",
			"help a\x1bb":       "no command \"a\\x1bb\", see `tool --help`",
		} {
			nothing := func(*cobra.Command, []string) {}
			root := &cobra.Command{Use: "tool", SilenceErrors: true, SilenceUsage: true}
			if lax {
				root.Args, root.Run = cobra.ArbitraryArgs, nothing
			}
			show := &cobra.Command{Use: "show", Run: nothing}
			show.AddCommand(&cobra.Command{Use: "one", Run: nothing})
			root.AddCommand(show)
			command.StrictHelp(root)
			var out bytes.Buffer
			root.SetOut(&out)
			root.SetErr(&out)
			root.SetArgs(strings.Split(line, " "))
			err := root.Execute()
			got := out.String()
			if e := new(fault.Error); errors.As(err, &e) {
				got += e.Text + ", " + e.Hint
				if e.Kind != fault.Invalid {
					t.Errorf("%s: %s", line, e.Kind)
				}
			}
			if !strings.Contains(got, want) || strings.HasPrefix(want, "no ") && got != want {
				t.Errorf("%s: got %q, want %q", line, got, want)
			}
		}
	}
}
