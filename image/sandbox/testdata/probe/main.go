// Command probe says what a tool sees from inside.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Seen is what the test reads.
type Seen struct {
	PID, UID, Umask    int
	Host, Dir          string
	Env, Root, Links   []string
	Caps               [2]uint32
	Bounding           bool
	Writable           []string
	Stdin              string
	NoNewPrivs, Signal int
}

func main() {
	switch {
	case len(os.Args) > 1 && os.Args[1] == "fail":
		fmt.Println("out of luck")
		os.Exit(7)
	case len(os.Args) > 1 && os.Args[1] == "hang":
		signal.Ignore(syscall.SIGTERM, syscall.SIGINT)
		child, err := os.StartProcess(os.Args[0], []string{os.Args[0], "sit"}, &os.ProcAttr{Files: []*os.File{nil, os.Stdout, os.Stdout}})
		fmt.Println("hanging", child != nil, err)
		time.Sleep(time.Hour)
	case len(os.Args) > 1 && os.Args[1] == "sit":
		time.Sleep(time.Hour)
	}
	var s Seen
	s.PID, s.UID = os.Getpid(), os.Getuid()
	s.Umask = unix.Umask(0)
	s.Host, _ = os.Hostname()
	s.Dir, _ = os.Getwd()
	s.Env = os.Environ()
	entries, _ := os.ReadDir("/")
	for _, e := range entries {
		s.Root = append(s.Root, e.Name())
	}
	links, _ := net.Interfaces()
	for _, l := range links {
		s.Links = append(s.Links, l.Name+" "+l.Flags.String())
	}
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	_ = unix.Capget(&h, &d[0])
	s.Caps = [2]uint32{d[0].Permitted, d[1].Permitted}
	for c := range 64 {
		if on, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c), 0, 0, 0); err == nil && on == 1 {
			s.Bounding = true
		}
	}
	s.NoNewPrivs, _ = unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	for _, dir := range []string{"/", "/bin", "/dev", "/tmp", "/work"} {
		if f, err := os.Create(dir + "/x"); err == nil {
			f.Close()
			s.Writable = append(s.Writable, dir)
		}
	}
	b, _ := io.ReadAll(os.Stdin)
	s.Stdin = string(b)
	if err := json.NewEncoder(os.Stdout).Encode(s); err != nil {
		os.Exit(1)
	}
}
