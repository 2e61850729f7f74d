// Command lethe-node runs a VPN server; see package node.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"lethe/fault"
	"lethe/node"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := node.Command(os.Stdin, os.Stdout, os.Stderr, os.Getenv).ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		if f := new(fault.Error); errors.As(err, &f) && f.Hint != "" {
			fmt.Fprintln(os.Stderr, "hint:", f.Hint)
		}
		os.Exit(1)
	}
}
