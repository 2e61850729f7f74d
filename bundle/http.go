package bundle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"lethe/fault"
)

// HTTP fetches from a web server: the control plane's node API, any static
// file server, a CDN. Its errors hold no address.
type HTTP struct {
	Client *http.Client // its TLS settings are the caller's matter
	Base   string       // URL under which the published directory is served
}

// Get implements [Fetcher].
func (h HTTP) Get(ctx context.Context, path string, max int64) (io.ReadCloser, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(h.Base, "/")+"/"+path, nil)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, "bundle: the source's URL makes no sense", err)
	}
	// A transparently decompressed body would hide the size that was signed.
	r.Header.Set("Accept-Encoding", "identity")
	answer, err := h.Client.Do(r)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, "bundle: the source does not answer", err)
	}
	switch {
	case answer.StatusCode == http.StatusOK && answer.ContentLength <= max:
		return answer.Body, nil
	case answer.StatusCode == http.StatusOK:
		err = refuse(TooLarge, nil)
	case answer.StatusCode == http.StatusNotFound:
		err = fault.New(fault.NotFound, "bundle: the source lacks a part")
	default:
		err = fault.New(fault.Unavailable, fmt.Sprintf("bundle: the source answers with status %d", answer.StatusCode))
	}
	_ = answer.Body.Close()
	return nil, err
}

// Directory fetches from a published directory on the same machine.
type Directory string

// Get implements [Fetcher].
func (d Directory) Get(_ context.Context, path string, _ int64) (io.ReadCloser, error) {
	f, err := os.Open(filepath.Join(string(d), filepath.FromSlash(path)))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fault.Wrap(fault.NotFound, "bundle: the directory lacks a part", err)
	case err != nil:
		return nil, fault.Wrap(fault.Unavailable, "bundle: the directory cannot be read", err)
	}
	return f, nil
}
