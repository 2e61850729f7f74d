package gpt_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"lethe/image/gpt"
	"lethe/image/layout"
)

const mega = 1 << 20

// disk returns a disk of 16 MiB that sgdisk(8) has partitioned.
func disk(t testing.TB, args ...string) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(path)
	if err == nil {
		err = errors.Join(f.Truncate(16*mega), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	args = append([]string{"--clear", "--disk-guid=00112233-4455-6677-8899-aabbccddeeff"}, args...)
	if out, err := exec.Command("sgdisk", append(args, path)...).CombinedOutput(); err != nil {
		t.Fatalf("sgdisk: %v: %s", err, out)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func two(t testing.TB) []byte {
	return disk(t, "--new=1:2048:6143", "--typecode=1:ef00", "--change-name=1:EFI Grüße",
		"--new=2:6144:10239", "--typecode=2:"+layout.RootTypeName, "--attributes=2:set:0")
}

// seal puts the right sums into a header that was changed.
func seal(b []byte) []byte {
	le := binary.LittleEndian
	entries := b[le.Uint64(b[512+72:])*512:][:le.Uint32(b[512+80:])*128]
	le.PutUint32(b[512+88:], crc32.ChecksumIEEE(entries))
	clear(b[512+16 : 512+20])
	le.PutUint32(b[512+16:], crc32.ChecksumIEEE(b[512:][:92]))
	return b
}

func TestRead(t *testing.T) {
	b := two(t)
	table, err := gpt.Read(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if got := table.Disk.String(); got != "00112233-4455-6677-8899-aabbccddeeff" {
		t.Errorf("disk %s", got)
	}
	if table.First > mega || table.Last < 15*mega || table.Entries != 1024 || table.Length != 128*128 {
		t.Errorf("table %+v", table)
	}
	if len(table.Partitions) != 2 {
		t.Fatalf("%d partitions", len(table.Partitions))
	}
	system, err := table.Find(gpt.System)
	if err != nil || system.Offset != mega || system.Size != 2*mega || system.Name != "EFI Grüße" {
		t.Errorf("system %+v, %v", system, err)
	}
	root, err := table.Find(gpt.GUID(layout.RootType))
	if err != nil || root.Offset != 3*mega || root.Size != 2*mega || root.Flags != 1 || root.ID == (gpt.GUID{}) {
		t.Errorf("root %+v, %v", root, err)
	}
	if got := gpt.GUID(layout.RootType).String(); got != layout.RootTypeName {
		t.Errorf("RootType is %s, RootTypeName %s", got, layout.RootTypeName)
	}
	if _, err := table.Find(gpt.GUID{1}); !errors.Is(err, gpt.ErrFormat) {
		t.Errorf("a partition that is not there: %v", err)
	}
}

// TestTwice: of two partitions of one type neither is taken.
func TestTwice(t *testing.T) {
	b := disk(t, "--new=1:2048:4095", "--typecode=1:ef00", "--new=2:4096:6143", "--typecode=2:ef00")
	table, err := gpt.Read(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if p, err := table.Find(gpt.System); !errors.Is(err, gpt.ErrFormat) {
		t.Errorf("got %+v, %v", p, err)
	}
}

func TestRefused(t *testing.T) {
	le := binary.LittleEndian
	good := two(t)
	for name, c := range map[string]struct {
		change func(b []byte) []byte
		text   string
	}{
		"too short":        {func(b []byte) []byte { return b[:1024] }, "1024 bytes"},
		"entries cut off":  {func(b []byte) []byte { return b[:4096] }, "can be used"},
		"no signature":     {func(b []byte) []byte { b[512] = 'e'; return b }, "signature"},
		"revision":         {func(b []byte) []byte { b[512+8] = 1; return b }, "revision"},
		"header size":      {func(b []byte) []byte { le.PutUint32(b[512+12:], 513); return b }, "header of 513"},
		"header sum":       {func(b []byte) []byte { b[512+56] ^= 1; return b }, "sum or place"},
		"header elsewhere": {func(b []byte) []byte { b[512+24] = 2; return seal(b) }, "sum or place"},
		"entry sum":        {func(b []byte) []byte { b[1024+40] ^= 1; return b }, "sum of the entries"},
		"usable":           {func(b []byte) []byte { le.PutUint64(b[512+48:], 1<<40); return seal(b) }, "can be used"},
		"entry size":       {func(b []byte) []byte { le.PutUint32(b[512+84:], 256); return seal(b) }, "entries of 256"},
		"no entries":       {func(b []byte) []byte { le.PutUint32(b[512+80:], 0); return seal(b) }, "0 entries"},
		"entries outside": {func(b []byte) []byte {
			le.PutUint64(b[512+72:], 16*mega/512-1)
			clear(b[512+16 : 512+20])
			le.PutUint32(b[512+16:], crc32.ChecksumIEEE(b[512:][:92]))
			return b
		}, "it ends at"},
		"outside":   {func(b []byte) []byte { le.PutUint64(b[1024+40:], 1<<50); return seal(b) }, "a partition has"},
		"backwards": {func(b []byte) []byte { le.PutUint64(b[1024+40:], 2047); return seal(b) }, "a partition has"},
		"overlap":   {func(b []byte) []byte { le.PutUint64(b[1024+40:], 6144); return seal(b) }, "overlap"},
	} {
		b := c.change(bytes.Clone(good))
		if table, err := gpt.Read(bytes.NewReader(b), int64(len(b))); !errors.Is(err, gpt.ErrFormat) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %+v, %v", name, table, err)
		}
	}
	broken := errors.New("broken medium")
	if _, err := gpt.Read(failing{broken}, mega); !errors.Is(err, broken) || errors.Is(err, gpt.ErrFormat) {
		t.Errorf("a medium that cannot be read: %v", err)
	}
}

type failing struct{ err error }

func (f failing) ReadAt([]byte, int64) (int, error) { return 0, f.err }

var _ io.ReaderAt = failing{}

func FuzzRead(f *testing.F) {
	b := two(f)[:1024+128*128]
	f.Add(b)
	f.Add(b[:1024])
	f.Fuzz(func(t *testing.T, b []byte) {
		const size = 16 * mega
		for _, in := range [][]byte{b, sealed(b)} {
			table, err := gpt.Read(bytes.NewReader(in), size)
			if err != nil {
				continue
			}
			for _, p := range table.Partitions {
				if p.Offset < 0 || p.Size < gpt.Block || p.Offset > size-p.Size {
					t.Fatalf("a partition outside: %+v", p)
				}
			}
		}
	})
}

// sealed mends the sums of fuzzed bytes where it can, so that what is behind them is tried as well.
func sealed(b []byte) []byte {
	if len(b) < 1024+128*128 {
		return nil
	}
	b = bytes.Clone(b)
	le := binary.LittleEndian
	le.PutUint64(b[512+72:], 2)
	if n := le.Uint32(b[512+80:]); n > 128 {
		le.PutUint32(b[512+80:], 128)
	}
	return seal(b)
}
