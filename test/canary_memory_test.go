package test

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lethe/canary"
	"lethe/lab"
)

// kernel searches what the kernel of the provider's machines remembers of the
// network: everything in /proc/net, connection tracking among it, the firewall,
// routes with their exceptions, neighbours, TCP metrics, and the kernel's log since the
// test began.
func (h *hunt) kernel(t *testing.T) (hits []canary.Hit) {
	t.Helper()
	for _, m := range h.service() {
		root := fmt.Sprintf("/proc/%d/net", m.Init)
		_ = filepath.WalkDir(root+"/", func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return nil
			}
			b, err := os.ReadFile(path)
			if err == nil { // some can only be written
				hits = append(hits, h.lookAt("kernel:"+m.Name+"/net/"+strings.TrimPrefix(path, root+"/"), b)...)
			}
			return nil
		})
		for name, command := range map[string]string{
			"nft": "nft list ruleset", "tcp_metrics": "ip tcp_metrics show", "neighbours": "ip neigh show nud all",
			"routes4": "ip -4 route show table all", "routes6": "ip -6 route show table all",
			"cache4": "ip -4 route show cache", "cache6": "ip -6 route show cache", "rules": "ip rule show", "links": "ip -d -s address show",
		} {
			f := strings.Fields(command)
			out, err := m.Run(deadline(t), f[0], f[1:]...)
			if err != nil {
				t.Fatal(err)
			}
			hits = append(hits, h.lookAt("kernel:"+m.Name+"/"+name, []byte(out))...)
		}
	}
	log, _ := kernelLog(t, h.logged+1)
	return append(hits, h.lookAt("kernel:log", []byte(strings.Join(log, "\n")))...)
}

// kernelLog returns the lines of the kernel's log from a sequence number on, and the
// last one's (Documentation/ABI/testing/dev-kmsg).
func kernelLog(t testing.TB, from uint64) (lines []string, last uint64) {
	t.Helper()
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal("the kernel's log: ", err)
	}
	defer unix.Close(fd)
	for b := make([]byte, 8192); ; {
		n, err := unix.Read(fd, b)
		switch err {
		case nil:
			f := strings.SplitN(string(b[:n]), ",", 3)
			if last, err = strconv.ParseUint(f[1], 10, 64); err != nil {
				t.Fatal("the kernel's log: ", err)
			}
			if last >= from {
				lines = append(lines, string(b[:n]))
			}
		case unix.EPIPE, unix.EINTR: // overwritten meanwhile
		default:
			return lines, last
		}
	}
}

// nameless searches open and mapped files that no path leads to, memfds among
// them, of the provider's processes.
func (h *hunt) nameless(t *testing.T) (hits []canary.Hit) {
	t.Helper()
	for _, m := range h.service() {
		pids, err := m.PIDs()
		if err != nil {
			t.Fatal(err)
		}
		for _, pid := range pids {
			paths, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
			mapped, _ := filepath.Glob(fmt.Sprintf("/proc/%d/map_files/*", pid))
			seen := map[[2]uint64]bool{}
			for _, path := range append(paths, mapped...) {
				target, err := os.Readlink(path)
				var st unix.Stat_t
				if err != nil || !strings.HasSuffix(target, " (deleted)") || unix.Stat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || seen[[2]uint64{st.Dev, st.Ino}] {
					continue
				}
				f, err := os.Open(path)
				if err != nil {
					continue // closed meanwhile
				}
				seen[[2]uint64{st.Dev, st.Ino}] = true
				name := strings.TrimSuffix(strings.TrimPrefix(target, "/memfd:"), " (deleted)")
				more, err := h.look("fd:"+m.Name+"/"+program(pid)+"/"+name, f, st.Size)
				f.Close()
				if err != nil {
					t.Errorf("%s of %s: %v", name, m.Name, err)
				}
				hits = append(hits, more...)
			}
		}
	}
	return hits
}

// program returns the name of a process's program.
func program(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return strings.TrimSpace(string(b))
}

// maxRegion bounds what is read of one mapping. Larger ones are the shadow memory
// of the race detector, which holds no data of the program.
const maxRegion = 1 << 30

// memory searches the memory of the provider's processes, as far as it exists.
func (h *hunt) memory(t *testing.T) (hits []canary.Hit) {
	t.Helper()
	for _, m := range h.service() {
		pids, err := m.PIDs()
		if err != nil {
			t.Fatal(err)
		}
		for _, pid := range pids {
			if name := program(pid); name != "sleep" && name != "" {
				hits = append(hits, h.memoryOf(pid, "memory:"+m.Name+"/"+name)...)
			}
		}
	}
	return hits
}

