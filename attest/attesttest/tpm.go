// Package attesttest is what tests of attestation share: a real software TPM (swtpm), an
// attester in software whose keys the test holds and so can lie with, a machine's event
// log made here event by event, and a release with its manifest.
package attesttest

import (
	"crypto/sha256"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"lethe/attest/eventlog"
)

// TPM is a swtpm process with a state directory of its own.
type TPM struct {
	transport.TPM
	Dir string // its state; survives [TPM.Stop]
	t   testing.TB
	cmd *exec.Cmd
}

// StartTPM starts a new TPM, which ends with the test.
func StartTPM(t testing.TB) *TPM {
	t.Helper()
	dir, err := os.MkdirTemp("", "lethe-tpm") // t.TempDir may be too long for a Unix socket
	if err != nil {
		t.Fatal(err)
	}
	p := &TPM{Dir: dir, t: t}
	p.Start()
	t.Cleanup(func() {
		p.Stop()
		os.RemoveAll(dir)
	})
	return p
}

// Start gives the TPM power: its counter of resets goes up, its registers are zero.
func (p *TPM) Start() {
	p.t.Helper()
	socket := filepath.Join(p.Dir, "tpm.sock")
	_ = os.Remove(socket)
	p.cmd = exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+p.Dir, "--server", "type=unixio,path="+socket,
		"--flags", "not-need-init,startup-clear")
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // also when the test ends in a panic
	if err := p.cmd.Start(); err != nil {
		p.t.Fatalf("swtpm (Debian package swtpm): %v", err)
	}
	deadline := time.Now().Add(time.Minute)
	for {
		c, err := net.Dial("unix", socket)
		if err == nil {
			c.Close()
			break
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("swtpm does not answer: %v", err)
		}
		<-time.After(5 * time.Millisecond)
	}
	tpm, err := linuxudstpm.Open(socket)
	if err != nil {
		p.t.Fatal(err)
	}
	p.TPM = tpm
}

// Stop takes the power away, without a word of warning.
func (p *TPM) Stop() {
	if p.cmd != nil {
		_ = p.cmd.Process.Kill() // it may have ended
		_ = p.cmd.Wait()
		p.cmd = nil
	}
}

// Reboot is Stop and Start.
func (p *TPM) Reboot() {
	p.t.Helper()
	p.Stop()
	p.Start()
}

// Copy starts a second TPM with the state that this one has on its disk.
func (p *TPM) Copy() *TPM {
	p.t.Helper()
	q := StartTPM(p.t)
	q.Stop()
	entries, err := os.ReadDir(p.Dir)
	if err != nil {
		p.t.Fatal(err)
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		b, err := os.ReadFile(filepath.Join(p.Dir, e.Name()))
		if err == nil {
			err = os.WriteFile(filepath.Join(q.Dir, e.Name()), b, 0o600)
		}
		if err != nil {
			p.t.Fatal(err)
		}
	}
	q.Start()
	return q
}

// Extend measures a digest into a register.
func (p *TPM) Extend(index int, digest [sha256.Size]byte) {
	p.t.Helper()
	_, err := tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(index), Auth: tpm2.PasswordAuth(nil)},
		Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: digest[:]}}},
	}.Execute(p)
	if err != nil {
		p.t.Fatalf("extend PCR %d: %v", index, err)
	}
}

// Measure extends every event of a machine's log, and the phases of its system.
func (p *TPM) Measure(m *Machine) {
	p.t.Helper()
	for _, e := range m.Events {
		if e.Type != eventlog.NoAction {
			p.Extend(e.Index, e.Digest)
		}
	}
	for _, phase := range m.Phases {
		p.Extend(11, sha256.Sum256([]byte(phase)))
	}
}

// Define writes an index of the TPM's memory as its maker does: certificates of endorsement keys, for instance.
func (p *TPM) Define(index tpm2.TPMHandle, content []byte) {
	p.t.Helper()
	platform := tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Auth: tpm2.PasswordAuth(nil)}
	_, err := tpm2.NVDefineSpace{AuthHandle: platform, PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{NVIndex: index, NameAlg: tpm2.TPMAlgSHA256,
		Attributes: tpm2.TPMANV{PPWrite: true, PPRead: true, OwnerRead: true, NoDA: true, PlatformCreate: true, NT: tpm2.TPMNTOrdinary}, DataSize: uint16(len(content))})}.Execute(p)
	if err != nil {
		p.t.Fatal(err)
	}
	for at := 0; at < len(content); at += 512 {
		public, err := tpm2.NVReadPublic{NVIndex: index}.Execute(p)
		if err != nil {
			p.t.Fatal(err)
		}
		_, err = tpm2.NVWrite{AuthHandle: platform, NVIndex: tpm2.NamedHandle{Handle: index, Name: public.NVName},
			Data: tpm2.TPM2BMaxNVBuffer{Buffer: content[at:min(at+512, len(content))]}, Offset: uint16(at)}.Execute(p)
		if err != nil {
			p.t.Fatal(err)
		}
	}
}

// String says where it is.
func (p *TPM) String() string { return fmt.Sprintf("swtpm in %s", p.Dir) }
