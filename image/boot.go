package image

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"lethe/fault"
	"lethe/image/trial"
	"lethe/image/vm"
)

// booting are the flags of boot.
type booting struct {
	memory, cpus    int
	slot, variables string
	trial, insecure bool
	noTPM           bool
	forwards        []string
	disks           []string
	needs           vm.Needs // tests say others
	iso             string
}

func (p *program) bootCommand() *cobra.Command {
	f := booting{needs: p.m.Needs}
	c := &cobra.Command{Use: "boot ISO", Short: "Boot an image in QEMU as it boots on hardware", Args: cobra.ExactArgs(1),
		Long: "Boot an image in a virtual machine with UEFI firmware, Secure Boot and a TPM, and show its console. Ctrl-C ends it.\n" +
			"Nothing of the run stays, and the ISO is not written to. When it ends, the TPM's registers are shown.\n\n" +
			"Firmware starts what is signed. For a release, name the variable store that `lethe-image keys --enrol` wrote;\n" +
			"what you have just built is signed for one try by --sign-for-trial.",
		RunE: func(c *cobra.Command, args []string) error {
			p.started = true
			f.iso = args[0]
			return p.boot(c.Context(), f)
		}}
	c.Flags().IntVar(&f.memory, "memory", 1024, "MiB")
	c.Flags().IntVar(&f.cpus, "cpus", 2, "number of CPUs")
	c.Flags().StringVar(&f.slot, "as", string(vm.CD), "how the machine sees the image: cd, usb or disk")
	c.Flags().StringVar(&f.variables, "variables", "", "OVMF variable store with the keys that the image is signed by")
	c.Flags().BoolVar(&f.trial, "sign-for-trial", false, "boot a copy that is signed by a key made for this try, on a machine that trusts no other")
	c.Flags().BoolVar(&f.insecure, "insecure", false, "switch Secure Boot off")
	c.Flags().BoolVar(&f.noTPM, "no-tpm", false, "leave the TPM out")
	c.Flags().StringArrayVar(&f.forwards, "forward", nil, "ADDRESS:PORT=PORT: let a TCP port of this machine lead to one of the guest (repeat)")
	c.Flags().StringArrayVar(&f.disks, "disk", nil, "a raw disk that the guest may write to (repeat)")
	return c
}

// options returns the machine that the flags describe. clean removes what was made for it.
func (f booting) options() (o vm.Options, clean func() error, err error) {
	clean = func() error { return nil }
	o = vm.Options{Medium: f.iso, Slot: vm.Slot(f.slot), CPUs: f.cpus, Memory: f.memory, NoTPM: f.noTPM, Disks: f.disks, Needs: f.needs}
	forward := map[string]int{}
	for _, text := range f.forwards {
		host, guest, _ := strings.Cut(text, "=")
		port, err := strconv.ParseUint(guest, 10, 16)
		if _, _, err2 := net.SplitHostPort(host); err2 != nil || err != nil || port == 0 || strings.Contains(text, ",") {
			return o, clean, fault.New(fault.Invalid, "no way to forward: "+text).WithHint("for instance --forward 127.0.0.1:7443=7443")
		}
		forward[host] = int(port)
	}
	o.NICs = []vm.NIC{{Forward: forward}}
	chosen := 0
	for _, given := range []bool{f.variables != "", f.trial, f.insecure} {
		if given {
			chosen++
		}
	}
	if chosen != 1 {
		return o, clean, fault.New(fault.Invalid, "which keys shall the firmware trust?").
			WithHint("one of --sign-for-trial for what you have built, --variables FILE for a release, --insecure for none")
	}
	if f.variables != "" {
		if o.Variables, err = os.ReadFile(f.variables); err != nil {
			return o, clean, fault.Wrap(fault.NotFound, f.variables+" cannot be read", err).WithHint("lethe-image keys --enrol writes one")
		}
	}
	if f.trial {
		o.Medium, o.Variables, clean, err = signForTrial(f)
	}
	return o, clean, err
}

