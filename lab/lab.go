// Package lab is a whole service on one Linux machine: an internet, a control
// plane, a VPN server in each of two locations and customers, each in a network
// namespace of its own, with no way out to the real network.
//
//	inet        router between all others; a web site that shows who visits it;
//	            the authoritative name servers of ".", river.example and lethe.example (nsd)
//	control     lethe-control
//	nl-ams-1 …  lethe-node, one machine per server
//	customer-1… the app's helper; lethe is run here
//
// It is what `make up` shows, what the end-to-end tests run on and where a
// developer tries things. [New] builds one and [Lab.Close] removes every trace
// of it; [Down] does so for a lab whose process has died. Any number of labs
// with different prefixes live side by side.
//
//	topology.go  names and addresses
//	machine.go   a machine: namespace, its own /etc, /run and /var/lib, commands in it
//	manager.go   the service manager: systemd's protocol for the lab's services
//	internet.go  web site and name servers
//	pki.go       certificates and keys that the activator will make in a real service
//	guest.go     VPN servers that are virtual machines
//	service.go   lethe-control, lethe-node and the app's helper on their machines
//	tour.go      the story of one customer, as `up` tells it
//	remote.go    the control socket, for other processes on the same machine
//	command.go   the command lethe-lab
//
// The lab needs root, iproute2, nsd, and what the programs themselves need
// (openvpn, unbound, nftables); for virtual machines dnsmasq and what package image/vm needs. Its files are all under one directory.
package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"lethe/image/vm"
)

// Options says what to build. The zero value of each field means its default.
type Options struct {
	// Prefix tells labs apart: 1 to 6 small letters and digits, default "lab".
	// Namespaces are called lethe-PREFIX-MACHINE.
	Prefix string
	// Dir holds every file of the lab; it must be empty, absent or a lab's.
	// At most 60 bytes, because sockets lie in it. Required.
	Dir string
	// BinDir has the programs lethe, lethe-control and lethe-node, built with
	// the tag lab. Required unless Bare.
	BinDir string
	// GeoIP is the MMDB file for country and ISP. Built when it does not exist.
	// Default BinDir/../geoip.mmdb.
	GeoIP string
	// Locations are the places with one server each, at most 8. Default
	// Amsterdam and New York.
	Locations []Place
	// Customers is the number of customer machines, at most 200. Default 1.
	Customers int
	// Guests says which locations' servers are virtual machines, by the location's code,
	// and what they are made of. What they boot must be an image for the lab (lethe-image
	// build --lab). Without Variables a copy of it is signed with keys made for it.
	Guests map[string]vm.Options
	// Bare leaves out Lethe's own programs: network, web site and DNS only.
	Bare bool
	// Spec is the node specification to publish (package spec), JSON. Default:
	// the shortest intervals of polls and usage batches that a person can watch.
	Spec string
	// Env is added to the environment of every command on a machine, as
	// "KEY=value"; a later value of a key wins.
	Env []string
	// Step, when set, is called before each step with its name, and the function
	// it returns after it.
	Step func(name string) (done func(error))
}

var prefixForm = regexp.MustCompile(`^[a-z0-9]{1,6}$`)

const maxDir = 60

// check sets defaults and returns what is wrong with o.
func (o *Options) check() (err error) {
	if o.Prefix == "" {
		o.Prefix = "lab"
	}
	if o.Customers == 0 {
		o.Customers = 1
	}
	if o.Locations == nil {
		o.Locations = Places()[:2]
	}
	if o.Spec == "" {
		// A release refuses such a short usage interval.
		o.Spec = `{"poll_seconds": 1, "usage_seconds": 2}`
	}
	if o.Step == nil {
		o.Step = func(string) func(error) { return func(error) {} }
	}
	switch {
	case !prefixForm.MatchString(o.Prefix):
		return fmt.Errorf("lab: prefix %q: want 1 to 6 small letters and digits", o.Prefix)
	case o.Dir == "":
		return errors.New("lab: no directory given")
	case o.BinDir == "" && !o.Bare:
		return errors.New("lab: no directory of programs given")
	case o.Customers < 0 || o.Customers > maxCustomers:
		return fmt.Errorf("lab: %d customers, want 1 to %d", o.Customers, maxCustomers)
	case len(o.Locations) > maxServers:
		return fmt.Errorf("lab: %d locations, want at most %d", len(o.Locations), maxServers)
	case !o.known():
		return errors.New("lab: a virtual machine for a location that is not there")
	case repeated(o.Locations):
		return errors.New("lab: a location stands twice")
	case os.Geteuid() != 0:
		return errors.New("lab: only root can make network namespaces")
	}
	if o.Dir, err = filepath.Abs(o.Dir); err == nil && len(o.Dir) > maxDir {
		return fmt.Errorf("lab: directory path of %d bytes, want at most %d: sockets lie in it", len(o.Dir), maxDir)
	}
	if o.BinDir != "" && err == nil {
		o.BinDir, err = filepath.Abs(o.BinDir)
	}
	if o.GeoIP == "" {
		o.GeoIP = filepath.Join(filepath.Dir(o.BinDir), "geoip.mmdb")
	}
	return err
}

// known reports whether every guest has a location.
func (o *Options) known() bool {
	n := 0
	for _, p := range o.Locations {
		if _, ok := o.Guests[p.Code]; ok {
			n++
		}
	}
	return n == len(o.Guests)
}

func repeated(places []Place) bool {
	seen := map[string]bool{}
	for _, p := range places {
		if seen[p.Code] {
			return true
		}
		seen[p.Code] = true
	}
	return false
}

