// Command look says where it is: time, order of a directory, user, host, umask and cores.
package main

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	"time"
)

func main() {
	d, err := os.Open(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	names, _ := d.Readdirnames(-1)
	host, _ := os.Hostname()
	fmt.Printf("%d\n%s\n%d\n%s\n%o\n%d\n", time.Now().Unix(), names, os.Getuid(), host, syscall.Umask(0), runtime.NumCPU())
}
