package release

import "crypto"

// Prepare lets tests sign what our own signer refuses to sign.
func Prepare(k Key, message []byte) ([]byte, crypto.Hash) { return k.prepare(message) }
