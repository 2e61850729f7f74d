package build

import (
	"archive/zip"
	"bytes"
	"context"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"lethe/image/deb"
	"lethe/image/lock"
	"lethe/image/root"
	"lethe/image/tree"
)

// bill is a software bill of materials (CycloneDX 1.6, JSON). Its serial number is made of
// what it lists and its time is the commit's, so that it is the same for every builder.
type bill struct {
	Format       string      `json:"bomFormat"`
	Spec         string      `json:"specVersion"`
	SerialNumber string      `json:"serialNumber"`
	Version      int         `json:"version"`
	Metadata     metadata    `json:"metadata"`
	Components   []component `json:"components"`
}

type metadata struct {
	Timestamp string    `json:"timestamp"`
	Component component `json:"component"`
}

type component struct {
	Type       string     `json:"type"`
	Ref        string     `json:"bom-ref,omitempty"`
	Name       string     `json:"name"`
	Version    string     `json:"version"`
	Scope      string     `json:"scope,omitempty"` // "required" is in the image, "excluded" was only used to make it
	Hashes     []hashed   `json:"hashes,omitempty"`
	Licenses   []licensed `json:"licenses,omitempty"`
	PURL       string     `json:"purl,omitempty"`
	Properties []property `json:"properties,omitempty"`
}

type hashed struct {
	Algorithm string `json:"alg"`
	Content   string `json:"content"`
}

type licensed struct {
	License struct {
		Name string `json:"name"`
	} `json:"license"`
}

type property struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

func sum(d deb.Digest) []hashed { return []hashed{{"SHA-256", d.String()}} }

func names(licences []string) (all []licensed) {
	for _, l := range licences {
		var x licensed
		x.License.Name = l
		all = append(all, x)
	}
	return all
}

// bill lists what is in an image and what made it.
func (j *job) bill(f *flavour, r *root.Result, licences map[string][]string) ([]byte, error) {
	files := map[string]int{}
	for _, t := range []*tree.Tree{r.Root, r.Initramfs} {
		for e := range t.All() {
			if !e.Mode.IsDir() {
				files[e.From]++
			}
		}
	}
	var all []component
	for _, p := range j.lock.Packages {
		in := slices.Contains(p.Sets, set(f.name))
		if !in && !slices.Contains(p.Sets, lock.Tools) {
			continue
		}
		scope := "excluded"
		if in && (files[p.Name] > 0 || strings.HasPrefix(p.Name, "linux-")) { // the kernel itself is in no tree
			scope = "required"
		}
		purl := fmt.Sprintf("pkg:deb/debian/%s@%s?arch=%s&distro=%s", url.PathEscape(p.Name), url.QueryEscape(string(p.Version)), p.Architecture, p.Suite)
		all = append(all, component{Type: "library", Ref: purl, Name: p.Name, Version: string(p.Version), Scope: scope, Hashes: sum(p.File.SHA256),
			Licenses: names(licences[p.Name]), PURL: purl, Properties: []property{{"lethe:files", strconv.Itoa(files[p.Name])}, {"lethe:source", p.Source + " " + string(p.SourceVersion)}}})
	}
	linked, err := j.linked(f, licences)
	if err != nil {
		return nil, err
	}
	all = append(all, linked...)
	slices.SortFunc(all, func(a, b component) int { return strings.Compare(a.PURL, b.PURL) })
	list, err := json.Marshal(all)
	if err != nil {
		return nil, err
	}
	id := digest(append([]byte(j.source.Commit+f.name), list...))
	id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80 // RFC 9562, version 8
	b, err := json.MarshalIndent(bill{Format: "CycloneDX", Spec: "1.6", SerialNumber: fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:16]), Version: 1,
		Metadata: metadata{j.source.Epoch.Format(time.RFC3339), component{Type: "operating-system", Ref: "image", Name: "lethe-" + f.name, Version: strconv.FormatUint(j.version, 10)}}, Components: all}, "", " ")
	return append(b, '\n'), err
}

// linked lists the programs, the toolchain and the modules that are in the programs, which they say themselves.
func (j *job) linked(f *flavour, licences map[string][]string) (all []component, err error) {
	version := strconv.FormatUint(j.version, 10)
	modules := map[string]bool{}
	for name, b := range j.programs[tags(f.name)] {
		all = append(all, component{Type: "application", Ref: "program/" + name, Name: name, Version: version, Scope: "required", Hashes: sum(digest(b)),
			PURL: "pkg:generic/lethe@" + j.source.Commit + "#cmd/" + name})
		info, err := buildinfo.Read(bytes.NewReader(b))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		for _, m := range info.Deps {
			modules[m.Path+" "+m.Version] = true
		}
	}
	for _, m := range j.lock.Modules {
		if m.Path == toolchainModule {
			purl := "pkg:golang/std@" + strings.TrimPrefix(j.lock.Toolchain, "go")
			all = append(all, component{Type: "library", Ref: purl, Name: "std", Version: j.lock.Toolchain, Scope: "required", Hashes: sum(m.Zip.SHA256), Licenses: names([]string{"BSD-3-Clause"}), PURL: purl})
		}
		if modules[m.Path+" "+m.Version] {
			purl := "pkg:golang/" + m.Path + "@" + m.Version
			all = append(all, component{Type: "library", Ref: purl, Name: m.Path, Version: m.Version, Scope: "required", Hashes: sum(m.Zip.SHA256), Licenses: names(licences[m.Path+" "+m.Version]), PURL: purl})
		}
	}
	return all, nil
}

