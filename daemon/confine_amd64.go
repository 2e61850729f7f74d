package daemon

import "golang.org/x/sys/unix"

// auditArch is this architecture in struct seccomp_data.
const auditArch = unix.AUDIT_ARCH_X86_64

// forbiddenHere are those of [forbidden] that only this architecture has.
var forbiddenHere = []uint32{unix.SYS_IOPL, unix.SYS_IOPERM, unix.SYS_MODIFY_LDT}
