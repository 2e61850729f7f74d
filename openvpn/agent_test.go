package openvpn_test

import (
	"context"
	"fmt"
	"os"

	"lethe/event"
	"lethe/openvpn"
	"lethe/private"
	"lethe/session"
)

// loud is a core that prints its journal.
type loud struct{ *core }

func (l loud) Resume(d uint8, live []session.Live) {
	l.core.Resume(d, live)
	fmt.Fprintf(os.Stdout, "resume %d %d\n", d, len(live))
}

// runAgent serves until it is killed.
func runAgent(in []string, log *event.Logger) int {
	cfg := config(in[0])
	cfg.Certificate, cfg.Key, cfg.TLSCrypt = private.Of(in[2]), private.Of(in[3]), private.Of(in[4])
	s, err := openvpn.New(cfg, loud{newCore()}, log)
	if err == nil {
		err = s.Run(context.Background())
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}
