package control

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"lethe/authdb"
	"lethe/bundle"
	"lethe/fault"
	"lethe/private"
	"lethe/usage"
)

// Keys are what the control plane must keep secret, each in a file of its own
// in the directory keys, mode 0600.
type Keys struct {
	Data   private.Value[[32]byte]       // data.key: seals VPN credentials in the store
	Salt   usage.Salt                    // salt.key: key of the usage records' user hash; servers have it too
	Seal   bundle.SealKey                // seal.key: seals files in bundles; servers have it too
	AuthDB private.Value[authdb.HashKey] // authdb.key: key of the user name hashes in the authentication database
	Config bundle.Signer                 // config.pem: signs manifests
	Fresh  bundle.Signer                 // fresh.pem: signs freshness statements
	// Roots are the enveloped root statements in ascending version, from the
	// directory roots. The key that signed them, keys/root.pem, is not loaded:
	// it is needed for a rotation only and best kept elsewhere.
	Roots [][]byte
}

const rootLife = 3 * 365 * 24 * time.Hour

// The files with 32 random bytes and what stands in their first line.
var symmetric = []struct{ name, purpose string }{
	{"data.key", "seals VPN credentials in the store"},
	{"salt.key", "salt of the user hash in usage records"},
	{"seal.key", "seals files in configuration bundles"},
	{"authdb.key", "hashes user names in the authentication database"},
}

// makeKeys makes every key in dir, which must exist.
func makeKeys(dir string, now time.Time) error {
	keys, roots := filepath.Join(dir, "keys"), filepath.Join(dir, "roots")
	if err := errors.Join(os.Mkdir(keys, 0o700), os.Mkdir(roots, 0o700)); err != nil {
		return fault.Wrap(fault.Unavailable, "the directories for keys cannot be made", err)
	}
	for _, k := range symmetric {
		var b [32]byte
		_, _ = rand.Read(b[:]) // crypto/rand.Read never fails
		text := fmt.Sprintf("# lethe: secret key that %s\n%x\n", k.purpose, b)
		if err := writeFile(filepath.Join(keys, k.name), text); err != nil {
			return err
		}
	}
	root, config, fresh := bundle.GenerateSigner(), bundle.GenerateSigner(), bundle.GenerateSigner()
	for name, signer := range map[string]bundle.Signer{"root.pem": root, "config.pem": config, "fresh.pem": fresh} {
		text, err := signer.PEM()
		if err = errors.Join(err, writeFile(filepath.Join(keys, name), text.Reveal())); err != nil {
			return err
		}
	}
	// Issued today at midnight: a root need not tell at what hour it was made.
	issued := now.UTC().Truncate(24 * time.Hour)
	statement, err := bundle.Sign(bundle.Root{
		Version: 1, Issued: issued, Expires: issued.Add(rootLife), Keys: bundle.Keys(root, config, fresh),
		Roles: map[bundle.Role]bundle.Delegation{
			bundle.RootRole: bundle.Delegate(1, root), bundle.ConfigRole: bundle.Delegate(1, config),
			bundle.FreshRole: bundle.Delegate(1, fresh),
		},
	}, root)
	return errors.Join(err, writeFile(filepath.Join(roots, "1.json"), string(statement)))
}

// writeFile writes a new private file and syncs it.
func writeFile(path, text string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = f.WriteString(text)
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err != nil {
		return fault.Wrap(fault.Unavailable, "the file "+filepath.Base(path)+" cannot be written", err)
	}
	return nil
}

// loadKeys reads what makeKeys made.
func loadKeys(dir string) (k Keys, err error) {
	raw := make([][32]byte, len(symmetric))
	for i, s := range symmetric {
		if raw[i], err = loadKey(filepath.Join(dir, "keys", s.name)); err != nil {
			return Keys{}, err
		}
	}
	k.Data, k.Salt = private.Of(raw[0]), private.Of(raw[1])
	k.Seal, k.AuthDB = private.Of(raw[2]), private.Of(authdb.HashKey(raw[3]))
	for name, to := range map[string]*bundle.Signer{"config.pem": &k.Config, "fresh.pem": &k.Fresh} {
		text, err := readPrivate(filepath.Join(dir, "keys", name))
		if err != nil {
			return Keys{}, err
		}
		if *to, err = bundle.ParseSigner(text); err != nil {
			return Keys{}, fault.Wrap(fault.Internal, "the file "+name+" holds no signing key", err)
		}
	}
	for version := 1; ; version++ {
		root, err := os.ReadFile(filepath.Join(dir, "roots", fmt.Sprintf("%d.json", version)))
		switch {
		case errors.Is(err, fs.ErrNotExist) && version > 1:
			return k, nil
		case err != nil:
			return Keys{}, fault.Wrap(fault.Internal, "the directory roots cannot be read from 1.json on", err)
		}
		k.Roots = append(k.Roots, root)
	}
}

// loadKey reads a file with a comment line and 64 hexadecimal digits.
func loadKey(path string) (key [32]byte, err error) {
	text, err := readPrivate(path)
	if err != nil {
		return key, err
	}
	comment, rest, _ := strings.Cut(text.Reveal(), "\n")
	b, err := hex.DecodeString(strings.TrimSpace(rest))
	if err != nil || len(b) != len(key) || !strings.HasPrefix(comment, "# lethe: ") {
		return key, fault.New(fault.Internal, "the file "+filepath.Base(path)+" is no key file").
			WithHint("want a line that begins with # lethe: and one of 64 hexadecimal digits; restore it from a backup")
	}
	return [32]byte(b), nil
}

// readPrivate reads a file that nobody else may read.
func readPrivate(path string) (private.Value[string], error) {
	name := filepath.Base(path)
	info, err := os.Stat(path)
	if err != nil {
		return private.Value[string]{}, fault.Wrap(fault.Internal, "the file "+name+" cannot be read", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return private.Value[string]{}, fault.New(fault.Denied, "other users may read the file "+name).
			WithHint("chmod 600 it, and ask who did read it")
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return private.Value[string]{}, fault.Wrap(fault.Internal, "the file "+name+" cannot be read", err)
	}
	return private.Of(string(b)), nil
}
