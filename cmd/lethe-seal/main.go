// Command lethe-seal closes the running system of the image; see package seal.
package main

import (
	"os"
	"time"

	"lethe/seal"
)

func main() {
	os.Exit(seal.Main(seal.System{Root: "/", Patience: 30 * time.Second}, os.Args[1:], os.Stdout, os.Stderr))
}
