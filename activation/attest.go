package activation

import (
	"crypto/x509"
	"errors"
	"net/http"
	"time"

	"github.com/google/go-tpm/tpm2/transport"

	"lethe/attest"
	"lethe/attest/device"
	"lethe/secret"
)

// Attest lets an activator attest the machine over the port (package attest has the protocol): tpm is the
// machine's, log the firmware's. head is what an earlier instance of the agent kept beside its
// secrets; nil for none. It is called once, before [Server.Serve]; the caller closes the device, which can
// be asked for the TPM's clock meanwhile.
//
// The first secrets that an activator grants come out of [Server.Wait], later ones, renewed, out of
// [Server.Renewed].
func (s *Server) Attest(tpm transport.TPM, log func() ([]byte, error), head []byte) (*device.Device, error) {
	leaf, err := x509.ParseCertificate(s.tls.Certificates[0].Certificate[0])
	if err != nil {
		return nil, err
	}
	var d *device.Device
	d, err = device.Open(tpm, device.Options{Channel: attest.ChannelOf(leaf), Log: log, Now: time.Now, Head: head,
		Accept: func(granted, head []byte) error { return s.accept(d, granted, head) }})
	if err != nil {
		return nil, err
	}
	s.attester = d.Handler()
	return d, nil
}

// errBusy says that secrets came before the last ones were taken up.
var errBusy = errors.New("activation: the agent has not taken up the last secrets")

// accept completes what was granted with the keys of this boot and hands it to the agent.
func (s *Server) accept(d *device.Device, granted, head []byte) error {
	defer clear(granted)
	b, err := secret.Complete(granted, d.VPNKey, d.APIKey)
	if err != nil {
		return err
	}
	defer clear(b)
	h := &Handed{Head: head}
	if h.Secrets, err = secret.Decode(b); err != nil {
		return err
	}
	if h.Kept, err = secret.Keep(b); err != nil {
		return err
	}
	if s.Activate() {
		s.handed <- h // the only one ever
		return nil
	}
	select {
	case s.renewed <- h:
		return nil
	default:
		return errors.Join(errBusy, h.Kept.Close())
	}
}

// Renewed gives secrets that replace those of [Server.Wait]: certificates that live longer.
func (s *Server) Renewed() <-chan *Handed { return s.renewed }

// attest answers an activator's request, and reports whether it was one.
func (s *Server) attest(w http.ResponseWriter, r *http.Request) bool {
	if s.attester == nil {
		return false
	}
	switch r.RequestURI {
	case attest.PathIdentity, attest.PathEvidence, attest.PathSecrets:
		s.attester.ServeHTTP(w, r)
		return true
	}
	return false
}
