// Package device is the server's side of attestation (RFC 9334: the Attester): it makes
// the keys of this boot, lets the TPM speak for them, and opens the secrets that an
// activator grants. Package attest has the protocol.
//
// A [Device] has one TPM to itself, by github.com/google/go-tpm: through the kernel's resource
// manager (/dev/tpmrm0) on a server. Its attestation key is made anew in each [Open] and
// never leaves the TPM. The keys that certificates will be for are made here, in this
// process's memory; secrets pass through on their way to whoever uses them and are kept nowhere.
//
// [Device.Handler] serves the protocol over HTTP, [Guard] notices that the machine was
// stopped and went on.
package device

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"lethe/attest"
)

// Options are what a device needs beside the TPM.
type Options struct {
	Channel attest.Channel         // of the connection that it answers on
	Log     func() ([]byte, error) // the firmware's event log
	Now     func() time.Time
	Head    []byte // that an earlier process of this boot kept beside its secrets; nil at first
	// Accept is given the secrets and the head that is to be kept beside them. The receipt is sent when it returns
	// nil. It owns the secrets' bytes.
	Accept func(secrets, head []byte) error
}

// Device is the attester. It is safe for concurrent use; one attestation at a time.
type Device struct {
	VPNKey, APIKey *ecdsa.PrivateKey // made by Open; certificates will be for them

	o        Options
	vpn, api []byte // SubjectPublicKeyInfo

	mu       sync.Mutex // guards the TPM and what follows
	tpm      transport.TPM
	ek, ak   object
	identity attest.Identity
	pending  []*pending // evidence that no grant has answered, at most maxPending, the latest last
}

// object is a key loaded into the TPM.
type object struct {
	handle tpm2.TPMHandle
	name   tpm2.TPM2BName
	public []byte // TPMT_PUBLIC
}

// maxPending is how much evidence may wait for its grant. Whoever can reach a server that has no secrets can
// ask it for evidence; this is so much that nobody makes it forget the activator's by asking: the TPM is slower.
const maxPending = 64

// pending is what a grant must fit.
type pending struct {
	transcript attest.Transcript
	key        hpke.PrivateKey
}

// Errors of a server that cannot or will not answer.
var (
	ErrChallenge = errors.New("attest: the challenge cannot be answered")
	ErrGrant     = errors.New("attest: the grant is not for this server and moment")
	ErrHead      = errors.New("attest: another activator, or one that has forgotten")
)

// endorsement is a kind of endorsement key: how it is made, and where its maker's
// certificate stands (TCG EK Credential Profile 2.5, 2.2.1.4 and 2.2.1.5).
type endorsement struct {
	template    tpm2.TPMTPublic
	certificate tpm2.TPMHandle
}

func endorsements() []endorsement {
	return []endorsement{{tpm2.ECCEKTemplate, 0x01c0000a}, {tpm2.RSAEKTemplate, 0x01c00002}}
}

// Open makes the keys of this boot. It takes a moment: some TPMs need seconds for a key.
// The caller flushes them with Close.
func Open(tpm transport.TPM, o Options) (*Device, error) {
	d := &Device{tpm: tpm, o: o}
	var err1, err2, err3, err4 error
	d.VPNKey, err1 = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	d.APIKey, err2 = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	d.vpn, err3 = x509.MarshalPKIXPublicKey(d.VPNKey.Public())
	d.api, err4 = x509.MarshalPKIXPublicKey(d.APIKey.Public())
	if err := errors.Join(err3, err4); err != nil {
		return nil, err
	}
	if err := d.makeEK(); err != nil {
		return nil, fmt.Errorf("endorsement key: %w", err)
	}
	var unique [sha256.Size]byte
	_, _ = rand.Read(unique[:]) // crypto/rand.Read never fails
	var err error
	if d.ak, err = d.primary(attest.AKTemplate(unique)); err != nil {
		return nil, errors.Join(fmt.Errorf("attestation key: %w", err), d.Close())
	}
	d.identity.EK, d.identity.AK, d.identity.Head = d.ek.public, d.ak.public, o.Head
	return d, nil
}

// makeEK makes the endorsement key that has a certificate, or the first that the TPM can make.
func (d *Device) makeEK() (err error) {
	kinds := endorsements()
	for i, k := range kinds {
		if c := d.nv(k.certificate); c != nil {
			d.identity.EKCertificate = c
			kinds = kinds[i : i+1]
			break
		}
	}
	for _, k := range kinds {
		if d.ek, err = d.primary(k.template); err == nil {
			return nil
		}
	}
	return err
}

