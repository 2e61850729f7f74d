// Command lethe is the customer's app and its root helper; see package client.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"lethe/client"
)

func main() { os.Exit(run()) }

// run returns before the program exits, so that everything deferred is done.
func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return client.Run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Getenv)
}
