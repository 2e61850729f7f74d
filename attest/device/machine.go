package device

import (
	"fmt"
	"io"
	"os"

	"lethe/attest/eventlog"
)

// Where Linux shows the machine's TPM, through the kernel's resource manager, and the firmware's event log, on securityfs.
const (
	ResourceManager = "/dev/tpmrm0"
	FirmwareLog     = "/sys/kernel/security/tpm0/binary_bios_measurements"
)

// ReadLog returns a function for [Options.Log] that reads a file. A log that is larger than any verifier takes
// is an error.
func ReadLog(path string) func() ([]byte, error) {
	return func() ([]byte, error) {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, eventlog.MaxSize+1))
		if err == nil && len(b) > eventlog.MaxSize {
			err = fmt.Errorf("%s: more than %d bytes", path, eventlog.MaxSize)
		}
		return b, err
	}
}
