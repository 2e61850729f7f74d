// Package seal closes the running system of the image, and proves that it is closed:
// cmd/lethe-seal, which systemd starts once, before anything of the network.
//
// [System.Seal] loads the modules that the server needs and the drivers of its network
// devices, waits for an uplink, writes every value of the table in settings.go, closes module loading, and
// then looks at the machine as it is: the table again, and the checks in checks.go (swap, dumps, block
// devices, mounts, executables, listeners, Secure Boot, the command line). Nothing is believed because it was configured.
//
// The result is a [Report], a JSON file for whoever asks (layout.Sealed). If a check fails, so does the program,
// and the machine does not go on: its unit is required by everything else.
//
// `lethe-seal check` reads the same values later and writes nothing: for auditors and tests.
package seal

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"lethe/boot/kmod"
	"lethe/image/layout"
	"lethe/version"
)

// Check is one thing that was looked at.
type Check struct {
	Name string `json:"name"`
	Want string `json:"want"`
	Got  string `json:"got"`
	OK   bool   `json:"ok"`
	Why  string `json:"why"`
}

// Report is what was found.
type Report struct {
	Version string  `json:"version"` // of Lethe
	OK      bool    `json:"ok"`      // every check is
	Checks  []Check `json:"checks"`
}

// Failed returns the checks that are not as they must be.
func (r Report) Failed() (failed []Check) {
	for _, c := range r.Checks {
		if !c.OK {
			failed = append(failed, c)
		}
	}
	return failed
}

// System is what is sealed.
type System struct {
	// Root is the root directory, "/" but in tests.
	Root string
	// Patience bounds the wait for an uplink.
	Patience time.Duration
}

// path returns a file's path in the system.
func (s System) path(p string) string { return filepath.Join(s.Root, p) }

// Seal closes the system and returns what it then looks like. It is done once per boot.
func (s System) Seal() Report {
	checks := append(s.drivers(), s.memory()) // the kernel's log cannot be read any more afterwards
	for _, at := range unwanted {
		for unix.Unmount(s.path(at), 0) == nil { // it may be mounted more than once
		}
	}
	_ = os.Chmod(s.path(tunnels), 0o666) // shows when it is looked at
	for _, v := range settings {
		v.apply(s.Root)
	}
	return s.report(append(checks, s.atSealing()...), true)
}

// Look returns what the system looks like, and changes nothing.
func (s System) Look() Report { return s.report(nil, false) }

func (s System) report(checks []Check, first bool) Report {
	for _, v := range settings {
		if first || !v.first {
			checks = append(checks, v.check(s.Root))
		}
	}
	checks = append(checks, s.always()...)
	r := Report{Version: version.String(), OK: true, Checks: checks}
	for _, c := range checks {
		r.OK = r.OK && c.OK
	}
	return r
}

// drivers loads modules until there is an uplink and no device asks for more.
func (s System) drivers() []Check {
	loading := Check{Name: "drivers", Want: "loaded", Got: "loaded", OK: true, Why: "what the server needs is in the kernel before module loading is closed"}
	uplink := Check{Name: "uplink", Want: "a network device", Why: "without one it is no server"}
	fail := func(err error) {
		loading.Got, loading.OK = err.Error(), false
	}
	modules, err := kmod.Open(s.path(layout.RootModules))
	if err != nil {
		fail(err)
		return []Check{loading}
	}
	events, err := kmod.Listen()
	if err != nil {
		fail(err)
		return []Check{loading}
	}
	defer events.Close()
	if err := modules.LoadListed(); err != nil {
		fail(err)
	}
	for began := time.Now(); ; events.Wait(500 * time.Millisecond) {
		// A driver that does not like its device is no reason to stop: without an uplink there is one.
		tried, _ := modules.Coldplug(s.path("sys"))
		names := s.uplinks()
		if len(names) > 0 && len(tried) == 0 {
			uplink.Got, uplink.OK = names[0], true
			break
		}
		if len(tried) == 0 && time.Since(began) > s.Patience {
			uplink.Got = "none"
			break
		}
	}
	return []Check{loading, uplink}
}

// uplinks returns the network devices that have hardware, or a hypervisor, behind them.
func (s System) uplinks() (names []string) {
	paths, _ := filepath.Glob(s.path("sys/class/net/*/device"))
	for _, p := range paths {
		names = append(names, filepath.Base(filepath.Dir(p)))
	}
	return names
}

// reason is an error's text without the path, which the check's name has.
func reason(err error) string {
	var e *fs.PathError
	if errors.As(err, &e) {
		return e.Err.Error()
	}
	return err.Error()
}

// Main is the program: without arguments it seals and writes the report, with "check" it looks. It returns
// the exit code: 0 when everything is as it must be, 1 when not, 2 for a wrong use.
func Main(s System, args []string, stdout, stderr io.Writer) int {
	var r Report
	asJSON := false
	switch {
	case len(args) == 0:
		r = s.Seal()
		if err := s.write(r); err != nil {
			fmt.Fprintln(stderr, "error:", err)
			return 1
		}
		s.tell(r)
	case args[0] == "check" && len(args) == 1:
		r = s.Look()
	case args[0] == "check" && len(args) == 2 && args[1] == "--json":
		r, asJSON = s.Look(), true
	default:
		fmt.Fprintln(stderr, "usage: lethe-seal [check [--json]]")
		return 2
	}
	if asJSON {
		_, _ = stdout.Write(r.encode())
	} else {
		for _, c := range r.Failed() {
			fmt.Fprintf(stdout, "%s: want %q, got %q\n", c.Name, c.Want, c.Got)
		}
		fmt.Fprintf(stdout, "%d checks, %d failed\n", len(r.Checks), len(r.Failed()))
	}
	if !r.OK {
		return 1
	}
	return 0
}

func (r Report) encode() []byte {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		panic("seal: internal error: " + err.Error())
	}
	return append(b, '\n')
}

// write puts the report where others look for it, whole or not at all.
func (s System) write(r Report) error {
	path := s.path(layout.Sealed)
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path+".new", r.encode(), 0o444)
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	return err
}

// tell says on the console why the machine does not go on. The kernel says nothing there any more.
func (s System) tell(r Report) {
	console, err := os.OpenFile(s.path("dev/console"), os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return
	}
	defer console.Close()
	for _, c := range r.Failed() {
		fmt.Fprintf(console, "lethe: not sealed: %s: want %q, got %q\r\n", c.Name, c.Want, c.Got)
	}
}
