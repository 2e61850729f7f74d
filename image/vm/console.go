package vm

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
)

// Console is what a machine writes to its serial port. It is safe for concurrent
// use.
type Console struct {
	mu    sync.Mutex
	text  []byte
	from  int           // where the next wait begins
	more  chan struct{} // closed when text grows or ended is set
	ended bool
}

// maxConsole bounds what is kept. A guest that writes more is at fault, and what
// comes then is only passed on.
const maxConsole = 16 << 20

// read takes the console's output until its end.
func (c *Console) read(from io.Reader, to io.Writer) {
	b := make([]byte, 4096)
	for {
		n, err := from.Read(b)
		c.mu.Lock()
		if len(c.text) < maxConsole {
			c.text = append(c.text, b[:n]...)
		}
		c.ended = err != nil
		close(c.more)
		c.more = make(chan struct{})
		c.mu.Unlock()
		_, _ = to.Write(b[:n]) // whoever watches may be gone
		if err != nil {
			return
		}
	}
}

// Text returns everything so far, with the terminal's control sequences.
func (c *Console) Text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.text)
}

// WaitFor waits until the console shows one of words, and returns it: the one that
// stands first in what came after the word that the last call has found. It
// fails when ctx or the machine ends before; the error has the console's last lines.
func (c *Console) WaitFor(ctx context.Context, words ...string) (string, error) {
	for {
		found, more, ended := c.find(words)
		if found != "" {
			return found, nil
		}
		if ended {
			return "", fmt.Errorf("the machine ended before it said %s: %s", alternatives(words), c.Last())
		}
		select {
		case <-more:
		case <-ctx.Done():
			return "", fmt.Errorf("the machine did not say %s: %w: %s", alternatives(words), context.Cause(ctx), c.Last())
		}
	}
}

func alternatives(words []string) string { return fmt.Sprintf("%q", strings.Join(words, " | ")) }

func (c *Console) find(words []string) (found string, more <-chan struct{}, ended bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	text, first := string(c.text[c.from:]), -1
	for _, w := range words {
		if at := strings.Index(text, w); at >= 0 && (first < 0 || at < first) {
			found, first = w, at
		}
	}
	if found != "" {
		c.from += first + len(found)
	}
	return found, c.more, c.ended
}

// lastSize is how much of the console an error shows.
const lastSize = 1200

// Last returns the end of the text without control sequences.
func (c *Console) Last() string {
	text := c.Text()
	return Plain(text[max(0, len(text)-lastSize):])
}

// Plain returns text without a terminal's control sequences (ECMA-48, 5.4), carriage
// returns and empty lines.
func Plain(text string) string {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		switch ch := text[i]; {
		case ch == 0x1b && i+1 < len(text) && text[i+1] == '[':
			for i += 2; i < len(text) && (text[i] < 0x40 || text[i] > 0x7e); i++ {
			}
		case ch == '\n' && strings.HasSuffix(b.String(), "\n"):
		case ch == '\n' || ch >= ' ' && ch < 0x7f:
			b.WriteByte(ch)
		}
	}
	return strings.TrimSpace(b.String())
}

// What OVMF says on the console when it starts nothing of a medium (edk2, BdsDxe).
const (
	Refused = "Access Denied"      // an image is not signed by a key that it trusts
	Nothing = ": Not Found"        // the medium has no image
	Shell   = "EFI Internal Shell" // it goes on with its own shell, which only runs without Secure Boot
)
