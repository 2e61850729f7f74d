package inspect

import (
	"path"
	"slices"
	"strings"

	"lethe/image/tree"
)

// Unit is a service, socket or timer of systemd, with what holds it.
type Unit struct {
	Name     string            `json:"name"`
	Exec     string            `json:"exec,omitempty"`
	User     string            `json:"user,omitempty"`     // "" is root
	Settings map[string]string `json:"settings,omitempty"` // of the sandbox (systemd.exec(5)), as they stand; several values are joined
	Missing  []string          `json:"missing,omitempty"`  // settings of the sandbox that a service of ours should have and this one has not
	Listen   []string          `json:"listen,omitempty"`   // of a socket
}

// unitDirs are where systemd looks for units (systemd.unit(5)); a file in the first hides one of the same name behind it.
var unitDirs = []string{"etc/systemd/system", "run/systemd/system", "usr/local/lib/systemd/system", "usr/lib/systemd/system"}

// sandbox are the settings that hold a service: those that are asked for of every service.
var sandbox = []string{"CapabilityBoundingSet", "LockPersonality", "MemoryDenyWriteExecute", "NoNewPrivileges", "ProtectClock", "ProtectControlGroups", "ProtectHome",
	"ProtectHostname", "ProtectKernelLogs", "ProtectKernelModules", "ProtectSystem", "RestrictAddressFamilies", "RestrictNamespaces", "RestrictRealtime", "RestrictSUIDSGID",
	"SystemCallArchitectures", "SystemCallFilter"}

// more are settings that are shown and not asked for.
var more = []string{"AmbientCapabilities", "DevicePolicy", "DeviceAllow", "DynamicUser", "IPAddressDeny", "LimitCORE", "PrivateDevices", "PrivateIPC", "PrivateMounts", "PrivateNetwork",
	"PrivateTmp", "PrivateUsers", "ProcSubset", "ProtectKernelTunables", "ProtectProc", "ReadOnlyPaths", "ReadWritePaths", "StandardOutput", "StandardError", "UMask"}

// units reads all units that start something or listen.
func units(t *tree.Tree) []Unit {
	all, seen := []Unit{}, map[string]bool{}
	for _, dir := range unitDirs {
		for e := range t.All() {
			name := path.Base(e.Path)
			ext := path.Ext(name)
			if path.Dir(e.Path) != dir || seen[name] || ext != ".service" && ext != ".socket" && ext != ".timer" {
				continue
			}
			seen[name] = true
			if e.Link == "" { // a link is another name, or masks it
				all = append(all, unit(t, name, e.Path))
			}
		}
	}
	slices.SortFunc(all, func(a, b Unit) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// unit reads a unit and its drop-ins.
func unit(t *tree.Tree, name, file string) Unit {
	files := []string{file}
	for _, dir := range unitDirs {
		for e := range t.All() {
			if path.Dir(e.Path) == dir+"/"+name+".d" && path.Ext(e.Path) == ".conf" {
				files = append(files, e.Path)
			}
		}
	}
	values := map[string][]string{}
	for _, p := range files {
		settings(t, p, values)
	}
	u := Unit{Name: name, Exec: strings.Join(values["Service.ExecStart"], "; "), User: last(values["Service.User"]), Settings: map[string]string{}}
	for _, k := range append(slices.Clone(sandbox), more...) {
		if v := values["Service."+k]; len(v) > 0 {
			u.Settings[k] = strings.Join(v, " ")
		} else if slices.Contains(sandbox, k) && path.Ext(name) == ".service" {
			u.Missing = append(u.Missing, k)
		}
	}
	for k, v := range values {
		if strings.HasPrefix(k, "Socket.Listen") {
			for _, a := range v {
				u.Listen = append(u.Listen, strings.TrimPrefix(k, "Socket.Listen")+" "+a)
			}
		}
	}
	slices.Sort(u.Listen)
	return u
}

// settings reads systemd.syntax(7): an empty value takes back those before it.
func settings(t *tree.Tree, p string, values map[string][]string) {
	section, pending := "", ""
	for line := range lines(t, p) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";") {
			continue
		}
		line, pending = pending+line, ""
		if rest, ok := strings.CutSuffix(line, `\`); ok {
			pending = strings.TrimSpace(rest) + " "
			continue
		}
		if strings.HasPrefix(line, "[") {
			section = strings.Trim(line, "[]") + "."
			continue
		}
		k, v, ok := strings.Cut(line, "=")
		if !ok {
			continue
		}
		k = section + strings.TrimSpace(k)
		if v = strings.TrimSpace(v); v == "" {
			values[k] = nil
		} else {
			values[k] = append(values[k], v)
		}
	}
}

func last(all []string) string {
	if len(all) == 0 {
		return ""
	}
	return all[len(all)-1]
}

// Listener is something that takes packets from others.
type Listener struct {
	Program string `json:"program"` // or the socket unit
	Address string `json:"address"` // protocol and port, or a path
	When    string `json:"when"`
	Why     string `json:"why"`
}

// When listeners listen.
const (
	always    = "always"
	inactive  = "before activation"
	activated = "once activated"
	booting   = "when asked by its network"
)

// declared are the listeners of our programs and of those that they start, by the program's
// name: what no unit says. Tests of the running machine compare its sockets with this list.
var declared = []Listener{
	{"lethe-node", "tcp 7443", inactive, "says that it has no secrets (layout.ActivationPort)"},
	{"openvpn", "udp 1194", activated, "OpenVPN"},
	{"openvpn", "tcp 443", activated, "OpenVPN where nothing else passes"},
	{"charon-systemd", "udp 500", activated, "IKEv2"},
	{"charon-systemd", "udp 4500", activated, "IKEv2 and ESP behind address translation"},
	{"unbound", "udp 53 and tcp 53 of the tunnels", activated, "names, for customers in a tunnel"},
	{"systemd-networkd", "udp 68", booting, "the machine's address (DHCP)"},
}

// listeners are sockets of units, and what is declared of the programs that are there.
func listeners(t *tree.Tree, programs []Executable) []Listener {
	all := []Listener{}
	for _, u := range units(t) {
		for _, a := range u.Listen {
			all = append(all, Listener{u.Name, a, always, "a socket unit, when it is started"})
		}
	}
	for _, d := range declared {
		if slices.ContainsFunc(programs, func(e Executable) bool { return path.Base(e.Path) == d.Program }) {
			all = append(all, d)
		}
	}
	return all
}
