package activator

import (
	"encoding/json"

	"lethe/dsse"
)

// ChangeType is the payload type of what two operators sign.
const ChangeType = "application/vnd.lethe.activator-change+json"

// Action is what needs two people.
type Action string

// The actions.
const (
	AdmitRelease Action = "admit-release"
	RaiseFloor   Action = "raise-floor"
)

// Change is what two operators sign, each with a key of their own, in a DSSE envelope. It names the
// activator, so that it is good for no other; what it does can be done once, so that it cannot be
// repeated.
type Change struct {
	Activator dsse.Digest  `json:"activator"`
	Action    Action       `json:"action"`
	Version   uint64       `json:"version"`            // of the release, or the new floor
	Manifest  *dsse.Digest `json:"manifest,omitempty"` // of the release's file
}

func (c Change) encode() []byte {
	b, _ := json.Marshal(c) // it holds nothing that does not marshal
	return b
}
