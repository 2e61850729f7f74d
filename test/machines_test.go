package test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"lethe/activation"
	"lethe/image/vm"
	"lethe/lab"
)

// TestMachines boots images as they are released on machines of several kinds: what the TPM has measured
// is always what was foretold. Four machines have each pair of number of CPUs, size of memory and slot;
// on another for each flavour the server comes up without secrets, and nothing but its
// activation port answers.
func TestMachines(t *testing.T) {
	keys, image, iso := keysOf(t, "vm")
	for _, o := range []vm.Options{
		{Slot: vm.CD, CPUs: 1, Memory: 1024},
		{Slot: vm.Disk, CPUs: 1, Memory: 2048},
		{Slot: vm.Disk, CPUs: 2, Memory: 1024},
		{Slot: vm.CD, CPUs: 2, Memory: 2048},
	} {
		t.Run(fmt.Sprintf("%s, %d CPUs, %d MiB", o.Slot, o.CPUs, o.Memory), func(t *testing.T) {
			o.Medium, o.Variables = iso, keys.Variables
			m, err := vm.Start(patient(t), o)
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			if _, err := m.Console().WaitFor(patient(t), verified); err != nil {
				t.Fatal(err)
			}
			measured(t, m, keys, image)
		})
	}
	for flavour, o := range map[string]vm.Options{
		"vm":       {Slot: vm.Disk, CPUs: 1, Memory: 1024},
		"hardware": {Slot: vm.USB, CPUs: 2, Memory: 1024},
	} {
		t.Run(flavour, func(t *testing.T) {
			keys, image, iso := keysOf(t, flavour)
			o.Medium, o.Variables = iso, keys.Variables
			began := time.Now()
			l := newLabWithin(patient(t), t, func(l *lab.Options) {
				l.Bare, l.Locations, l.Customers = true, lab.Places()[:1], 1
				l.Guests = map[string]vm.Options{l.Locations[0].Code: o}
			})
			server := l.Server(0)
			if err := l.AwaitGuest(patient(t), server); err != nil {
				t.Fatal(err)
			}
			t.Logf("power-on to \"awaiting activation\": %.1f s", time.Since(began).Seconds())
			measured(t, server.Guest(), keys, image)
			if others := answering(t, l.Internet(), server.Addresses[1].V4); len(others) > 0 {
				t.Errorf("ports %d answer beside the activation port", others)
			}
			if s, err := l.State(deadline(t), server); err != nil || s.Phase != activation.Awaiting {
				t.Errorf("then its state is %+v, %v", s, err)
			}
		})
	}
}

// answering returns those TCP ports of a server that accept or refuse a connection: the first 1024,
// and all that Lethe uses, but for the activation port.
func answering(t *testing.T, from *lab.Machine, server netip.Addr) (ports []uint16) {
	t.Helper()
	try := []uint16{1194, 1812, 1813, 3799, 4500, 5353, 5355, 8086, 8443, 8953, 9100}
	for port := range uint16(1024) {
		try = append(try, port+1)
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, port := range try {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			c, err := from.Dial(ctx, "tcp", netip.AddrPortFrom(server, port).String())
			if err == nil {
				err = c.Close()
			}
			if err == nil || strings.Contains(err.Error(), "refused") {
				mu.Lock()
				defer mu.Unlock()
				ports = append(ports, port)
			}
		})
	}
	wg.Wait()
	return ports
}
