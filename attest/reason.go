package attest

import (
	"errors"

	"lethe/fault"
)

// Reason says why a server was refused. It is an error, so errors.Is(err,
// attest.WrongPlace) tests for one.
type Reason uint8

// The reasons, in the order in which they are looked for: the first that holds
// decides. Their codes are stable, their numbers are not.
const (
	// Who it is.
	MalformedIdentity Reason = iota + 1 // not such a message
	ServerPending                       // enrolled, but nobody has confirmed it
	ServerRevoked                       // the server was revoked
	BadEK                               // not an endorsement key as the TCG's templates make it
	ForeignEK                           // this TPM is in no inventory
	WrongPlace                          // the TPM belongs to another place
	BadEKCertificate                    // missing, not for this key, or by nobody who is trusted
	BadAK                               // not an attestation key that signs the TPM's own statements only
	ActivatorRestored                   // the server shows a head that the activator has signed and does not know

	// Whether it says so itself, now and here.
	MalformedEvidence // not such a message, or keys that are none
	NotSameTPM        // the credential was not activated by the TPM that has both keys
	WrongMagic        // signed, but not made by a TPM
	NotQuote          // a TPM's statement of another kind
	MalformedQuote    // not the one encoding of a quote
	WrongSigner       // by another key, or one in another hierarchy
	BadSignature      // the attestation key did not sign it
	NoNonce           // it answers no question
	NotBound          // it answers another question, on another connection, or for other keys
	EmptySelection    // it covers no register
	WrongBank         // it covers another bank than SHA-256
	WrongSelection    // it covers other registers
	WrongPCRs         // the registers' values are not those that were quoted

	// When.
	ServerClockOff // the server's clock is wrong
	CounterBack    // the TPM has been reset or resumed less often than before
	Resumed        // it was suspended, and resumed, within this boot
	ClockBack      // the TPM's clock was later before
	ClockGap       // the TPM's clock and ours have drifted apart: stopped, copied or replayed

	// What booted.
	MalformedLog  // not such a log
	NoBank        // the log has no SHA-256 digests
	LogReplay     // the log does not lead to the quoted registers
	WrongPhase    // the system is not yet, or no longer, where it hands out service
	SecureBootOff // firmware did not check signatures
	Separators    // firmware did not end its measurements as it must
	UnknownEvent  // no rule of the profile is about such an event
	RefusedEvent  // the rules do not allow this digest or this data
	TooManyEvents // more of them than the rule allows
	MissingEvent  // fewer of them than the rule wants

	// Whether that is a release.
	UnknownImage   // no admitted release has this image
	WrongFlavour   // an image for other machines
	WrongBoot      // another boot loader or more than the release starts
	WrongKeys      // other Secure Boot keys are enrolled
	WrongRegister  // another register that the release fixes differs
	ReleaseRevoked // the release was revoked
	ReleaseNotYet  // issued in the future
	ReleaseExpired // the release has expired
	BelowFloor     // older than the lowest version that is activated

	// Whether it got there.
	NoReceipt // the server did not say that it could open the secrets
)

var codes = [...]string{"unknown",
	"malformed-identity", "server-pending", "server-revoked", "bad-ek", "foreign-ek", "wrong-place", "bad-ek-certificate", "bad-ak",
	"activator-restored",
	"malformed-evidence", "not-same-tpm", "wrong-magic", "not-a-quote", "malformed-quote", "wrong-signer", "bad-signature", "no-nonce",
	"not-bound", "empty-selection", "wrong-bank", "wrong-selection", "wrong-pcrs",
	"server-clock-off", "counter-back", "resumed", "clock-back", "clock-gap",
	"malformed-log", "no-bank", "log-replay", "wrong-phase", "secure-boot-off", "separators", "unknown-event", "refused-event",
	"too-many-events", "missing-event",
	"unknown-image", "wrong-flavour", "wrong-boot", "wrong-keys", "wrong-register", "release-revoked", "release-not-yet", "release-expired",
	"below-floor", "no-receipt",
}

var texts = [...]string{"unknown reason",
	"what the server says of itself is not a message of the protocol",
	"the server is enrolled, but nobody has confirmed it",
	"the server was revoked",
	"the endorsement key is not one that a TPM makes for itself",
	"no place in the inventory has this TPM",
	"the TPM belongs to another place",
	"the endorsement key's certificate is missing, for another key, or by nobody who is trusted",
	"the attestation key is not one that signs a TPM's own statements only",
	"the server has seen a later record than this activator has: it was restored from an old backup",
	"the evidence is not a message of the protocol",
	"the endorsement key's TPM does not hold the attestation key",
	"the statement was not made by a TPM",
	"the TPM's statement is not a quote",
	"the quote is not in the one encoding that it has",
	"the quote names another key, or a key in another hierarchy",
	"the attestation key did not sign the quote",
	"the quote answers no question",
	"the quote answers another question, on another connection, or for other keys",
	"the quote covers no register",
	"the quote covers another bank than SHA-256",
	"the quote covers other registers than asked for",
	"the registers' values are not those that were quoted",
	"the server's clock is wrong",
	"the TPM counts fewer starts than before",
	"the machine was suspended and resumed",
	"the TPM's clock was later before",
	"the TPM's clock and this machine's have drifted apart: it was stopped, copied or replayed",
	"the event log is not such a log",
	"the event log has no SHA-256 digests",
	"the event log does not lead to the quoted registers",
	"the system has not come up, or is going down",
	"Secure Boot is off",
	"the firmware did not end its measurements",
	"the profile says nothing of such an event",
	"the profile does not allow what the event measured",
	"more such events than the profile allows",
	"an event is missing that the profile wants",
	"no admitted release has this image",
	"the image is for other machines",
	"not what the release boots, or not only that",
	"other Secure Boot keys are enrolled",
	"a register that the release fixes has another value",
	"the release was revoked",
	"the release is issued in the future",
	"the release has expired",
	"the release is older than the lowest version that is activated",
	"the server did not show that it could open its secrets",
}

// Reasons returns every reason in order.
func Reasons() []Reason {
	var all []Reason
	for r := MalformedIdentity; int(r) < len(codes); r++ {
		all = append(all, r)
	}
	return all
}

// Code returns the stable name of r, for instance "wrong-place".
func (r Reason) Code() string { return codes[int(r)%len(codes)] }

// Error returns the reason in words.
func (r Reason) Error() string { return texts[int(r)%len(texts)] }

// Refusal is a reason with the place where it was found.
type Refusal struct {
	Reason Reason
	Detail string // names of registers, events and rules; nothing of a customer. May be empty.
}

// Error returns the text.
func (r *Refusal) Error() string {
	text := "server refused: " + r.Reason.Error() + " (" + r.Reason.Code() + ")"
	if r.Detail != "" {
		text += ": " + r.Detail
	}
	return text
}

// Unwrap returns the reason, and the kind of fault that it is.
func (r *Refusal) Unwrap() []error {
	return []error{r.Reason, fault.New(fault.Untrusted, r.Reason.Error())}
}

// Refuse returns a refusal.
func Refuse(r Reason, detail string) error { return &Refusal{r, detail} }

// ReasonOf returns why err refuses, and the detail; 0 when it does not.
func ReasonOf(err error) (Reason, string) {
	var r *Refusal
	if errors.As(err, &r) {
		return r.Reason, r.Detail
	}
	return 0, ""
}
