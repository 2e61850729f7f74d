package release

import (
	"fmt"

	"lethe/fault"
)

// Reason says why a release was refused. It is an error, so errors.Is(err,
// release.Damaged) tests for one; the error that carries it is a [fault.Error] of
// kind Expired or Untrusted.
type Reason uint8

// The reasons. Their codes are stable, their numbers are not.
const (
	TooLarge       Reason = iota + 1 // more bytes than the format allows
	Malformed                        // not the JSON of such a statement
	NotCanonical                     // JSON, but not the one encoding that it has
	WrongType                        // a statement of another kind
	BadSignatures                    // a key signs twice, or too many sign
	Impossible                       // signed, but against the format's own rules
	TooFewBuilders                   // fewer builders' keys than the threshold signed statements
	Disagree                         // two builders' statements differ
	NotReleased                      // fewer release keys than the threshold signed the manifest
	NotAgreed                        // the manifest differs from what the builders state
	NotYet                           // issued in the future
	Ended                            // the manifest has expired
	BelowFloor                       // older than the lowest version that is accepted
	NoImage                          // the manifest has no image of that flavour
	WrongSize                        // the ISO is shorter or longer than it should be
	Damaged                          // bytes of the ISO are not the agreed ones
	NotSigned                        // the boot image carries no signature
	WrongSigner                      // the boot image is signed by a key that is not trusted
	BadBootImage                     // the boot image or its place in the ISO is not as stated
)

var codes = [...]string{
	"unknown", "too-large", "malformed", "not-canonical", "wrong-type", "bad-signatures", "impossible", "too-few-builders",
	"disagree", "not-released", "not-agreed", "not-yet", "expired", "below-floor", "no-image", "wrong-size", "damaged",
	"not-signed", "wrong-signer", "bad-boot-image",
}

var texts = [...]string{
	"unknown reason", "larger than any such file", "not a statement of a release", "not in the one encoding that a statement has",
	"a statement of another kind", "a key signs twice, or too many keys sign", "against the format's own rules",
	"too few builders' keys signed a statement", "the builders' statements differ", "too few release keys signed the manifest",
	"the manifest differs from the builders' statements", "issued in the future", "the release has expired",
	"older than the lowest version that is accepted", "the release has no such image", "the image has another size",
	"the image is damaged", "the boot image is not signed", "the boot image is signed by a key that is not trusted",
	"the boot image is not where or what the statement says",
}

// Reasons returns every reason.
func Reasons() []Reason {
	var all []Reason
	for r := TooLarge; int(r) < len(codes); r++ {
		all = append(all, r)
	}
	return all
}

// Code returns the stable name of r, for instance "below-floor".
func (r Reason) Code() string { return codes[int(r)%len(codes)] }

// Error returns the reason in words.
func (r Reason) Error() string { return texts[int(r)%len(texts)] }

type refusal struct {
	Reason
	cause error
}

func (r refusal) Unwrap() []error { return []error{r.Reason, r.cause} }

// refuse returns the error for a reason. The detail says where; it holds names
// of regions, fields and keys, and never bytes of a file. The cause may be nil.
func refuse(r Reason, cause error, detail string) error {
	kind := fault.Untrusted
	if r == Ended {
		kind = fault.Expired
	}
	text := fmt.Sprintf("release refused: %s (%s)", r, r.Code())
	if detail != "" {
		text += ": " + detail
	}
	return fault.Wrap(kind, text, refusal{r, cause})
}