// primary makes a primary key of the endorsement hierarchy.
func (d *Device) primary(template tpm2.TPMTPublic) (object, error) {
	rsp, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
		InPublic:      tpm2.New2B(template),
	}.Execute(d.tpm)
	if err != nil {
		return object{}, err
	}
	return object{rsp.ObjectHandle, rsp.Name, rsp.OutPublic.Bytes()}, nil
}

// nv reads an index that holds a certificate, or returns nil: most virtual TPMs have none.
func (d *Device) nv(index tpm2.TPMHandle) []byte {
	public, err := tpm2.NVReadPublic{NVIndex: index}.Execute(d.tpm)
	if err != nil {
		return nil
	}
	contents, err := public.NVPublic.Contents()
	if err != nil {
		return nil
	}
	const block = 512 // what every TPM reads at once
	var all []byte
	for len(all) < int(contents.DataSize) {
		rsp, err := tpm2.NVRead{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
			NVIndex:    tpm2.NamedHandle{Handle: index, Name: public.NVName},
			Size:       uint16(min(block, int(contents.DataSize)-len(all))), Offset: uint16(len(all)),
		}.Execute(d.tpm)
		if err != nil || len(rsp.Data.Buffer) == 0 {
			return nil
		}
		all = append(all, rsp.Data.Buffer...)
	}
	return all
}

// Close flushes the keys from the TPM.
func (d *Device) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all error
	for _, o := range []object{d.ek, d.ak} {
		if o.handle != 0 {
			_, err := tpm2.FlushContext{FlushHandle: o.handle}.Execute(d.tpm)
			all = errors.Join(all, err)
		}
	}
	d.ek, d.ak = object{}, object{}
	return all
}

// Identity returns the message that says which TPM this is.
func (d *Device) Identity() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return attest.Encode(&d.identity)
}

// Evidence answers a challenge.
func (d *Device) Evidence(challenge []byte) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := &pending{transcript: attest.Transcript{Identity: d.identity, Channel: d.o.Channel}}
	t := &p.transcript
	if err := attest.Decode(challenge, &t.Challenge); err != nil {
		return nil, errors.Join(ErrChallenge, err)
	}
	if err := d.checkHead(t.Challenge.Head); err != nil {
		return nil, err
	}
	credential, err := d.activate(t.Challenge.Credential, t.Challenge.Secret)
	if err != nil {
		return nil, errors.Join(ErrChallenge, err)
	}
	if p.key, err = attest.NewSealKey(); err != nil {
		return nil, err
	}
	e := &t.Evidence
	e.Time = binary.BigEndian.AppendUint64(nil, uint64(d.o.Now().Unix()))
	e.SealKey, e.VPNKey, e.APIKey = p.key.PublicKey().Bytes(), d.vpn, d.api
	if err := d.quote(t); err != nil {
		return nil, err
	}
	if e.Log, err = d.o.Log(); err != nil {
		return nil, fmt.Errorf("event log: %w", err)
	}
	e.Proof = t.Proof(credential)
	d.pending = append(d.pending[max(0, len(d.pending)+1-maxPending):], p)
	return attest.Encode(e), nil
}

// checkHead refuses an activator that is another one than that whose secrets are in use, or
// whose record has become shorter.
func (d *Device) checkHead(b []byte) error {
	h, err := attest.ParseHead(b)
	if err != nil {
		return errors.Join(ErrChallenge, err)
	}
	if len(d.identity.Head) == 0 {
		return nil
	}
	if last, err := attest.ParseHead(d.identity.Head); err != nil || !h.Follows(last) {
		return ErrHead
	}
	return nil
}

