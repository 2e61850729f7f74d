package boot

import (
	"io"
	"os"

	"lethe/image/layout"
)

// What the tests look at from outside.
var (
	Empty          = empty
	Unescape       = unescape
	CopyOut        = copyOut
	Verify         = verify
	LogicalBlock   = logicalBlock
	KeepShutdown   = keepShutdown
	MountRoot      = mountRoot
	Prepare        = prepare
	Unload         = unload
	RemoveStorage  = removeStorage
	UnmountAll     = unmountAll
	CloseInherited = closeInherited
	ForgetNetwork  = forgetNetwork
	SwitchRoot     = switchRoot
)

// Say opens the consoles of a fake machine and says something on them.
func Say(dev, sys, format string, args ...any) {
	c := openConsole(dev, sys)
	c.line(format, args...)
	c.close()
}

// Disks are the names of disks.
func Disks(sys, dev string) (names []string) {
	for _, d := range disks(sys, dev) {
		names = append(names, d.name)
	}
	return names
}

// Look searches a fake machine n times, and returns the root, how many devices are done with and how many roots were wrong.
func Look(sys, dev string, root layout.RootDigest, medium layout.MediumDigest, console io.WriteCloser, n int) (found *os.File, done, wrong int) {
	s := search{m: &Machine{say: &console_{to: []io.WriteCloser{console}}}, want: wanted{root, medium}, sys: sys, dev: dev, done: map[disk]bool{}}
	for range n {
		if found = s.look(); found != nil {
			break
		}
	}
	for _, d := range s.done {
		if d {
			done++
		}
	}
	return found, done, s.wrong
}

type console_ = console

// Find searches with a directory of modules.
func Find(lists string) error {
	_, err := (&Machine{say: &console{}}).find(lists, wanted{})
	return err
}

// Guard runs a function that panics.
func Guard(f func() error) error { return (&Machine{}).guard(f) }

// Failed gives an error a code, twice.
func Failed(first, second Code, err error) error { return failed(second, failed(first, err)) }

// KeepCaches keeps the machine that a test runs on from dropping its caches.
func (m *Machine) KeepCaches() { m.caches = "/dev/null" }

// ReadWanted reads in an initramfs which root and which medium are the right ones.
func ReadWanted(dir string) (layout.RootDigest, layout.MediumDigest, error) {
	w, err := readWanted(dir)
	return w.root, w.medium, err
}
