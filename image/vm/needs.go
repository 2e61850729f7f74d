package vm

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"lethe/fault"
)

// Needs are the programs and files of the host that machines are made with.
type Needs struct {
	QEMU, SWTPM string // names or paths of programs
	Code        string // OVMF with Secure Boot and SMM
	Variables   string // OVMF's empty variable store
}

// Debian returns where Debian's packages keep them.
func Debian() Needs {
	return Needs{QEMU: "qemu-system-x86_64", SWTPM: "swtpm", Code: "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd", Variables: "/usr/share/OVMF/OVMF_VARS_4M.fd"}
}

// check says which packages are missing.
func (n Needs) check(tpm bool) error {
	var missing []string
	for _, need := range []struct {
		path, pkg string
		program   bool
	}{{n.QEMU, "qemu-system-x86", true}, {n.SWTPM, "swtpm", true}, {n.Code, "ovmf", false}, {n.Variables, "ovmf", false}} {
		var err error
		if need.program {
			_, err = exec.LookPath(need.path)
		} else {
			_, err = os.Stat(need.path)
		}
		last := len(missing) > 0 && missing[len(missing)-1] == need.pkg
		if err != nil && !last && (tpm || need.pkg != "swtpm") {
			missing = append(missing, need.pkg)
		}
	}
	if missing != nil {
		return fault.New(fault.NotFound, "a virtual machine needs "+strings.Join(missing, ", ")+", which this machine lacks").
			WithHint("apt-get install --no-install-recommends " + strings.Join(missing, " "))
	}
	return nil
}

// probePatience is how long firmware may take to speak under KVM, where it takes a second.
const probePatience = 4 * time.Second

// Accelerator returns KVM when it runs firmware here, else TCG. That /dev/kvm can
// be opened says little: inside some virtual machines a guest stops at its first
// unusual instruction. The answer is found once, by starting one.
func Accelerator(ctx context.Context) Accel {
	accelerator.Lock()
	defer accelerator.Unlock()
	if accelerator.found == "" && ctx.Err() == nil {
		accelerator.found = probe(ctx, Debian())
	}
	if accelerator.found == "" {
		return TCG
	}
	return accelerator.found
}

var accelerator struct {
	sync.Mutex
	found Accel
}

func probe(ctx context.Context, needs Needs) Accel {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return TCG
	}
	_ = f.Close() // nothing was written
	limited, cancel := context.WithTimeout(ctx, probePatience)
	defer cancel()
	m, err := Start(limited, Options{Memory: minMemory, NoTPM: true, Accel: KVM, Needs: needs})
	if err != nil {
		return TCG
	}
	_, err = m.Console().WaitFor(limited, "BdsDxe")
	if err = errors.Join(err, m.Close()); err != nil {
		return TCG
	}
	return KVM
}