// activate opens a credential with the endorsement key (TPM 2.0 Library, part 3, 12.5).
func (d *Device) activate(credential, secret []byte) ([]byte, error) {
	policy := tpm2.Policy(tpm2.TPMAlgSHA256, 16, tpm2.PolicyCallback(func(t transport.TPM, session tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
		_, err := tpm2.PolicySecret{
			AuthHandle:    tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
			PolicySession: session, NonceTPM: nonce,
		}.Execute(t)
		return err
	}))
	rsp, err := tpm2.ActivateCredential{
		ActivateHandle: tpm2.AuthHandle{Handle: d.ak.handle, Name: d.ak.name, Auth: tpm2.PasswordAuth(nil)},
		KeyHandle:      tpm2.AuthHandle{Handle: d.ek.handle, Name: d.ek.name, Auth: policy},
		CredentialBlob: tpm2.TPM2BIDObject{Buffer: credential},
		Secret:         tpm2.TPM2BEncryptedSecret{Buffer: secret},
	}.Execute(d.tpm)
	if err != nil {
		return nil, err
	}
	return rsp.CertInfo.Buffer, nil
}

// quoteTries is how often registers are read again when one was extended meanwhile.
const quoteTries = 3

// quote reads the registers and lets the TPM sign them with the transcript's qualifying data.
func (d *Device) quote(t *attest.Transcript) error {
	extra := t.Qualifying()
	for range quoteTries {
		values, err := d.registers()
		if err != nil {
			return fmt.Errorf("PCRs: %w", err)
		}
		rsp, err := tpm2.Quote{
			SignHandle:     tpm2.AuthHandle{Handle: d.ak.handle, Name: d.ak.name, Auth: tpm2.PasswordAuth(nil)},
			QualifyingData: tpm2.TPM2BData{Buffer: extra[:]},
			InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
			PCRSelect:      attest.Selection(),
		}.Execute(d.tpm)
		if err != nil {
			return fmt.Errorf("quote: %w", err)
		}
		a, err := rsp.Quoted.Contents()
		if err != nil {
			return fmt.Errorf("quote: %w", err)
		}
		info, err := a.Attested.Quote()
		if err != nil {
			return fmt.Errorf("quote: %w", err)
		}
		if sum := sha256.Sum256(values); bytes.Equal(info.PCRDigest.Buffer, sum[:]) {
			t.Evidence.PCRs, t.Evidence.Quote, t.Evidence.Signature = values, rsp.Quoted.Bytes(), tpm2.Marshal(rsp.Signature)
			return nil
		}
	}
	return errors.New("quote: the registers do not stand still")
}

// registers reads PCR 0 to 15. A TPM may give fewer than were asked for.
func (d *Device) registers() ([]byte, error) {
	var all []byte
	for n := range attest.PCRs {
		rsp, err := tpm2.PCRRead{PCRSelectionIn: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{
			{Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(uint(n))}}}}.Execute(d.tpm)
		if err != nil {
			return nil, err
		}
		if len(rsp.PCRValues.Digests) != 1 || len(rsp.PCRValues.Digests[0].Buffer) != sha256.Size {
			return nil, fmt.Errorf("the TPM has no SHA-256 bank")
		}
		all = append(all, rsp.PCRValues.Digests[0].Buffer...)
	}
	return all, nil
}

// Take opens a grant, hands the secrets on and returns the receipt. A grant fits one
// evidence, and fits once: with it all other evidence is forgotten.
func (d *Device) Take(grant []byte) (receipt []byte, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var g attest.Grant
	if err := attest.Decode(grant, &g); err != nil {
		return nil, errors.Join(ErrGrant, err)
	}
	var p *pending
	var secrets []byte
	var r *attest.Receipt
	for _, p = range slices.Backward(d.pending) {
		if secrets, r, err = attest.Open(&p.transcript, p.key, &g); err == nil {
			break
		}
	}
	if r == nil {
		return nil, errors.Join(ErrGrant, err)
	}
	d.pending = nil
	asked, _ := attest.ParseHead(p.transcript.Challenge.Head) // it was read before
	if h, err := attest.ParseHead(g.Head); err != nil || !h.Follows(asked) {
		clear(secrets)
		return nil, ErrHead
	}
	if err := d.o.Accept(secrets, g.Head); err != nil {
		return nil, err
	}
	d.identity.Head = g.Head
	return attest.Encode(r), nil
}

// Clock returns what the TPM says of time and counters, for [Guard].
func (d *Device) Clock() (Reading, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	rsp, err := tpm2.ReadClock{}.Execute(d.tpm)
	if err != nil {
		return Reading{}, err
	}
	i := rsp.CurrentTime.ClockInfo
	return Reading{i.ResetCount, i.RestartCount, time.Duration(i.Clock) * time.Millisecond}, nil
}
