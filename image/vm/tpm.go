package vm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"

	"golang.org/x/sys/unix"
)

// Measurement is one extension of a register of the SHA-256 bank.
type Measurement struct {
	PCR    int
	SHA256 [sha256.Size]byte
}

// Replay returns what registers hold after measurements that followed a power-on.
func Replay(measured []Measurement) (values [PCRs][sha256.Size]byte) {
	for i := firstDynamic; i <= lastDynamic; i++ {
		values[i] = [sha256.Size]byte(bytes.Repeat([]byte{0xff}, sha256.Size))
	}
	for _, m := range measured {
		values[m.PCR] = sha256.Sum256(append(values[m.PCR][:], m.SHA256[:]...))
	}
	return values
}

// Registers of a dynamic launch begin with ones (TCG PC Client Platform TPM Profile, 4.6.2).
const firstDynamic, lastDynamic = 17, 22

// tpm is a swtpm with a proxy before it. QEMU controls an emulator over a socket
// (swtpm_ioctls(3)), and passes it another for the guest's commands. The
// proxy relays the former, keeps the latter, and has a third to swtpm for commands, so
// it sees each one and can ask something itself between two.
type tpm struct {
	process *process
	dir     string // swtpm's state

	mu       sync.Mutex
	emulator net.Conn // commands; one at a time, under mu
	measured []Measurement
}

// Commands of the control channel.
const (
	controlShutdown  = 3
	controlSetDataFD = 16
)

// startTPM starts a new TPM. QEMU's end of the control channel is returned; the
// caller closes it.
func startTPM(ctx context.Context, needs Needs, relaying *sync.WaitGroup) (t *tpm, control *os.File, err error) {
	t = &tpm{}
	if t.dir, err = os.MkdirTemp("", "lethe-vm-tpm-"); err != nil {
		return nil, nil, err
	}
	var ends []*os.File
	open := func(name string) *os.File {
		ours, theirs, err2 := pair(name)
		err = errors.Join(err, err2)
		ends = append(ends, ours, theirs)
		return ours
	}
	defer func() {
		for _, f := range ends {
			if f != control {
				_ = f.Close() // passed on or duplicated
			}
		}
		if err != nil {
			t.close()
		}
	}()
	guest, emulator, data := open("tpm control"), open("tpm emulator"), open("tpm commands")
	if err != nil {
		return t, nil, err
	}
	c := exec.Command(needs.SWTPM, "socket", "--tpm2", "--tpmstate", "dir="+t.dir, "--ctrl", "type=unixio,clientfd=3", "--flags", "startup-none")
	c.ExtraFiles = []*os.File{ends[3]}
	if t.process, err = spawn(c); err != nil {
		return t, nil, err
	}
	_ = ends[3].Close() // now, so that the socket ends when swtpm does
	toGuest, err1 := net.FileConn(guest)
	toEmulator, err2 := net.FileConn(emulator)
	t.emulator, err = net.FileConn(data)
	if err = errors.Join(err1, err2, err); err != nil {
		return t, nil, err // no descriptors are left: the caller is about to end
	}
	// A swtpm that fails hangs up, which ends the wait for its answer.
	if err = errors.Join(t.connect(toEmulator.(*net.UnixConn), ends[5]), ctx.Err()); err != nil {
		t.process.kill()
		return t, nil, errors.Join(err, t.process.ended(), toGuest.Close(), toEmulator.Close())
	}
	relaying.Go(func() { t.control(toGuest.(*net.UnixConn), toEmulator, relaying) })
	return t, ends[1], nil
}

// connect gives swtpm its socket for commands.
func (t *tpm) connect(emulator *net.UnixConn, data *os.File) error {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], controlSetDataFD)
	_, _, err := emulator.WriteMsgUnix(b[:], unix.UnixRights(int(data.Fd())), nil)
	if err == nil {
		_, err = io.ReadFull(emulator, b[:])
	}
	if code := binary.BigEndian.Uint32(b[:]); err == nil && code != 0 {
		err = fmt.Errorf("swtpm takes no socket for commands: %#x", code)
	}
	return err
}

