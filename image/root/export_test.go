package root

// Picked returns the table's packages with their patterns.
func Picked() map[string][]string {
	all := map[string][]string{}
	for _, p := range picks {
		all[p.pkg] = append(all[p.pkg], p.paths...)
	}
	return all
}

// Reasons returns every reason that a table gives.
func Reasons() (all []string) {
	for _, p := range picks {
		all = append(all, p.why)
	}
	for _, p := range programs {
		all = append(all, p.by)
	}
	for _, o := range byName {
		all = append(all, o.why)
	}
	for _, l := range links {
		all = append(all, l.why)
	}
	for _, d := range directories {
		all = append(all, d.why)
	}
	for _, p := range append(parameters, labParameters...) {
		all = append(all, p.why)
	}
	for _, f := range []string{VM, Hardware} {
		for _, c := range append(initramfsModules(f), rootModules(f)...) {
			all = append(all, c.why)
		}
	}
	return all
}

// Programs returns the paths of everything that is executed.
func Programs() (all []string) {
	for _, p := range programs {
		all = append(all, p.path)
	}
	return all
}

// Module is one of the tables of modules.
type Module struct {
	Name string
	Ask  bool
}

// Modules returns the modules of a flavour: of the initramfs and of the root.
func Modules(flavour string) (early, late []Module) {
	for _, c := range initramfsModules(flavour) {
		early = append(early, Module{moduleName(c.name), c.ask})
	}
	for _, c := range rootModules(flavour) {
		late = append(late, Module{moduleName(c.name), c.ask})
	}
	return early, late
}

// Things that are tested by themselves.
var (
	Inspect    = inspect
	ParseUsers = parseUsers
)

// ParseModinfo returns what a module says about itself.
func ParseModinfo(ko []byte) (name string, depends, before, alias, firmware []string, err error) {
	m, err := parseModinfo(ko)
	return m.name, m.depends, m.before, m.alias, m.firmware, err
}

// ParseObject returns what the dynamic loader needs to know of a file.
func ParseObject(b []byte) (interpreter, soname string, needed, runpath []string, err error) {
	o, err := parseObject(b)
	if o == nil {
		return "", "", nil, nil, err
	}
	return o.interpreter, o.soname, o.needed, o.runpath, err
}
