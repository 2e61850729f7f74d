// Command lethe-control runs and operates the control plane; see package
// control.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"lethe/control"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := control.Run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
