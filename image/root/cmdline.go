package root

import "strings"

// parameters is the kernel's command line (kernel-parameters.txt in Linux;
// kernel-command-line(7)), each with its reason. It stands in the signed boot image.
var parameters = []struct{ text, why string }{
	{"quiet", "until the log is closed the console has errors only"},
	{"panic=10", "a machine that panicked starts anew"},
	{"oops=panic", "a kernel that has gone wrong once is not trusted with anybody's traffic"},
	{"init_on_alloc=1", "nobody finds in memory what somebody left"},
	{"init_on_free=1", "what is not used any more is gone, also for who reads the memory from outside"},
	{"slab_nomerge", "kinds of objects do not share memory, so a stray write reaches fewer"},
	{"page_alloc.shuffle=1", "which page follows which is not known"},
	{"randomize_kstack_offset=on", "the same for the kernel's stacks"},
	{"vsyscall=none", "no code at a known address"},
	{"mitigations=auto", "against reading other programs' memory through the processor"},
	{"lockdown=integrity", "root cannot change the kernel (kernel_lockdown(7)). Not confidentiality: the kernel then hides ESP keys from charon, which reads them back when a customer roams"},
	{"module.sig_enforce=1", "modules are Debian's own"},
	{"nohibernate", "memory is never written to a disk"},
	{"efi_pstore.pstore_disable=1", "nothing of a crash goes into the firmware's memory"},
	{"erst_disable", "the same for the other kind of it"},
	{"audit=0", "nothing is recorded about what programs do"},
	{"iommu.strict=1", "devices reach no memory that was taken from them"},
	{"iommu.passthrough=0", "nor any that was not given to them"},
	{"no_timer_check", "the kernel does not stop for a timer that a busy hypervisor emulates late"},
	{"random.trust_bootloader=off", "random numbers do not hang on what the firmware says they are"},
	{"net.ifnames=0", "uplinks are eth0, eth1, …"},
	{"systemd.import_credentials=no", "the hypervisor and the medium say nothing to systemd"},
	{"systemd.show_status=no", "the console says nothing about units"},
}

// labParameters make a lab's image talk.
var labParameters = []struct{ text, why string }{
	{"console=tty0", "the screen"},
	{"console=ttyS0,115200", "the serial port, by which tests see what happens"},
	{"systemd.log_target=kmsg", "systemd says what goes wrong"},
	{"systemd.log_level=info", "and what it does"},
}

// cmdline returns the command line.
func cmdline(lab bool) string {
	list := parameters
	if lab {
		list = append(list[:len(list):len(list)], labParameters...)
	}
	var text []string
	for _, p := range list {
		text = append(text, p.text)
	}
	return strings.Join(text, " ")
}
