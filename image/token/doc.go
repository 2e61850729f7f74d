// Package token signs with keys that never leave a PIN-protected hardware token,
// through PKCS #11 (OASIS, "PKCS #11 Cryptographic Token Interface", 2.40): a YubiKey by
// ykcs11, a smart card by OpenSC, SoftHSM in tests.
//
// [Open] finds the token and logs in, [Token.Key] gives a [crypto.Signer] for
// packages image/release and image/cms. The PIN comes from a terminal or a file
// descriptor ([Terminal], [Descriptor]), never from the command line or the environment,
// which other programs can read, and is overwritten after each use.
//
// It stands on github.com/miekg/pkcs11 (BSD, no further modules), not on crypto11, which is
// made on top of it: crypto11 wants the PIN as a string that lives as long as the
// program, logs in by itself again after a removal, cannot give the PIN for each signature as a
// YubiKey's signature slot demands, and hides the token's answers, by which a
// wrong PIN, a locked one and a removed token are told apart.
//
// PKCS #11 modules are C libraries: this is the only package that needs cgo. Without
// cgo it builds, and [Open] refuses.
package token
