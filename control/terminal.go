package control

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"lethe/fault"
	"lethe/private"
)

// password asks for a password: twice without echo on a terminal, else it is
// one line of standard input.
func (p *program) password(ctx context.Context) (private.Value[string], error) {
	f, ok := p.stdin.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		s, err := p.line("password")
		return private.Of(s), err
	}
	first, err := p.hidden(ctx, int(f.Fd()), "Password: ")
	if err != nil {
		return private.Value[string]{}, err
	}
	second, err := p.hidden(ctx, int(f.Fd()), "Once more: ")
	if err == nil && first.Reveal() != second.Reveal() {
		err = fault.New(fault.Invalid, "the two passwords differ")
	}
	return second, err
}

// hidden reads a line from a terminal that does not show it meanwhile. It ends
// with ctx, which [term.ReadPassword] does not: main turns ^C into the end of
// ctx, and a terminal left without echo would be the result.
func (p *program) hidden(ctx context.Context, fd int, prompt string) (line private.Value[string], err error) {
	before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return line, fault.Wrap(fault.Unavailable, "the terminal does not answer", err)
	}
	silent := *before
	silent.Lflag &^= unix.ECHO
	silent.Lflag |= unix.ECHONL // the line's end is shown
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &silent); err != nil {
		return line, fault.Wrap(fault.Unavailable, "the terminal cannot hide a password", err)
	}
	defer func() { _ = unix.IoctlSetTermios(fd, unix.TCSETS, before) }() // a terminal that is gone needs none
	fmt.Fprint(p.stderr, prompt)
	for ready := p.lines.Buffered(); ready == 0; {
		ready, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
		if ctx.Err() != nil || err != nil && !errors.Is(err, unix.EINTR) {
			return line, fault.Wrap(fault.Unavailable, "interrupted", errors.Join(ctx.Err(), err))
		}
		ready = max(ready, 0) // -1 when a signal came
	}
	s, err := p.line("password")
	return private.Of(s), err
}