func (h *hunt) memoryOf(pid int, surface string) (hits []canary.Hit) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	mem, err1 := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	pages, err2 := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil || err1 != nil || err2 != nil {
		return nil // it has ended
	}
	defer mem.Close()
	defer pages.Close()
	for line := range strings.Lines(string(maps)) {
		f := strings.Fields(line)
		from, to, _ := strings.Cut(f[0], "-")
		start, _ := strconv.ParseUint(from, 16, 64)
		end, _ := strconv.ParseUint(to, 16, 64)
		if !strings.HasPrefix(f[1], "rw") || end-start > maxRegion {
			continue
		}
		for _, run := range present(pages, start, end) {
			b := make([]byte, run[1]-run[0])
			n, _ := mem.ReadAt(b, int64(run[0])) // unmapped meanwhile: what was read
			hits = append(hits, h.lookAt(surface, b[:n])...)
		}
	}
	return hits
}

// present returns the parts of a mapping that are in memory (pagemap.rst in the
// kernel's documentation).
func present(pages *os.File, start, end uint64) (runs [][2]uint64) {
	size := uint64(os.Getpagesize())
	b := make([]byte, (end-start)/size*8)
	n, _ := pages.ReadAt(b, int64(start/size*8))
	for i := 0; i+8 <= n; i += 8 {
		if binary.NativeEndian.Uint64(b[i:])>>63 == 0 {
			continue
		}
		at := start + uint64(i)/8*size
		if k := len(runs); k > 0 && runs[k-1][1] == at {
			runs[k-1][1] += size
		} else {
			runs = append(runs, [2]uint64{at, at + size})
		}
	}
	return runs
}

// sampler reads the arguments and the environment of every process of a lab, again
// and again.
type sampler struct {
	stop, done chan struct{}
	began      time.Time
	spaces     map[uint64]string // inode of a network namespace to machine

	rounds int
	kept   map[string]map[string]bool // surface to contents
	known  map[int]string             // process to machine, "" for a foreign one
	looked map[int]int                // at how often a foreign process was looked
	guard  chan struct{}              // capacity 1: whoever has put something in may use the above
}

func newSampler(t *testing.T, l *lab.Lab) *sampler {
	s := &sampler{
		stop: make(chan struct{}), done: make(chan struct{}), began: time.Now(), spaces: map[uint64]string{},
		kept: map[string]map[string]bool{}, known: map[int]string{}, looked: map[int]int{}, guard: make(chan struct{}, 1),
	}
	for _, m := range l.Machines() {
		var st unix.Stat_t
		if err := unix.Stat(fmt.Sprintf("/proc/%d/ns/net", m.Init), &st); err != nil {
			t.Fatal(err)
		}
		s.spaces[st.Ino] = m.Name
	}
	go s.run()
	t.Cleanup(func() { close(s.stop); <-s.done })
	return s
}

// run takes a hundred rounds a second, or as many as the machine allows.
func (s *sampler) run() {
	defer close(s.done)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-tick.C:
			s.guard <- struct{}{}
			s.round()
			<-s.guard
		}
	}
}

func (s *sampler) round() {
	s.rounds++
	proc, err := os.Open("/proc")
	if err != nil {
		return
	}
	defer proc.Close()
	names, _ := proc.Readdirnames(-1)
	alive := map[int]bool{}
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		alive[pid] = true
		machine, ok := s.known[pid]
		// A process is born outside and then enters; look at strangers again, less and
		// less often.
		if n := s.looked[pid]; !ok || machine == "" && n&(n-1) == 0 {
			var st unix.Stat_t
			if unix.Stat("/proc/"+name+"/ns/net", &st) == nil {
				machine = s.spaces[st.Ino]
				s.known[pid] = machine
			}
		}
		s.looked[pid]++
		if machine != "" {
			s.keep(pid, machine)
		}
	}
	for pid := range s.known {
		if !alive[pid] {
			delete(s.known, pid)
			delete(s.looked, pid)
		}
	}
}

func (s *sampler) keep(pid int, machine string) {
	for kind, file := range map[string]string{"argv": "cmdline", "environ": "environ"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
		if err != nil || len(b) == 0 {
			continue
		}
		surface := kind + ":" + machine + "/" + program(pid)
		if s.kept[surface] == nil {
			s.kept[surface] = map[string]bool{}
		}
		s.kept[surface][string(b)] = true
	}
}

func (s *sampler) search(h *hunt) (hits []canary.Hit) {
	s.guard <- struct{}{}
	defer func() { <-s.guard }()
	for surface, contents := range s.kept {
		for b := range contents {
			hits = append(hits, h.lookAt(surface, []byte(b))...)
		}
	}
	return hits
}

func (s *sampler) stats() (rounds, kept int, seconds float64) {
	s.guard <- struct{}{}
	defer func() { <-s.guard }()
	for _, contents := range s.kept {
		kept += len(contents)
	}
	return s.rounds, kept, time.Since(s.began).Seconds()
}
