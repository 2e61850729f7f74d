package control

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"lethe/fault"
	"lethe/internal/command"
)

func (p *program) initCommand() *cobra.Command {
	return &cobra.Command{
		Use: "init", Short: "Make a data directory with keys and an empty store", Args: cobra.NoArgs,
		Long: "init makes a data directory with keys and an empty store. It never overwrites.\n\n" +
			"Keep a backup of keys and roots apart from the store, and keys/root.pem nowhere else: the service runs without\n" +
			"it, and whoever has it can replace every other signing key.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			p.started = true
			if err := Init(cmd.Context(), p.dir); err != nil {
				return err
			}
			return p.print(map[string]string{"dir": p.dir}, func(w io.Writer) {
				fmt.Fprintf(w, "made %s\nmove keys/root.pem to a safe place: only a key rotation needs it\n", p.dir)
			})
		},
	}
}

func (p *program) checkCommand() *cobra.Command {
	return p.action("check", "Read the whole store and say whether it is damaged", 0,
		func(ctx context.Context, c *Control, _ []string) error {
			if err := c.Store.Check(ctx); err != nil {
				return err
			}
			return p.print(map[string]bool{"ok": true}, func(w io.Writer) { fmt.Fprintln(w, "the store is sound") })
		})
}

// nodeKeys is the JSON of keys node: the parts of a secret.Node that come from
// here. Bytes are base64.
type nodeKeys struct {
	Salt      []byte `json:"salt"`
	Seal      []byte `json:"seal"`
	TrustRoot []byte `json:"trust_root"`
}

func (p *program) keysCommand() *cobra.Command {
	node := p.action("node", "Write what an activator needs for a server's secrets, as JSON, to a pipe or file", 0,
		func(_ context.Context, c *Control, _ []string) error {
			if f, ok := p.stdout.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
				return fault.New(fault.Denied, "these keys are secret and standard output is a terminal").
					WithHint("send them straight to the activator through a pipe")
			}
			fmt.Fprintln(p.stderr, "hint: this is secret; it opens every bundle and links usage rows to user names")
			salt, seal := c.Salt.Reveal(), c.Seal.Reveal()
			p.json = true
			return p.print(nodeKeys{Salt: salt[:], Seal: seal[:], TrustRoot: c.Roots[len(c.Roots)-1]}, nil)
		})
	return command.Group("keys", "Hand out keys", node)
}
