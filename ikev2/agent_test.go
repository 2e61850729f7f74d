package ikev2_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// agent is a server in another process, which can be killed. It says what its core is told.
type agent struct {
	cmd  *exec.Cmd
	said chan string
}

// startAgent starts an agent over a ledger.
func startAgent(t *testing.T, dir string, ledger *os.File) *agent {
	t.Helper()
	a := &agent{cmd: exec.Command("/proc/self/exe"), said: make(chan string, 1000)}
	in, err := json.Marshal(credentials())
	must(t, err)
	a.cmd.Env = append(os.Environ(), nested+"=agent", "DIR="+dir)
	a.cmd.Stdin, a.cmd.Stderr = strings.NewReader(string(in)), os.Stderr
	a.cmd.ExtraFiles = []*os.File{ledger}
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := a.cmd.StdoutPipe()
	must(t, err)
	must(t, a.cmd.Start())
	t.Cleanup(a.kill)
	go func() {
		for sc := bufio.NewScanner(out); sc.Scan(); {
			a.said <- sc.Text()
		}
	}()
	return a
}

func (a *agent) kill() {
	_ = a.cmd.Process.Kill()
	_ = a.cmd.Wait()
}

func (a *agent) await(t *testing.T, what string) {
	t.Helper()
	limit := time.After(10 * time.Second)
	var heard []string
	for {
		select {
		case l := <-a.said:
			if heard = append(heard, l); l == what {
				return
			}
		case <-limit:
			t.Fatalf("agent does not say %q but %q", what, heard)
		}
	}
}

// lone is the testing.TB of an agent.
type lone struct{ testing.TB }

func (lone) Helper()        {}
func (lone) Cleanup(func()) {}
func (lone) Fatal(a ...any) { fmt.Fprintln(os.Stderr, a...); os.Exit(1) }
func (lone) Errorf(f string, a ...any) {
	fmt.Fprintf(os.Stderr, f+"\n", a...)
}
func (lone) Fatalf(f string, a ...any) { fmt.Fprintf(os.Stderr, f+"\n", a...); os.Exit(1) }

// agentMain serves until it is killed.
func agentMain() int {
	var c credential
	if err := json.NewDecoder(os.Stdin).Decode(&c); err != nil {
		return 1
	}
	saved := c
	credentials = func() credential { return saved }
	s := launch(lone{}, config(os.Getenv("DIR")), os.NewFile(3, "ledger"))
	for heard := 0; ; time.Sleep(5 * time.Millisecond) {
		for _, call := range s.core.told.Entries()[heard:] {
			fmt.Println(call)
			heard++
		}
	}
}
