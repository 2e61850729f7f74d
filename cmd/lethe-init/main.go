// Command lethe-init is the first process of the image's initramfs, and the last one of a run; see package boot.
package main

import (
	"os"

	"lethe/boot"
)

func main() { boot.Real().Run(os.Args) }
