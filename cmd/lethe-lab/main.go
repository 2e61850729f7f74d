// Command lethe-lab runs a whole service on one machine; see package lab.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"lethe/lab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := lab.Run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Getenv)
	stop()
	os.Exit(code)
}
