package bundle

import (
	"fmt"

	"lethe/fault"
)

// Reason says why a statement or a file was refused. It is an error, so
// errors.Is(err, bundle.Rollback) tests for one; the error that carries it is
// a [fault.Error] of kind Expired or Untrusted.
type Reason uint8

// The reasons.
const (
	TooLarge        Reason = iota + 1 // more bytes than the limit or the signed size
	Malformed                         // not the JSON of such a statement
	NotCanonical                      // JSON, but not the one encoding that a statement has
	WrongType                         // the payload type is of another role
	BadSignatures                     // signatures are missing, repeated or not base64
	BelowThreshold                    // too few good signatures by keys of the role
	OldThreshold                      // a new root without the consent of the old one
	RootVersion                       // a new root whose version is not the next one
	Impossible                        // signed, but against the format's own rules
	RootExpired                       // the newest root has ended
	ManifestExpired                   // the manifest has ended
	Stale                             // the freshness statement has ended
	NotYet                            // issued in the future
	BelowFloor                        // older than the version the caller insists on
	Rollback                          // older than the version in use
	Equivocation                      // two manifests with one version
	WrongManifest                     // not the manifest that the freshness statement names
	WrongVersion                      // the manifest's own version is another one
	WrongSize                         // a file has fewer bytes than signed
	WrongDigest                       // a file's stored bytes are not those signed
	BadSeal                           // a sealed file does not open
	WrongContent                      // an opened or rebuilt file is not the one signed
	ClockWrong                        // the clock stands before a time that is surely past
)

var reasons = [...]string{
	"unknown", "too large", "malformed", "not canonical", "wrong type", "bad signatures",
	"too few signatures", "not signed by the old root", "root version is not the next",
	"against the format's rules", "root expired", "manifest expired", "freshness statement expired",
	"issued in the future", "below the required version", "older than the version in use",
	"two manifests with one version",
	"not the manifest named", "wrong manifest version", "wrong size", "wrong digest",
	"seal is broken", "wrong content", "clock is wrong",
}

// Reasons returns every reason.
func Reasons() []Reason {
	all := make([]Reason, 0, len(reasons))
	for r := TooLarge; r <= ClockWrong; r++ {
		all = append(all, r)
	}
	return all
}

// Error returns the reason in words.
func (r Reason) Error() string { return reasons[int(r)%len(reasons)] }

// kind tells what has ended from what does not verify.
func (r Reason) kind() fault.Kind {
	switch r {
	case RootExpired, ManifestExpired, Stale:
		return fault.Expired
	default:
		return fault.Untrusted
	}
}

// refusal joins a reason with the cause that is not shown.
type refusal struct {
	Reason
	cause error
}

func (r refusal) Unwrap() []error { return []error{r.Reason, r.cause} }

// refuse returns the error for a reason. The cause may be nil.
func refuse(r Reason, cause error) error {
	return fault.Wrap(r.kind(), fmt.Sprintf("bundle refused: %s", r), refusal{r, cause})
}
