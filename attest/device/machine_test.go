package device_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"lethe/attest/attesttest"
	"lethe/attest/device"
	"lethe/attest/eventlog"
)

func TestReadLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	read := device.ReadLog(path)
	if _, err := read(); err == nil {
		t.Error("a file that is not there was read")
	}
	want := attesttest.Boot(attesttest.TheImage("seven")).Log()
	for _, c := range []struct {
		content []byte
		ok      bool
	}{{want, true}, {make([]byte, eventlog.MaxSize), true}, {make([]byte, eventlog.MaxSize+1), false}} {
		if err := os.WriteFile(path, c.content, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := read(); (err == nil) != c.ok || c.ok && !bytes.Equal(got, c.content) {
			t.Errorf("%d of %d bytes: %v", len(got), len(c.content), err)
		}
	}
}
