package publish

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"lethe/authdb"
	"lethe/bundle"
	"lethe/fault"
	"lethe/geoip"
	"lethe/spec"
)

// input is one of the bundle's files besides the segments, and what its source
// looked like when it was read.
type input struct {
	file  bundle.File
	size  int64
	mtime time.Time
}

// refresh reads the other inputs anew. One that is not valid is reported and
// stays as it was.
func (p *Publisher) refresh(ctx context.Context) error {
	return errors.Join(p.refreshDirectory(ctx), p.refreshSpec(), p.refreshGeoIP())
}

// complete reports whether there is some good version of every input.
func (p *Publisher) complete() bool {
	wanted := 2
	if p.cfg.GeoIP != "" {
		wanted = 3
	}
	return len(p.inputs) == wanted
}

func (p *Publisher) refreshDirectory(ctx context.Context) error {
	d, err := p.cfg.Source.Directory(ctx)
	if err != nil {
		return err
	}
	if err := d.Validate(); err != nil {
		return fault.Wrap(fault.Invalid, "publisher: the directory of locations is not valid", err)
	}
	b, err := json.Marshal(d)
	if err != nil {
		return err
	}
	return p.offer(bundle.DirectoryFile, b, true, input{})
}

func (p *Publisher) refreshSpec() error {
	node := spec.Default()
	if p.cfg.Spec != "" {
		b, err := os.ReadFile(p.cfg.Spec)
		if err == nil {
			node, err = spec.Parse(b)
		}
		if err != nil {
			return fault.Wrap(fault.Invalid, "publisher: the node specification is not valid", err).WithHint("the last good one stays published")
		}
	}
	b, err := json.Marshal(node)
	if err != nil {
		return err
	}
	return p.offer(bundle.NodeFile, b, true, input{})
}

func (p *Publisher) refreshGeoIP() error {
	if p.cfg.GeoIP == "" {
		delete(p.inputs, bundle.GeoIPFile)
		return nil
	}
	info, err := os.Stat(p.cfg.GeoIP)
	if was := p.inputs[bundle.GeoIPFile]; err == nil && info.Size() == was.size && info.ModTime().Equal(was.mtime) {
		return nil // reading and verifying 15 MB at every change would be most of the work
	}
	var b []byte
	if err == nil {
		b, err = os.ReadFile(p.cfg.GeoIP)
	}
	if err == nil {
		err = verifyGeoIP(b)
	}
	if err != nil {
		return fault.Wrap(fault.Invalid, "publisher: the GeoIP file is not valid", err).WithHint("the last good one stays published")
	}
	return p.offer(bundle.GeoIPFile, b, false, input{size: info.Size(), mtime: info.ModTime()})
}

func verifyGeoIP(b []byte) error {
	db, err := geoip.Open(b)
	if err != nil {
		return err
	}
	return db.Verify()
}

// offer stores an input if its content is new.
func (p *Publisher) offer(name string, content []byte, seal bool, in input) error {
	in.file = p.inputs[name].file
	if in.file.Name != "" {
		if _, digest := in.file.Content(); digest == sha256.Sum256(content) {
			p.inputs[name] = in
			return nil
		}
	}
	file, err := p.store(name, bytes.NewReader(content), seal)
	if err == nil {
		in.file = file
		p.inputs[name] = in
	}
	return err
}

// recover takes over what the directory holds, with the checks of a server
// whose clock stands where the last freshness statement was signed.
func (p *Publisher) recover() error {
	files, err := p.disk.list("manifest")
	if err != nil {
		return err
	}
	for _, f := range files {
		p.newest = max(p.newest, manifestVersion(f.path))
	}
	b, err := readAll(p.cfg.Dir, bundle.FreshnessPath)
	if err != nil {
		return err
	}
	f, err := bundle.Inspect[bundle.Freshness](b)
	if err != nil {
		return err
	}
	client, err := bundle.NewClient(bundle.Config{
		Root: p.cfg.Roots[len(p.cfg.Roots)-1], Seal: p.cfg.Seal, Fetch: bundle.Directory(p.cfg.Dir),
		Now: func() time.Time { return f.Issued },
	})
	if err != nil {
		return err
	}
	defer client.Close()
	set, _, err := client.Update(context.Background())
	if err != nil {
		return err
	}
	defer set.Close()
	segments, err := set.Segments()
	if err != nil {
		return err
	}
	return p.adopt(f, set.Manifest(), segments)
}

// adopt takes the published bundle over.
func (p *Publisher) adopt(f bundle.Freshness, m bundle.Manifest, segments []*authdb.Segment) error {
	p.manifest, p.digest = m, f.Manifest
	for _, file := range m.Files {
		if i := slices.IndexFunc(segments, func(s *authdb.Segment) bool { return bundle.SegmentName(s.Head().Span) == file.Name }); i >= 0 {
			p.segments = append(p.segments, segment{file, segments[i]})
		} else {
			p.inputs[file.Name] = input{file: file}
		}
	}
	slices.SortFunc(p.segments, func(a, b segment) int { return cmp.Compare(a.Head().From, b.Head().From) })
	p.seam, p.seamAt = len(p.segments), p.now()
	for _, s := range p.segments {
		if s.Head().HashKey != p.cfg.HashKey.Reveal() {
			return fault.New(fault.Conflict, "publisher: the published database has another hash key")
		}
	}
	return nil
}

func readAll(dir, path string) ([]byte, error) {
	b, err := os.ReadFile(directory(dir).path(path))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fault.Wrap(fault.NotFound, "publisher: nothing is published yet", err)
	}
	return b, err
}

// manifestVersion returns the version in a manifest's path, 0 if there is
// none.
func manifestVersion(path string) uint64 {
	text := strings.TrimSuffix(strings.TrimPrefix(path, "manifest/"), ".json")
	v, err := strconv.ParseUint(text, 10, 64)
	if err != nil || bundle.ManifestPath(v) != path {
		return 0
	}
	return v
}

// sweepEvery spares reading every manifest at every change.
const sweepEvery = time.Minute

// sweep removes manifests that were replaced long enough ago and the files
// that no remaining manifest lists.
func (p *Publisher) sweep() error {
	now := p.cfg.Now()
	if now.Before(p.swept.Add(sweepEvery)) {
		return nil
	}
	manifests, err := p.disk.list("manifest")
	if err != nil {
		return failed(err)
	}
	slices.SortFunc(manifests, func(a, b stored) int {
		return cmp.Compare(manifestVersion(b.path), manifestVersion(a.path))
	})
	used := map[string]bool{}
	var kept int
	var replaced time.Time // when the manifest after the one looked at came
	for _, m := range manifests {
		keep := kept < p.cfg.Keep || replaced.After(now.Add(-p.cfg.KeepFor))
		replaced = m.since
		b, err := readAll(p.cfg.Dir, m.path)
		if err != nil {
			return failed(err)
		}
		list, err := bundle.Inspect[bundle.Manifest](b)
		if !keep || err != nil {
			if err := p.disk.remove(m.path); err != nil {
				return failed(err)
			}
			continue
		}
		kept++
		for _, f := range list.Files {
			used[bundle.FilePath(f.SHA256)] = true
		}
	}
	files, err := p.disk.list("files")
	for _, f := range files {
		if err == nil && !used[f.path] {
			err = p.disk.remove(f.path)
		}
	}
	if err != nil {
		return failed(err)
	}
	p.swept = now
	return nil
}
