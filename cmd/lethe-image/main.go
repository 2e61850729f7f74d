// Command lethe-image builds the image of a Lethe VPN server; see package image.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"lethe/image"
	"lethe/image/sandbox"
)

func main() {
	if code, inside := sandbox.Inside(); inside {
		os.Exit(code)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := image.Run(ctx, os.Args[1:], os.Stdout, os.Stderr, image.Here(os.Getenv))
	stop()
	os.Exit(code)
}
