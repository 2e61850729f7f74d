package root

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/ulikunitz/xz"

	"lethe/image/layout"
	"lethe/image/tree"
)

// choice is kernel modules that go into a tree; what they need goes with them.
type choice struct {
	name string // of the module, with dashes or underscores
	why  string
	ask  bool // loaded when a device asks for it; else always
}

// modinfo is what a module says about itself (modinfo(8)): the section .modinfo,
// strings "key=value", each with a null byte behind it.
type modinfo struct {
	name     string
	depends  []string // names of modules that must be loaded before
	before   []string // soft dependencies "pre:", names or aliases
	alias    []string
	firmware []string
}

// moduleName returns a module's name as the kernel writes it.
func moduleName(s string) string { return strings.ReplaceAll(s, "-", "_") }

// maxModule bounds an unpacked module, in bytes. The largest of Debian's, amdgpu, has 30 MB.
const maxModule = 64 << 20

// unpack returns a module's ELF file, with the signature behind it.
func unpack(packed []byte) ([]byte, error) {
	r, err := xz.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(r, maxModule+1))
	if err == nil && len(b) > maxModule {
		err = fmt.Errorf("more than %d bytes", maxModule)
	}
	return b, err
}

// parseModinfo reads what a module says about itself.
func parseModinfo(ko []byte) (modinfo, error) {
	var m modinfo
	f, err := elf.NewFile(bytes.NewReader(ko))
	if err != nil {
		return m, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return m, fmt.Errorf("no section .modinfo")
	}
	b, err := section.Data()
	if err != nil {
		return m, err
	}
	for line := range strings.SplitSeq(string(b), "\x00") {
		key, value, _ := strings.Cut(line, "=")
		switch key {
		case "name":
			m.name = value
		case "depends":
			for d := range strings.SplitSeq(value, ",") {
				if d != "" {
					m.depends = append(m.depends, moduleName(d))
				}
			}
		case "softdep":
			m.soft(value)
		case "alias":
			m.alias = append(m.alias, value)
		case "firmware":
			m.firmware = append(m.firmware, value)
		}
	}
	if m.name == "" {
		return m, fmt.Errorf("no name in .modinfo")
	}
	return m, nil
}

// soft reads a soft dependency (modprobe.d(5)).
func (m *modinfo) soft(value string) {
	var list *[]string
	for f := range strings.FieldsSeq(value) {
		switch {
		case f == "pre:":
			list = &m.before
		case f == "post:": // for what comes later nobody waits here
			list = nil
		case list != nil:
			*list = append(*list, f)
		}
	}
}

// addModules adds the directory of modules that [layout] describes.
func addModules(t *tree.Tree, dir string, all *pool, choices []choice) error {
	set := moduleSet{pool: all, chosen: map[string]bool{}}
	ask := map[string]bool{}
	var load []string
	for _, c := range choices {
		name := moduleName(c.name)
		if err := set.take(name, nil); err != nil {
			return err
		}
		if c.ask {
			ask[name] = true
		} else {
			load = append(load, name)
		}
	}
	for _, name := range set.soft {
		if !slices.Contains(load, name) {
			load = append(load, name)
		}
	}
	var order, aliases []string
	var err error
	for _, info := range set.order {
		order = append(order, info.name)
		if ask[info.name] {
			for _, a := range info.alias {
				aliases = append(aliases, fmt.Sprintf("alias %s %s", a, info.name))
			}
		}
		err = errors.Join(err, t.File(dir+"/"+layout.Modules+"/"+info.name+".ko", 0o644, all.modules[info.name].pkg, set.content[info.name]))
	}
	slices.Sort(aliases)
	for name, list := range map[string][]string{layout.Order: order, layout.Aliases: slices.Compact(aliases), layout.Load: load} {
		err = errors.Join(err, t.File(dir+"/"+name, 0o644, ours, []byte(strings.Join(append(list, ""), "\n"))))
	}
	return err
}

// moduleSet collects modules in an order in which they can be loaded.
type moduleSet struct {
	*pool
	order   []modinfo
	content map[string][]byte
	chosen  map[string]bool
	soft    []string // modules that are wanted by another without being linked to it
}

// take adds a module after what it needs; path is who needs it.
func (s *moduleSet) take(name string, path []string) error {
	if s.chosen[name] {
		if slices.Contains(path, name) {
			return fmt.Errorf("module %s needs itself, by %v", name, path)
		}
		return nil
	}
	s.chosen[name] = true
	packed, ok := s.modules[name]
	if !ok {
		return fmt.Errorf("there is no module %s, needed by %v", name, path)
	}
	b, err := unpack(packed.packed)
	if err != nil {
		return fmt.Errorf("module %s: %w", name, err)
	}
	info, err := parseModinfo(b)
	if err != nil {
		return fmt.Errorf("module %s: %w", name, err)
	}
	if info.name != name {
		return fmt.Errorf("module %s says that it is %s", name, info.name)
	}
	for _, d := range info.depends {
		if err := s.take(d, append(path, name)); err != nil {
			return err
		}
	}
	// A soft dependency may be an alias, or built into the kernel: it need not be there.
	for _, d := range info.before {
		if _, ok := s.modules[moduleName(d)]; ok {
			s.soft = append(s.soft, moduleName(d))
			if err := s.take(moduleName(d), append(path, name)); err != nil {
				return err
			}
		}
	}
	if s.content == nil {
		s.content = map[string][]byte{}
	}
	s.content[name] = b
	s.order = append(s.order, info)
	return nil
}
