package attest_test

import (
	"crypto/x509"

	"lethe/attest/attesttest"
)

// certified asks for certificates of a maker, and gives the server one.
func certified(issue func(m *attesttest.Maker, w *world) []byte) func(w *world) {
	return func(w *world) {
		m := attesttest.NewMaker(w.t)
		w.verifier.EKRoots = x509.NewCertPool()
		w.verifier.EKRoots.AddCert(m.Certificate)
		if issue != nil {
			w.soft.Identity.EKCertificate = issue(m, w)
		}
	}
}
