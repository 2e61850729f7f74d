package node

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"lethe/event"
	"lethe/internal/command"
	"lethe/version"
)

// Command returns the commands of lethe-node. getenv is os.Getenv.
func Command(stdin io.Reader, stdout, stderr io.Writer, getenv func(string) string) *cobra.Command {
	root := &cobra.Command{
		Use: "lethe-node", Short: "A VPN server that cannot say who did what",
		SilenceUsage: true, SilenceErrors: true,
	}
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	var config, dir string
	run := &cobra.Command{
		Use: "run", Short: "Serve until told to stop", Args: cobra.NoArgs,
		Long: "Serve until told to stop. The server says on TCP port 7443 that it waits for its secrets, and once it\n" +
			"has them follows the signed bundle.\n\nIt must own the network namespace it runs in: " +
			"it replaces the firewall and the kernel's network settings.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := LoadConfig(config)
			if err != nil {
				return err
			}
			if dir == "" {
				return errNoDir
			}
			err = Run(cmd.Context(), cfg, dir, event.New(stderr))
			if errors.Is(err, context.Canceled) {
				return nil // told to stop before it was activated
			}
			return err
		},
	}
	run.Flags().StringVar(&config, "config", "/etc/lethe/node.json", "configuration file")
	run.Flags().StringVar(&dir, "runtime-dir", getenv("RUNTIME_DIRECTORY"), "runtime directory, on a RAM disk")
	root.AddCommand(run, &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(stdout, "lethe-node", version.String())
			return err
		},
	})
	command.StrictHelp(root)
	return root
}

var errNoDir = errors.New("no runtime directory: set --runtime-dir or RUNTIME_DIRECTORY")
