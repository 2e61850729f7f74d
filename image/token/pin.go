package token

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/term"

	"lethe/fault"
)

// maxPIN is the longest PIN, in bytes. PIV has 8, SoftHSM 255.
const maxPIN = 255

// PIN asks for the token's PIN. What it returns is overwritten after use. It may be
// called more than once: some keys want the PIN for every signature.
type PIN func() ([]byte, error)

// Terminal returns a PIN that a person types, unseen.
func Terminal(tty *os.File, prompt io.Writer) PIN {
	return func() ([]byte, error) {
		if !term.IsTerminal(int(tty.Fd())) {
			return nil, fault.New(fault.Invalid, "there is no terminal to type the PIN at").WithHint("give it by a file descriptor")
		}
		_, _ = io.WriteString(prompt, "PIN of the token: ")
		b, err := term.ReadPassword(int(tty.Fd()))
		_, _ = io.WriteString(prompt, "\n")
		if err != nil {
			return nil, fault.Wrap(fault.Unavailable, "the PIN cannot be read", err)
		}
		return check(b)
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
