package lock

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"lethe/fault"
	"lethe/image/deb"
	"lethe/image/store"
)

// Network is where inputs come from. All of it is untrusted.
type Network struct {
	// Mirrors are the roots of the archives, URLs without a slash at the end, by
	// the names that [Plan] gives them.
	Mirrors map[string]string
	Proxy   string        // Go module proxy, a URL without a slash at the end
	Stall   time.Duration // how long no byte may come; 0 means a minute
	Pause   time.Duration // before the second try, doubled before the third; 0 means a second
}

const (
	tries    = 3
	parallel = 4 // downloads at once
)

// url returns where path of an archive is.
func (n *Network) url(archive, path string) (string, error) {
	root := n.Mirrors[archive]
	if root == "" {
		return "", fault.New(fault.Invalid, "it is not known where the archive "+archive+" is").WithHint("name a mirror of it: --mirror URL, or --security-mirror URL")
	}
	// A plus sign is meant as it stands; a tilde too.
	return root + "/" + strings.ReplaceAll(path, "+", "%2B"), nil
}

// open asks for url from an offset on. Errors are faults: NotFound when the
// server has no such file, Unavailable when trying again may help.
func (n *Network) open(ctx context.Context, url string, offset int64) (io.ReadCloser, int64, error) {
	whole := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	stall := n.Stall
	if stall == 0 {
		stall = time.Minute
	}
	b := &body{cancel: cancel, stall: stall}
	b.timer = time.AfterFunc(stall, func() { cancel(errStalled) })
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		b.stop()
		return nil, 0, fault.Wrap(fault.Invalid, "an archive's address is no URL", err).WithHint("see --mirror, --security-mirror and --go-proxy")
	}
	if offset > 0 {
		request.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	request.Header.Set("Accept-Encoding", "identity")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		stalled := errors.Is(context.Cause(ctx), errStalled)
		b.stop()
		switch {
		case whole.Err() != nil:
			return nil, 0, whole.Err()
		case stalled:
			err = errStalled
		}
		return nil, 0, unreachable(url, err)
	}
	b.ReadCloser = response.Body
	switch response.StatusCode {
	case http.StatusOK:
		return b, 0, nil
	case http.StatusPartialContent:
		var start int64
		if _, err := fmt.Sscanf(response.Header.Get("Content-Range"), "bytes %d-", &start); err == nil {
			return b, start, nil
		}
	}
	b.Close()
	switch response.StatusCode {
	case http.StatusNotFound, http.StatusGone:
		return nil, 0, fault.New(fault.NotFound, "the archive does not have "+url)
	case http.StatusRequestedRangeNotSatisfiable:
		return n.open(whole, url, 0)
	}
	return nil, 0, fault.New(fault.Unavailable, fmt.Sprintf("the archive answers %s for %s", response.Status, url)).WithHint("try again later, or another mirror")
}

func unreachable(url string, err error) error {
	return fault.Wrap(fault.Unavailable, "cannot fetch "+url+": "+cause(err), err).WithHint("is the network up? Another mirror can be named with --mirror")
}

// cause is the last and plainest text of a chain of errors; addresses here are
// those of public archives.
func cause(err error) string {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err.Error()
		}
		err = next
	}
}

var errStalled = errors.New("no answer in time")

// body is a response that ends when nothing comes for a while.
type body struct {
	io.ReadCloser
	cancel context.CancelCauseFunc
	timer  *time.Timer
	stall  time.Duration
}

func (b *body) stop() {
	b.timer.Stop()
	b.cancel(nil)
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	b.timer.Reset(b.stall)
	return b.ReadCloser.Read(p)
}

// Close implements io.Closer.
func (b *body) Close() error {
	b.stop()
	return b.ReadCloser.Close()
}

// again runs do until it succeeds, fails for good, or has been tried often
// enough.
func (n *Network) again(ctx context.Context, do func() error) error {
	pause := n.Pause
	if pause == 0 {
		pause = time.Second
	}
	for try := 1; ; try++ {
		err := do()
		if err == nil || ctx.Err() != nil || try == tries || fault.Of(err) != fault.Unavailable {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		pause *= 2
	}
}

// bytes fetches something small whose digest is not known.
func (n *Network) bytes(ctx context.Context, url string, limit int64) (b []byte, err error) {
	err = n.again(ctx, func() error {
		r, _, err := n.open(ctx, url, 0)
		if err != nil {
			return err
		}
		defer r.Close()
		if b, err = io.ReadAll(io.LimitReader(r, limit+1)); ctx.Err() != nil {
			return ctx.Err()
		} else if err != nil {
			return unreachable(url, err)
		}
		if int64(len(b)) > limit {
			return fault.New(fault.Untrusted, fmt.Sprintf("%s is larger than %d bytes", url, limit))
		}
		return nil
	})
	return b, err
}

// put brings a file into the store from the first of urls that has it.
func (n *Network) put(ctx context.Context, s *store.Store, f deb.File, progress func(int64), urls ...string) error {
	if err := n.again(ctx, func() (err error) {
		for _, url := range urls {
			err = s.Put(ctx, f.SHA256, f.Size, func(ctx context.Context, offset int64) (io.ReadCloser, int64, error) {
				return n.open(ctx, url, offset)
			}, progress)
			if fault.Of(err) != fault.NotFound {
				break
			}
		}
		return err
	}); err != nil {
		return named(f.Path, err)
	}
	return nil
}

// named puts the name of a file before an error's text.
func named(name string, err error) error {
	var e *fault.Error
	if !errors.As(err, &e) || name == "" || strings.Contains(e.Text, name) {
		return err
	}
	return fault.Wrap(e.Kind, name+": "+e.Text, err).WithHint(e.Hint)
}
