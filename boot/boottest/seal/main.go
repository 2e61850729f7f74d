// Command seal is lethe-seal for tests: it sends what it counted before it ends.
package main

import (
	"os"
	"time"

	"lethe/boot/boottest"
	"lethe/seal"
)

func main() {
	code := seal.Main(seal.System{Root: "/", Patience: 10 * time.Second}, os.Args[1:], os.Stdout, os.Stderr)
	boottest.SendCover()
	os.Exit(code)
}
