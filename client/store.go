package client

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"lethe/account"
	"lethe/fault"
	"lethe/location"
	"lethe/private"
)

// keep is the customer's state directory: one small JSON file per notion, all readable by the
// customer only, all replaced and never changed.
type keep struct{ dir string }

// The files.
const (
	tokenFile      = "token.json"
	credentialFile = "credential.json" // user name, password, licence: see rights
	directoryFile  = "directory.json"
	lastFile       = "last.json"
)

type (
	storedToken struct {
		Token string `json:"token"`
	}
	storedDirectory struct {
		Tag       string             `json:"tag"`
		Directory location.Directory `json:"directory"`
	}
	storedLast struct {
		Location string `json:"location"`
	}
)

// read reads a file into v. found is false when there is none.
func (k keep) read(name string, v any) (found bool, err error) {
	b, err := os.ReadFile(filepath.Join(k.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		return false, fault.Wrap(fault.Internal, "the app's file "+name+" cannot be read", err).
			WithHint("delete " + filepath.Join(k.dir, name) + " and log in again")
	}
	return true, nil
}

func (k keep) write(name string, v any) error {
	b, err := json.Marshal(v)
	if err == nil {
		err = os.MkdirAll(k.dir, 0o700)
	}
	if err == nil {
		err = replaceFile(filepath.Join(k.dir, name), b, 0o600)
	}
	if err != nil {
		return fault.Wrap(fault.Full, "the app's file "+name+" cannot be written", err).
			WithHint("is the disk full or " + k.dir + " not yours?")
	}
	return nil
}

// forget removes what belongs to an account; the list of locations stays.
func (k keep) forget() error {
	for _, name := range []string{tokenFile, credentialFile, slotFile} {
		if err := os.Remove(filepath.Join(k.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fault.Wrap(fault.Internal, "the app's file "+name+" cannot be removed", err).WithHint("delete it in " + k.dir)
		}
	}
	return nil
}

// token returns the token, or errLoggedOut.
func (k keep) token() (account.Token, error) {
	var t storedToken
	found, err := k.read(tokenFile, &t)
	if err == nil && (!found || t.Token == "") {
		err = errLoggedOut
	}
	return private.Of(t.Token), err
}
