package client_test

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lethe/client"
	"lethe/internal/testkit"
	"lethe/location"
	"lethe/protocol"
)

// asCharon makes the test binary stand in for a charon that misbehaves.
const asCharon = "LETHE_TEST_AS_CHARON"

// charonMain serves the control socket that the configuration names.
func charonMain(mode string) {
	b, _ := os.ReadFile(os.Getenv("STRONGSWAN_CONF"))
	_, path, _ := strings.Cut(string(b), "unix://")
	path, _, _ = strings.Cut(path, "\n")
	l, err := net.Listen("unix", path)
	if err != nil {
		return
	}
	c, err := l.Accept()
	if err != nil {
		return
	}
	for {
		var head [4]byte
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return
		}
		b := make([]byte, binary.BigEndian.Uint32(head[:]))
		if _, err := io.ReadFull(c, b); err != nil {
			return
		}
		for _, packet := range answerOf(mode, b[0], string(b[2:2+b[1]])) {
			_, _ = c.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(packet))), packet...))
		}
		if string(b[2:2+b[1]]) == "initiate" {
			_ = os.WriteFile(path+".asked", nil, 0o600)
		}
	}
}

// answerOf returns the packets that answer one of the helper's.
func answerOf(mode string, kind byte, name string) []string {
	value := func(key, value string) string {
		return "\x03" + string([]byte{byte(len(key))}) + key + string([]byte{0, byte(len(value))}) + value
	}
	list := func(key string, items ...string) string {
		s := "\x04" + string([]byte{byte(len(key))}) + key
		for _, i := range items {
			s += "\x05" + string([]byte{0, byte(len(i))}) + i
		}
		return s + "\x06"
	}
	says := func(line string) string { return "\x07" + "\x0bcontrol-log" + value("msg", line) }
	no := "\x01" + value("success", "no")
	switch {
	case kind == 3 || kind == 4: // events are wanted, or no longer
		return []string{"\x05"}
	case name == "stats" && mode == "bare":
		return []string{"\x01" + list("plugins", "vici")}
	case name == "stats" && mode == "rude":
		return []string{no}
	case name == "stats":
		return []string{"\x01" + list("plugins", "kernel-libipsec", "eap-mschapv2", "eap-identity")}
	case name == "get-algorithms" && mode == "dumb", name == "load-shared" && mode == "strict":
		return []string{no}
	case name == "initiate" && mode == "choosy":
		return []string{says("received NO_PROPOSAL_CHOSEN notify error"), no}
	case name == "initiate" && mode == "slow": // and no answer
		return []string{says("server requested EAP_MSCHAPV2 authentication (id 0x01)")}
	case name == "list-sas" && mode == "deaf":
		return []string{no}
	case name == "list-sas" && mode == "odd":
		return []string{"\x07" + "\x07list-sa" + "\x01\x05lethe" + list("local-vips", "10.66.0.9", "x", "::ffff:10.0.0.1") + "\x02", "\x01"}
	}
	return []string{"\x01"}
}

// TestCharonMisbehaves: whatever charon does not do, the app says so, tries again behind the lock and can be
// told to stop.
func TestCharonMisbehaves(t *testing.T) {
	r := newRig(t)
	r.server.Endpoints = append(r.server.Endpoints, location.Endpoint{Protocol: protocol.IKEv2, Port: 500})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	modeFile, program := filepath.Join(r.dir, "mode"), filepath.Join(r.dir, "fake")
	testkit.Install(t, program, fmt.Sprintf("#!/bin/sh\n%s=$(cat %s) GORACE=atexit_sleep_ms=0 exec %s\n", asCharon, modeFile, self))
	r.startHelper("--charon", program)
	ask := func(mode string) {
		t.Helper()
		r.write(modeFile, []byte(mode), 0o644)
		target := r.target(client.Auto, vpnPassword)
		target.Protocol = client.IKEv2
		r.call(client.Request{Op: client.OpConnect, Target: target})
	}
	for mode, want := range map[string]string{
		"bare": "charon has no kernel-libipsec", "rude": "charon did not take its orders", "dumb": "charon did not take its orders",
		"strict": "charon did not take its orders", "choosy": "server and strongSwan agree on no algorithms", "deaf": "charon did not take its orders",
		"bored": "the server gave no tunnel address or no resolver", "odd": "the server gave no tunnel address or no resolver",
	} {
		ask(mode)
		r.eventually(20*time.Second, mode+": "+want, func() bool {
			s := r.call(client.Request{Op: client.OpStatus})
			return s.State == client.Connecting && s.Lock && s.Problem != nil && s.Problem.Text == want && s.Attempts > 1
		})
	}
	ask("slow")
	r.eventually(10*time.Second, "the server is said to want the proof", func() bool {
		_, err := os.Stat(filepath.Join(r.dir, "run", "charon", "vici.asked"))
		return err == nil
	})
	start := time.Now()
	if s := r.call(client.Request{Op: client.OpDisconnect}); s.State != client.Disconnected {
		t.Errorf("%+v", s)
	}
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("disconnecting took %s", d)
	}
}
