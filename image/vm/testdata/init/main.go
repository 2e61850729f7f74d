// Command init is all that runs in the test's machine: the first process, which
// says what it finds and then does what it is told on the serial console.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

type facts struct {
	CPUs     int
	MemoryMB int
	Lockdown string
	PCRs     map[int]string
	Events   int // bytes of the firmware's event log
}

func read(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(b))
}

func find() (f facts) {
	for _, m := range [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"securityfs", "/sys/kernel/security"}} {
		if err := os.MkdirAll(m[1], 0o700); err != nil {
			fmt.Println(err)
		}
		if err := unix.Mount(m[0], m[1], m[0], 0, ""); err != nil {
			fmt.Println(m, err)
		}
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		fmt.Println(err)
	}
	f = facts{CPUs: runtime.NumCPU(), MemoryMB: int(info.Totalram >> 20), Lockdown: read("/sys/kernel/security/lockdown"), PCRs: map[int]string{}}
	for _, n := range []int{4, 7, 11} {
		f.PCRs[n] = strings.ToLower(read("/sys/class/tpm/tpm0/pcr-sha256/" + strconv.Itoa(n)))
	}
	f.Events = len(read("/sys/kernel/security/tpm0/binary_bios_measurements"))
	return f
}

func main() {
	b, err := json.Marshal(find())
	fmt.Printf("facts: %s %v\n", b, err)
	kept := make([]byte, 1<<20) // where a mark is planted
	for in := bufio.NewScanner(os.Stdin); ; {
		if !in.Scan() {
			fmt.Println("the console has ended:", in.Err())
		}
		switch verb, what, _ := strings.Cut(in.Text(), " "); verb {
		case "say":
			fmt.Println("said:", what)
		case "keep": // the text, rotated by 1, so that it stands in memory only once
			for i, c := range []byte(what) {
				kept[i] = c + 1
			}
			fmt.Println("kept")
		case "off":
			err = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
		case "reboot":
			err = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
		case "panic":
			os.Exit(1)
		}
		if err != nil {
			fmt.Println(err)
		}
		runtime.KeepAlive(kept)
	}
}
