package token

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"lethe/fault"
)

// maxPIN is the longest PIN, in bytes. PIV has 8, SoftHSM 255.
const maxPIN = 255

// PIN asks for the token's PIN. What it returns is overwritten after use. It may be
// called more than once: some keys want the PIN for every signature.
type PIN func() ([]byte, error)

// Terminal returns a PIN that a person types, unseen. It ends with ctx, which
// term.ReadPassword does not: a main that turns ^C into the end of ctx would
// wait for the PIN all the same, and then sign.
func Terminal(ctx context.Context, tty *os.File, prompt io.Writer) PIN {
	return func() ([]byte, error) {
		fd := int(tty.Fd())
		before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, "there is no terminal to type the PIN at", err).WithHint("give it by a file descriptor")
		}
		silent := *before
		silent.Lflag &^= unix.ECHO
		silent.Lflag |= unix.ECHONL // the line's end is shown
		if err := unix.IoctlSetTermios(fd, unix.TCSETS, &silent); err != nil {
			return nil, fault.Wrap(fault.Unavailable, "the terminal cannot hide a PIN", err)
		}
		defer func() { _ = unix.IoctlSetTermios(fd, unix.TCSETS, before) }() // a terminal that is gone needs none
		_, _ = io.WriteString(prompt, "PIN of the token: ")
		for ready := 0; ready <= 0; {
			ready, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
			if ctx.Err() != nil || err != nil && !errors.Is(err, unix.EINTR) {
				return nil, fault.Wrap(fault.Unavailable, "interrupted", errors.Join(ctx.Err(), err))
			}
		}
		return Descriptor(tty)() // a terminal hands over whole lines
	}
}

// Descriptor returns a PIN that another program writes as one line, for instance
// by 3<<<"$(pass show token)". Each call reads the next line.
func Descriptor(f io.Reader) PIN {
	return func() ([]byte, error) {
		b := make([]byte, 0, maxPIN+1)
		var c [1]byte // one byte at a time, so that no buffer keeps a copy
		for len(b) <= maxPIN {
			_, err := io.ReadFull(f, c[:])
			if err == nil && c[0] == '\n' || errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				clear(b)
				return nil, fault.Wrap(fault.Unavailable, "the PIN cannot be read", err)
			}
			b = append(b, c[0])
		}
		return check(b)
	}
}

func check(pin []byte) ([]byte, error) {
	if len(pin) == 0 || len(pin) > maxPIN {
		clear(pin)
		return nil, fault.New(fault.Invalid, fmt.Sprintf("a PIN has 1 to %d bytes", maxPIN))
	}
	return pin, nil
}
