// Command lethe-activator decides which VPN servers are told secrets; see package
// activator.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"lethe/activator"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := activator.Run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
