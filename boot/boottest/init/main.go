// Command init is lethe-init for tests: it sends what it counted before it hands over or goes off,
// and is less patient.
package main

import (
	"os"
	"time"

	"lethe/boot"
	"lethe/boot/boottest"
)

func main() {
	m := boot.Real()
	m.Patience, m.Second, m.Show = 15*time.Second, 5*time.Second, 0
	exec, reboot := m.Exec, m.Reboot
	m.Exec = func(path string, argv, env []string) error {
		boottest.SendCover()
		return exec(path, argv, env)
	}
	m.Reboot = func(cmd int) error {
		boottest.SendCover()
		return reboot(cmd)
	}
	m.Run(os.Args)
}
