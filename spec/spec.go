// Package spec is the specification of a server's expected configuration, the
// part of it that every server shares and that the control plane publishes in
// the signed bundle.
//
// There is no field that could name a user, turn a log on or lower a floor:
// every number is checked against bounds that are compiled in, on both sides.
package spec

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"
)

// Node is the specification. All durations are whole seconds.
type Node struct {
	// PollSeconds is how often a server asks for a new bundle, 1 to 30. Jitter
	// of up to a quarter is taken off. Default 20.
	PollSeconds int `json:"poll_seconds"`
	// UsageSeconds is the time between two usage batches, at least
	// UsageFloor, at most a day. Default one hour.
	UsageSeconds int `json:"usage_seconds"`
	// KeepaliveSeconds is the OpenVPN ping interval, 1 to 60; a peer is dead
	// after six. Default 10.
	KeepaliveSeconds int `json:"keepalive_seconds"`
	// RenegotiateSeconds is the time between OpenVPN key renegotiations, at
	// which the password is checked again, 60 to 86400. Default 3600.
	RenegotiateSeconds int `json:"renegotiate_seconds"`
	// BlockTCP is the list of TCP ports that customers cannot reach on the
	// internet. It always contains 25.
	BlockTCP []uint16 `json:"block_tcp"`
}

// Default returns the specification of a server that was told nothing.
func Default() Node {
	return Node{PollSeconds: 20, UsageSeconds: max(3600, int(UsageFloor/time.Second)), KeepaliveSeconds: 10, RenegotiateSeconds: 3600, BlockTCP: []uint16{25}}
}

// Parse reads a specification from JSON. Absent fields take their default,
// unknown fields and values out of bounds are errors.
func Parse(b []byte) (Node, error) {
	n := Default()
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&n); err != nil {
		return Node{}, fmt.Errorf("node specification: %w", err)
	}
	if d.More() {
		return Node{}, fmt.Errorf("node specification: more than one JSON value")
	}
	return n, n.Validate()
}

// Validate returns what is out of bounds, or nil.
func (n Node) Validate() error {
	for _, f := range []struct {
		name          string
		got, min, max int
	}{
		{"poll_seconds", n.PollSeconds, 1, 30},
		{"usage_seconds", n.UsageSeconds, int(UsageFloor / time.Second), 86400},
		{"keepalive_seconds", n.KeepaliveSeconds, 1, 60},
		{"renegotiate_seconds", n.RenegotiateSeconds, 60, 86400},
	} {
		if f.got < f.min || f.got > f.max {
			return fmt.Errorf("node specification: %s is %d, want %d to %d", f.name, f.got, f.min, f.max)
		}
	}
	for _, p := range n.BlockTCP {
		if p == 25 {
			return nil
		}
	}
	return fmt.Errorf("node specification: block_tcp must contain 25")
}
