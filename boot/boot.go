// Package boot is the first process of the initramfs and the last one of a run:
// cmd/lethe-init.
//
// [Machine.Boot] goes from the kernel's first process to systemd in steps, each of which
// happens whole or ends the machine:
//
//	kernel's file systems   /dev, /proc, /sys, /run
//	search                  drivers by coldplug in rounds; every block device is asked for a partition of layout.RootType
//	copy                    the root file system into sealed memory; its digest must be the one in lethe/root
//	mount                   squashfs, read-only, below; an OverlayFS on a bounded tmpfs above
//	let go                  every block device removed, every driver that is not in use unloaded
//	switch                  the initramfs deleted, a random machine id, systemd
//
// What is believed: lethe/root and the modules, which the boot image's signature covers. What is not: the medium, until
// its digest is right; other disks; the kernel's command line, which is signed too, but which
// nothing here reads. There are no options and no shell: a failure is one line
// "lethe: stop E…" on every console, see [Code], and then the power goes off.
//
// [Machine.Shutdown] runs when systemd has ended: it returns the machine's memory, so that
// nothing of the run is found in it afterwards.
package boot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"lethe/image/layout"
)

// Code says in which step a boot ended.
type Code int

// The codes, as the console shows them.
const (
	CodeKernel    Code = 10 // a file system of the kernel's cannot be mounted
	CodeInitramfs Code = 11 // the initramfs is not as it was built
	CodeNoMedium  Code = 20 // no device has a root partition
	CodeWrongRoot Code = 21 // there are root partitions, and none has the right digest
	CodeMount     Code = 30 // the verified root cannot be mounted
	CodeLetGo     Code = 40 // a block device or a driver does not go
	CodeSwitch    Code = 50 // the new root cannot be made ready
	CodeExec      Code = 51 // systemd does not start
	CodeInternal  Code = 99 // a defect here
)

// stop is an error with the step that it ended.
type stop struct {
	code Code
	err  error
}

func (s *stop) Error() string { return fmt.Sprintf("E%02d: %v", s.code, s.err) }
func (s *stop) Unwrap() error { return s.err }

// failed gives err a code, unless it has one or is nil.
func failed(code Code, err error) error {
	if s := (*stop)(nil); err == nil || errors.As(err, &s) {
		return err
	}
	return &stop{code, err}
}

// Machine is what a boot works on. [Real] is the machine itself.
type Machine struct {
	// Patience bounds the search for a medium, from the first look, and later the wait for disks and drivers to go.
	Patience time.Duration
	// Second bounds how long others are waited for when a medium with a wrong root was found.
	Second time.Duration
	// Show is how long the last line stands on the console before the power goes off.
	Show time.Duration
	// Manager is the program that takes over, from the new root.
	Manager string
	// Exec is execve(2). It returns only with an error.
	Exec func(path string, argv, env []string) error
	// Reboot is reboot(2).
	Reboot func(cmd int) error

	say    *console
	caches string // the kernel's switch for dropping caches
}

// Real returns the machine that this process is the first one of.
func Real() *Machine {
	return &Machine{
		Patience: time.Minute, Second: 15 * time.Second, Show: 10 * time.Second,
		Manager: "/" + layout.Manager,
		Exec:    unix.Exec, Reboot: unix.Reboot, caches: "/proc/sys/vm/drop_caches",
	}
}

// Run is the program. The kernel starts it as /init; systemd, at the end of a run, as
// /shutdown with what it was asked for. It does not return.
func (m *Machine) Run(args []string) {
	if filepath.Base(args[0]) == shutdownName {
		m.Shutdown(args[1:])
		return
	}
	m.Boot()
}

// Boot does not return: systemd takes the process over, or the machine goes off.
func (m *Machine) Boot() {
	m.end(unix.LINUX_REBOOT_CMD_POWER_OFF, m.guard(m.boot))
}

// guard runs a function of this package; a panic is an error.
func (m *Machine) guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &stop{CodeInternal, fmt.Errorf("internal error: %v", p)}
		}
	}()
	return f()
}

// end says why and ends the machine.
func (m *Machine) end(cmd int, err error) {
	if m.say == nil {
		m.say = openConsole("/dev", "/sys")
	}
	if err != nil {
		m.say.line("stop %v", err)
		m.say.line("this machine goes off")
		wait(m.Show)
	}
	for {
		_ = m.Reboot(cmd)
		cmd = unix.LINUX_REBOOT_CMD_RESTART // a machine that cannot go off is started again
		wait(time.Second)
	}
}

// readWanted reads in the initramfs which medium and which root are the right ones.
func readWanted(dir string) (w wanted, err error) {
	root, err := os.ReadFile(filepath.Join(dir, layout.Root))
	if err != nil {
		return w, err
	}
	medium, err := os.ReadFile(filepath.Join(dir, layout.Medium))
	if err != nil {
		return w, err
	}
	if w.root, err = layout.ParseRootDigest(string(root)); err != nil {
		return w, err
	}
	w.medium, err = layout.ParseMediumDigest(string(medium))
	return w, err
}

func wait(d time.Duration) { <-time.After(d) }

func (m *Machine) boot() error {
	began := time.Now()
	var want wanted
	var root *os.File
	for _, step := range []struct {
		code Code
		do   func() error
	}{
		{CodeKernel, mountKernel},
		{CodeInitramfs, func() (err error) {
			m.say = openConsole("/dev", "/sys")
			want, err = readWanted("/")
			return err
		}},
		{CodeNoMedium, func() (err error) {
			root, err = m.find("/"+layout.InitramfsModules, want)
			return err
		}},
		{CodeMount, func() error { return mountRoot(root, newRoot) }},
		{CodeLetGo, m.letGo},
		{CodeSwitch, func() error { return prepare(newRoot) }},
		{CodeSwitch, func() error { return switchRoot(newRoot) }},
		{CodeExec, func() error {
			m.say.line("root verified after %.1f s, starting", time.Since(began).Seconds())
			m.say.close()
			m.say = nil
			err := m.Exec(m.Manager, []string{filepath.Base(m.Manager)}, []string{"PATH=/usr/bin", "LANG=C.UTF-8"})
			return fmt.Errorf("%s: %w", m.Manager, err)
		}},
	} {
		if err := step.do(); err != nil {
			return failed(step.code, err)
		}
	}
	return nil
}

// inOrder runs steps until one fails.
func inOrder(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}
