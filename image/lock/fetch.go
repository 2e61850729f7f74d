package lock

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"lethe/fault"
	"lethe/image/deb"
	"lethe/image/store"
)

// Fetcher fills a store.
type Fetcher struct {
	Store   *store.Store
	Net     *Network
	Sources bool // the source packages as well
}

// Progress is how far a [Fetcher] is. Its fields may be read at any time.
type Progress struct {
	Files, Bytes       atomic.Int64 // done
	AllFiles, AllBytes int64
	Mended             atomic.Int64 // files of the store that were damaged
}

// input is one file to fetch.
type input struct {
	file deb.File
	urls []string
}

// Fetch brings every input of l that the build needs into the store. What is
// there already is verified; what is damaged is fetched anew. begin is called
// once, before the first byte, with what will be counted.
func (f *Fetcher) Fetch(ctx context.Context, l *Lock, begin func(*Progress)) (*Progress, error) {
	inputs, err := f.inputs(l)
	if err != nil {
		return nil, err
	}
	p := &Progress{AllFiles: int64(len(inputs))}
	for _, i := range inputs {
		p.AllBytes += i.file.Size
	}
	if begin != nil {
		begin(p)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for _, i := range inputs {
		group.Go(func() error {
			if err := f.one(ctx, i, p); err != nil {
				return err
			}
			p.Files.Add(1)
			return nil
		})
	}
	return p, group.Wait()
}

func (f *Fetcher) one(ctx context.Context, i input, p *Progress) error {
	if f.Store.Has(i.file.SHA256, i.file.Size) {
		switch err := f.Store.Check(i.file.SHA256); {
		case err == nil:
			p.Bytes.Add(i.file.Size)
			return nil
		case fault.Of(err) != fault.Untrusted:
			return err
		}
		p.Mended.Add(1)
		if err := f.Store.Remove(i.file.SHA256); err != nil {
			return err
		}
	}
	return f.Net.put(ctx, f.Store, i.file, func(n int64) { p.Bytes.Add(n) }, i.urls...)
}

// inputs lists each file once.
func (f *Fetcher) inputs(l *Lock) (all []input, err error) {
	seen := map[deb.Digest]bool{}
	add := func(file deb.File, url string, e error) {
		if err == nil {
			err = e
		}
		if !seen[file.SHA256] {
			seen[file.SHA256] = true
			all = append(all, input{file, []string{url}})
		}
	}
	archived := func(suite string, file deb.File) {
		url, e := f.Net.url(l.archive(suite), file.Path)
		add(file, url, e)
	}
	for _, p := range l.Packages {
		archived(p.Suite, p.File)
	}
	for _, s := range l.Sources {
		for _, file := range s.Files {
			if f.Sources {
				archived(s.Suite, file)
			}
		}
	}
	for _, m := range l.Modules {
		for _, x := range []struct {
			file   deb.File
			ending string
		}{{m.Zip, ".zip"}, {m.Mod, ".mod"}} {
			if x.file != (deb.File{}) {
				url, e := f.Net.moduleURL(m, x.ending)
				x.file.Path = m.Path + "@" + m.Version + x.ending
				add(x.file, url, e)
			}
		}
	}
	return all, err
}

// maxIndex bounds an index without its compression; Debian's largest has 60 MB.
const maxIndex = 512 << 20

func unpack(ending string, b []byte) ([]byte, error) {
	r, err := deb.Decompress(ending, bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	out, err := io.ReadAll(io.LimitReader(r, maxIndex+1))
	if err == nil && len(out) > maxIndex {
		err = fmt.Errorf("more than %d bytes unpacked", maxIndex)
	}
	return out, err
}

// indexURLs are where an index may be: under its digest, which stays right while
// the archive changes, and under its name.
func (m *Maker) indexURLs(release *deb.Release, suite *Suite, f deb.File) (urls []string) {
	paths := []string{f.Path}
	if release.ByHash {
		dir := f.Path[:lastSlash(f.Path)]
		paths = []string{dir + "/by-hash/SHA256/" + f.SHA256.String(), f.Path}
	}
	for _, path := range paths {
		if url, err := m.Net.url(suite.Archive, path); err == nil {
			urls = append(urls, url)
		}
	}
	return urls
}

func lastSlash(s string) int {
	for i := len(s) - 1; i > 0; i-- {
		if s[i] == '/' {
			return i
		}
	}
	return 0
}