// control relays the control channel until QEMU or swtpm hangs up. Two messages
// are answered here: which socket the guest's commands come from, and that the TPM
// shall end, because registers may be asked for after QEMU has ended.
func (t *tpm) control(guest *net.UnixConn, emulator net.Conn, relaying *sync.WaitGroup) {
	defer guest.Close()
	defer emulator.Close()
	relaying.Go(func() {
		defer guest.Close()
		_, _ = io.Copy(guest, emulator) // until either end is closed
	})
	b, oob := make([]byte, maxCommand), make([]byte, unix.CmsgSpace(4*4))
	for {
		n, on, _, _, err := guest.ReadMsgUnix(b, oob)
		if err != nil || n == 0 {
			return
		}
		code := uint32(0)
		if n >= 4 {
			code = binary.BigEndian.Uint32(b)
		}
		switch {
		case code == controlSetDataFD && on > 0:
			data, err2 := received(oob[:on])
			if err = err2; err == nil {
				relaying.Go(func() { t.commands(data) })
				_, err = guest.Write(make([]byte, 4))
			}
		case code == controlShutdown && n == 4:
			_, err = guest.Write(make([]byte, 4))
		default:
			_, err = emulator.Write(b[:n])
		}
		if err != nil {
			return
		}
	}
}

// received returns the socket in a control message.
func received(oob []byte) (net.Conn, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(messages) != 1 {
		return nil, errors.Join(errors.New("tpm: no socket for commands"), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.Join(errors.New("tpm: no socket for commands"), err)
	}
	f := os.NewFile(uintptr(fds[0]), "tpm guest")
	defer f.Close()
	return net.FileConn(f)
}

// commands passes the guest's commands to swtpm, one by one, and its responses back.
func (t *tpm) commands(guest net.Conn) {
	defer guest.Close()
	for {
		command, err := readMessage(guest)
		if err != nil {
			return
		}
		response, err := t.run(command)
		if err == nil {
			_, err = guest.Write(response)
		}
		if err != nil {
			return
		}
	}
}

// readMessage reads a whole command or response.
func readMessage(r io.Reader) ([]byte, error) {
	b := make([]byte, headerSize)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(b[2:])
	if size < headerSize || size > maxCommand {
		return nil, fmt.Errorf("tpm: a message of %d bytes", size)
	}
	b = append(b, make([]byte, size-headerSize)...)
	_, err := io.ReadFull(r, b[headerSize:])
	return b, err
}

// run runs one command and notes what it has measured.
func (t *tpm) run(command []byte) ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, err := t.emulator.Write(command); err != nil {
		return nil, err
	}
	response, err := readMessage(t.emulator)
	if err != nil {
		return nil, err
	}
	if _, code, _, err := header(response); err != nil || code != 0 {
		return response, nil // refused: nothing has changed
	}
	if _, code, _, err := header(command); err == nil && code == ccStartup {
		t.measured = nil // registers were reset
	}
	if m, ok := extended(command); ok && m.PCR >= 0 && m.PCR < PCRs {
		t.measured = append(t.measured, m)
	}
	return response, nil
}

// read asks for all registers.
func (t *tpm) read() (values [PCRs][sha256.Size]byte, err error) {
	for from := 0; from < PCRs; from += 8 {
		response, err := t.run(pcrRead(from))
		if err != nil {
			return values, err
		}
		some, err := pcrValues(response)
		if err != nil {
			return values, err
		}
		copy(values[from:], some[:])
	}
	return values, nil
}

// log returns the measurements since the TPM was last started.
func (t *tpm) log() []Measurement {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]Measurement(nil), t.measured...)
}

// close ends swtpm and removes its state.
func (t *tpm) close() {
	if t.process != nil && t.process.cmd.Process != nil {
		t.process.kill()
	}
	if t.emulator != nil {
		_ = t.emulator.Close() // nobody is at its other end any more
	}
	_ = os.RemoveAll(t.dir) // under the directory for temporary files; nothing but a state of no use
}
