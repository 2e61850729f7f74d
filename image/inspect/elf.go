package inspect

import (
	"bytes"
	"debug/elf"
)

// Kinds of files that the kernel knows, or does not.
const (
	dynamic = "dynamic"
	static  = "static"
	script  = "script"
	library = "library" // no program
	other   = "other"   // executable by its mode, and by nothing else
)

// executable says what the kernel would make of a file that may be executed.
func executable(b []byte) string {
	if bytes.HasPrefix(b, []byte("#!")) {
		return script
	}
	if !bytes.HasPrefix(b, []byte(elf.ELFMAG)) {
		return other
	}
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil || f.Type != elf.ET_EXEC && f.Type != elf.ET_DYN {
		return library // a kernel module, or something that is damaged: it cannot be started
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return dynamic
		}
	}
	if f.Entry == 0 {
		return library
	}
	return static // ld.so among them, which starts others
}
