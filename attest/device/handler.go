package device

import (
	"crypto/tls"
	"errors"
	"io"
	"net/http"

	"lethe/attest"
)

// ChannelOf returns the name of connections whose server shows this certificate.
func ChannelOf(c tls.Certificate) (attest.Channel, error) {
	if c.Leaf == nil {
		return attest.Channel{}, errors.New("attest: a certificate without leaf")
	}
	return attest.ChannelOf(c.Leaf), nil
}

// Handler serves the protocol. A refusal is a status without a word: 400 for what is not to
// be answered, 409 for a grant that does not fit or an activator that has forgotten, 500 when the TPM fails.
func (d *Device) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+attest.PathIdentity, func(w http.ResponseWriter, _ *http.Request) { answer(w, d.Identity(), nil) })
	post := func(path string, limit int64, do func([]byte) ([]byte, error)) {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
			if err != nil {
				answer(w, nil, attest.ErrMessage)
				return
			}
			b, err := do(body)
			answer(w, b, err)
		})
	}
	post(attest.PathEvidence, attest.MaxChallenge, d.Evidence)
	post(attest.PathSecrets, attest.MaxGrant, d.Take)
	return mux
}

func answer(w http.ResponseWriter, b []byte, err error) {
	w.Header().Set("Cache-Control", "no-store")
	switch {
	case err == nil:
		w.Header().Set("Content-Type", attest.MediaType)
		_, _ = w.Write(b) // the other side notices
	case errors.Is(err, ErrHead), errors.Is(err, ErrGrant):
		w.WriteHeader(http.StatusConflict)
	case errors.Is(err, ErrChallenge), errors.Is(err, attest.ErrMessage):
		w.WriteHeader(http.StatusBadRequest)
	default:
		w.WriteHeader(http.StatusInternalServerError)
	}
}