// Lab is a running lab. Its methods are safe for concurrent use.
type Lab struct {
	*Manager
	opts      Options
	machines  []*Machine
	listener  *net.UnixListener // holds the prefix and serves [Remote]
	closers   []func() error
	activator *activator
	wg        sync.WaitGroup

	giveUp context.CancelCauseFunc // ends New early
	built  chan struct{}           // closed when New has built what it could
	once   sync.Once
	closed chan struct{}
	err    error
}

// marker is the file that makes a directory a lab's.
const marker = ".lethe-lab"

// New builds a lab and waits until all of it serves. When a step fails, what
// was built is removed again, except the directory with the log files.
func New(ctx context.Context, opts Options) (*Lab, error) {
	if err := opts.check(); err != nil {
		return nil, err
	}
	l := &Lab{opts: opts, built: make(chan struct{}), closed: make(chan struct{})}
	if err := l.hold(); err != nil {
		return nil, err
	}
	steps := []step{
		{"clear what an earlier lab left behind", func(context.Context) error { return sweep(opts.Prefix, opts.Dir) }},
		{"network: internet, control plane, servers, customers", l.network},
		{"internet: web site " + siteName + " and name servers", l.internet},
	}
	if len(opts.Guests) > 0 {
		steps = append(steps, step{GuestStep, l.guests})
	}
	if !opts.Bare {
		steps = append(steps, l.serviceSteps()...)
	}
	ctx, l.giveUp = context.WithCancelCause(ctx)
	l.wg.Go(l.serveRemote)
	err := l.walk(ctx, steps)
	close(l.built)
	if err != nil {
		l.keepLogs()
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// step is one thing to do, with the name that a person sees.
type step struct {
	name string
	do   func(context.Context) error
}

func (l *Lab) walk(ctx context.Context, steps []step) error {
	for _, s := range steps {
		done := l.opts.Step(s.name)
		err := s.do(ctx)
		done(err)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// hold takes the prefix: an abstract socket (unix(7)) can be bound once, is no
// file, and is free again the moment this process ends, however it ends.
func (l *Lab) hold() (err error) {
	l.listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: remoteAddress(l.opts.Prefix), Net: "unix"})
	if err != nil {
		return fmt.Errorf("lab: a lab with prefix %q is running already", l.opts.Prefix)
	}
	return nil
}

// network makes the directory, the machines and the links between them.
func (l *Lab) network(ctx context.Context) error {
	l.Manager = newManager(l.opts.Dir)
	l.machines = l.opts.plan()
	var err error
	for _, d := range []string{"log", "notify", "m"} {
		err = errors.Join(err, os.MkdirAll(filepath.Join(l.opts.Dir, d), 0o700))
	}
	err = errors.Join(err, os.WriteFile(filepath.Join(l.opts.Dir, marker), nil, 0o600))
	if err == nil {
		err = link(ctx, l.machines)
	}
	for _, m := range l.machines {
		if err == nil {
			err = l.boot(m)
		}
	}
	return err
}

// boot starts a machine; its first process is killed when the lab is closed.
func (l *Lab) boot(m *Machine) error {
	first, err := m.start()
	if err == nil {
		l.wg.Go(func() { _ = first.Wait() })
	}
	return err
}

// Machine returns the machine of that name, or nil: "inet", "control", a
// server's id such as "nl-ams-1", or "customer-1".
func (l *Lab) Machine(name string) *Machine { return find(l.machines, name) }

// Internet returns the router, on which the web site lives too.
func (l *Lab) Internet() *Machine { return l.Machine("inet") }

// Control returns the control plane's machine.
func (l *Lab) Control() *Machine { return l.Machine("control") }

// Server returns the machine of the server in the i-th location, from 0.
func (l *Lab) Server(i int) *Machine { return l.Machine(l.opts.Locations[i].server()) }

// Customer returns the i-th customer machine, from 0.
func (l *Lab) Customer(i int) *Machine { return l.Machine(customerName(i)) }

// Machines returns every machine.
func (l *Lab) Machines() []*Machine { return append([]*Machine(nil), l.machines...) }

// Prefix returns the lab's prefix.
func (l *Lab) Prefix() string { return l.opts.Prefix }

// Done is closed when the lab has been closed.
func (l *Lab) Done() <-chan struct{} { return l.closed }

// Close stops every service and removes every trace: processes, namespaces,
// files. It waits for all of it. Further calls return the same error.
func (l *Lab) Close() error {
	err := l.tearDown()
	l.wg.Wait()
	return err
}

// tearDown is Close without waiting for those who asked for it through the
// control socket.
func (l *Lab) tearDown() error {
	l.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		var errs []error
		if l.Manager != nil {
			errs = append(errs, l.StopAll(ctx))
		}
		for _, c := range l.closers {
			errs = append(errs, c())
		}
		errs = append(errs, sweep(l.opts.Prefix, l.opts.Dir), l.listener.Close())
		l.err = errors.Join(errs...)
		close(l.closed)
	})
	return l.err
}

// keepLogs saves the log files of a lab that did not come up from being
// removed: they move to DIR.failed. A directory that is not a lab's is left alone.
func (l *Lab) keepLogs() {
	if _, err := os.Stat(filepath.Join(l.opts.Dir, marker)); err != nil {
		return
	}
	kept := l.opts.Dir + ".failed"
	_ = os.RemoveAll(kept)
	_ = os.Rename(filepath.Join(l.opts.Dir, "log"), kept)
}

// clear removes a lab's directory. It refuses one that is not a lab's.
func clear(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, marker)); err != nil {
		return fmt.Errorf("lab: directory %s has files and is not a lab's", dir)
	}
	return os.RemoveAll(dir)
}