// signForTrial returns a signed copy of the image and the variables that trust it.
func signForTrial(f booting) (copied string, variables []byte, clean func() error, err error) {
	clean = func() error { return nil }
	i, err := trial.Open(f.iso)
	if err != nil {
		return "", nil, clean, err
	}
	blank, err := os.ReadFile(f.needs.Variables)
	if err != nil {
		return "", nil, clean, fault.Wrap(fault.NotFound, "there is no firmware for virtual machines", err).WithHint("apt-get install ovmf")
	}
	keys, err := trial.NewKeys(blank)
	if err != nil {
		return "", nil, clean, err
	}
	dir, err := os.MkdirTemp("", "lethe-trial-")
	if err != nil {
		return "", nil, clean, fault.Wrap(fault.Full, "there is no place for a signed copy", err)
	}
	copied = filepath.Join(dir, "trial.iso")
	return copied, keys.Variables, func() error { return os.RemoveAll(dir) }, keys.Sign(i, copied)
}

// lines passes the console on: as it is, or each line as an event.
type lines struct {
	p    *program
	mu   sync.Mutex
	part []byte
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.p.json {
		return l.p.stdout.Write(b)
	}
	l.part = append(l.part, b...)
	for {
		end := bytes.IndexByte(l.part, '\n')
		if end < 0 {
			return len(b), nil
		}
		if text := vm.Plain(string(l.part[:end])); text != "" {
			if err := l.p.tell(happening{Event: "console", Text: text}); err != nil {
				return 0, err
			}
		}
		l.part = l.part[end+1:]
	}
}

// happening is what boot tells with --json, a line for each.
type happening struct {
	Event string            `json:"event"`          // "started", "console" or "ended"
	Text  string            `json:"text,omitempty"` // a line of the console
	Accel vm.Accel          `json:"accel,omitempty"`
	End   vm.End            `json:"end,omitempty"`
	PCRs  map[string]string `json:"pcrs,omitempty"` // at the end: SHA-256 bank, those that are not zero
}

func (p *program) tell(h happening) error { return json.NewEncoder(p.stdout).Encode(h) }

// boot runs a machine until it ends or the person does.
func (p *program) boot(ctx context.Context, f booting) (err error) {
	o, clean, err := f.options()
	defer func() { err = errors.Join(err, clean()) }()
	if err != nil {
		return err
	}
	o.Output = &lines{p: p}
	o.Accel = vm.Accelerator(ctx)
	how := map[vm.Accel]string{vm.TCG: "its instructions are translated, which takes time", vm.KVM: "by KVM"}[o.Accel]
	fmt.Fprintf(p.stderr, "a machine with %d CPUs and %d MiB, %s; Ctrl-C ends it\n", f.cpus, f.memory, how)
	m, err := vm.Start(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	if p.json {
		if err := p.tell(happening{Event: "started", Accel: o.Accel}); err != nil {
			return err
		}
	}
	watched, cancel := context.WithCancel(ctx)
	defer cancel()
	refused := make(chan string, 1)
	go func() {
		word, _ := m.Console().WaitFor(watched, vm.Refused, vm.Nothing, vm.Shell)
		refused <- word
		if word != "" {
			cancel()
		}
	}()
	end, _ := m.Wait(watched)
	cancel()
	switch <-refused {
	case vm.Refused:
		return fault.New(fault.Untrusted, "the firmware refuses the image: it is not signed by a key that it trusts").WithHint("--sign-for-trial signs a copy of what you have built")
	case vm.Nothing, vm.Shell:
		return fault.New(fault.Invalid, "the firmware finds nothing to start in "+f.iso).WithHint("is it an ISO that lethe-image build made?")
	}
	return p.summary(m, end)
}

// summary tells how a run has ended.
func (p *program) summary(m *vm.Machine, end vm.End) error {
	h := happening{Event: "ended", End: end, PCRs: map[string]string{}}
	var text strings.Builder
	if end == "" {
		end = "running until it was ended"
	}
	fmt.Fprintf(&text, "\nthe machine has been %s", end)
	values, err := m.PCRs()
	for n, v := range values {
		if err == nil && v != [32]byte{} && n < 16 {
			h.PCRs[strconv.Itoa(n)] = hex.EncodeToString(v[:])
			fmt.Fprintf(&text, "\nPCR %-2d  %x", n, v)
		}
	}
	if p.json {
		return p.tell(h)
	}
	_, err = io.WriteString(p.stdout, text.String()+"\n")
	return err
}
