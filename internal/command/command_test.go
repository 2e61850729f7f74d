package command_test

import (
	"bytes"
	"errors"
	"io"
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

func TestMisuse(t *testing.T) {
	for line, want := range map[string]string{
		"":               "an argument is missing, usage: tool NAME",
		"--to x":         "an argument is missing, usage: tool NAME",
		"--to x one":     "",
		"--to x one two": "too many arguments, usage: tool NAME",
		"one":            "--to must be given, see `tool --help`",
		"--to x one all": "too many arguments, usage: tool NAME",
	} {
		root := &cobra.Command{Use: "tool NAME", Args: cobra.ExactArgs(1), DisableFlagsInUseLine: true, SilenceErrors: true, SilenceUsage: true, Run: func(*cobra.Command, []string) {}}
		root.Flags().String("to", "", "")
		if err := root.MarkFlagRequired("to"); err != nil {
			t.Fatal(err)
		}
		root.SetArgs(strings.Fields(line))
		got := ""
		if used, err := root.ExecuteC(); err != nil {
			e := command.Misuse(used, err)
			got = e.Text + ", " + e.Hint
		}
		if got != want {
			t.Errorf("%q: got %q, want %q", line, got, want)
		}
	}
	root := &cobra.Command{Use: "tool", SilenceErrors: true, SilenceUsage: true}
	root.AddCommand(&cobra.Command{Use: "show", Run: func(*cobra.Command, []string) {}})
	root.SetArgs([]string{"shwo"})
	used, err := root.ExecuteC()
	if e := command.Misuse(used, err); e.Hint != "did you mean `tool show`?" {
		t.Errorf("%s, %s", e.Text, e.Hint)
	}
}

// full is a pipe that takes nothing.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("full") }

func TestOutput(t *testing.T) {
	text := func(w io.Writer) { _, _ = io.WriteString(w, "A\tB\nlong\tb\n") }
	for _, c := range []struct {
		json bool
		v    any
		out  io.Writer
		want string
		kind fault.Kind
	}{
		{true, map[string]string{"a": "<b>"}, nil, `{"a":"<b>"}` + "\n", 0},
		{false, nil, nil, "A     B\nlong  b\n", 0},
		{false, nil, full{}, "", fault.Unavailable},
		{true, func() {}, nil, "", fault.Internal},
	} {
		var b bytes.Buffer
		out := c.out
		if out == nil {
			out = &b
		}
		err := command.Print(out, c.json, c.v, text)
		if b.String() != c.want || (err == nil) != (c.want != "") || err != nil && fault.Of(err) != c.kind {
			t.Errorf("%q, %v; want %q", b.String(), err, c.want)
		}
	}
	root := &cobra.Command{Use: "tool", SilenceErrors: true, SilenceUsage: true}
	root.AddCommand(command.Group("show", "Show", &cobra.Command{Use: "one", Run: func(*cobra.Command, []string) {}}))
	command.FlagErrors(root)
	for line, want := range map[string]string{
		"show":           "tool show needs a subcommand, see `tool show --help`",
		"show one --all": "unknown flag: --all, see `tool show one --help`",
	} {
		root.SetArgs(strings.Fields(line))
		e := new(fault.Error)
		if err := root.Execute(); !errors.As(err, &e) || e.Text+", "+e.Hint != want {
			t.Errorf("%s: %v", line, err)
		}
	}
}