// licences reads under which licences the inputs are, by package name or by module and version.
func (j *job) licences(ctx context.Context) (map[string][]string, error) {
	type found struct {
		name  string
		known []string
		as    string // the package that says it instead
	}
	results := make([]found, len(j.lock.Packages)+len(j.lock.Modules))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallel())
	for i, p := range j.lock.Packages {
		if !slices.ContainsFunc(p.Sets, j.needs) {
			continue
		}
		group.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			b, err := j.Store.Get(p.File.SHA256)
			if err != nil {
				return inInput(p.File.Path, err)
			}
			known, as, err := packageLicences(p.Name, b)
			results[i] = found{p.Name, known, as}
			return inInput(p.File.Path, err)
		})
	}
	for i, m := range j.lock.Modules {
		if m.Zip == (deb.File{}) || m.Path == toolchainModule {
			continue
		}
		group.Go(func() error {
			b, err := j.Store.Get(m.Zip.SHA256)
			if err == nil {
				results[len(j.lock.Packages)+i] = found{name: m.Path + " " + m.Version, known: moduleLicences(b)}
			}
			return inInput(m.Path, err)
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	all := map[string][]string{}
	for _, r := range results {
		all[r.name] = r.known
	}
	for _, r := range results {
		if r.as != "" && r.known == nil {
			all[r.name] = all[r.as]
		}
	}
	return all, nil
}

// packageLicences reads a package's copyright file (Debian Policy 12.5), or says which
// package's it shares.
func packageLicences(name string, b []byte) (known []string, as string, err error) {
	doc := "usr/share/doc/" + name
	_, err = deb.ReadArchive(bytes.NewReader(b), func(e deb.Entry, content io.Reader) error {
		switch {
		case e.Path == doc && e.Type == deb.Symlink:
			as = path.Base(e.Target)
		case e.Path == doc+"/copyright" && e.Type == deb.Symlink:
			as = path.Base(path.Dir(e.Target))
		case e.Path == doc+"/copyright":
			text, err := io.ReadAll(io.LimitReader(content, 4<<20))
			known = debianLicences(string(text))
			return err
		}
		return nil
	})
	return known, as, err
}

// debianLicences are the short names in a copyright file that machines can read
// (Debian, copyright-format 1.0). Of another file nothing is guessed.
func debianLicences(text string) (all []string) {
	if !strings.HasPrefix(text, "Format:") {
		return []string{"see Debian's copyright file"}
	}
	for line := range strings.Lines(text) {
		if name, ok := strings.CutPrefix(line, "License:"); ok && strings.TrimSpace(name) != "" {
			all = append(all, strings.TrimSpace(name))
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// licenceMarks are words that only one licence has, in the order in which they are looked for.
var licenceMarks = [][2]string{
	{"Apache License", "Apache-2.0"}, {"Mozilla Public License Version 2.0", "MPL-2.0"}, {"Permission is hereby granted, free of charge", "MIT"},
	{"Permission to use, copy, modify, and/or distribute", "ISC"}, {"Neither the name of", "BSD-3-Clause"}, {"Redistribution and use in source and binary forms", "BSD-2-Clause"},
}

// moduleLicences looks into the licence file at a module's root.
func moduleLicences(b []byte) []string {
	z, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return nil
	}
	for _, f := range z.File {
		_, name, _ := strings.Cut(f.Name, "@")
		_, name, _ = strings.Cut(name, "/")
		if !slices.Contains([]string{"LICENSE", "LICENSE.md", "LICENSE.txt", "COPYING", "LICENCE"}, name) {
			continue
		}
		r, err := f.Open()
		if err != nil {
			return nil
		}
		text, err := io.ReadAll(io.LimitReader(r, 1<<20))
		_ = r.Close() // only read
		if err != nil {
			return nil
		}
		for _, m := range licenceMarks {
			if strings.Contains(strings.Join(strings.Fields(string(text)), " "), m[0]) {
				return []string{m[1]}
			}
		}
		return []string{"see " + name}
	}
	return nil
}
