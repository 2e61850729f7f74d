package sqlite

import (
	"context"
	"database/sql"

	"lethe/account"
	"lethe/day"
	"lethe/fault"
	"lethe/location"
	"lethe/publish"
)

// What the publisher reads of an account.
const credentialColumns = `account.id, account.vpn_username, account.vpn_password, account.paid_until,
	account.disabled OR account.licence_disabled`

// sealedCredential is a row of credentialColumns. All is null in a change whose
// account is gone.
type sealedCredential struct {
	id                 sql.NullString
	username, password []byte
	paidUntil          sql.Null[day.Day]
	disabled           sql.NullBool
}

func (c *sealedCredential) fields() []any {
	return []any{&c.id, &c.username, &c.password, &c.paidUntil, &c.disabled}
}

func (s *Store) unseal(c sealedCredential) (publish.Credential, error) {
	id := account.ID(c.id.String)
	username, err := s.seal.Open(usernamePlace(id), c.username)
	if err != nil {
		return publish.Credential{}, err
	}
	password, err := s.seal.Open(passwordPlace(id), c.password)
	return publish.Credential{Username: username, Password: password, PaidUntil: c.paidUntil.V, Disabled: c.disabled.Bool}, err
}

// Changes implements [publish.Source].
func (s *Store) Changes(ctx context.Context, limit int) (changes []publish.Change, err error) {
	rows, err := s.read.QueryContext(ctx, `SELECT change.sequence, change.vpn_username, `+credentialColumns+`
		FROM change LEFT JOIN account ON account.id = change.account ORDER BY change.sequence LIMIT $1`, limit)
	if err != nil {
		return nil, classify(err)
	}
	err = each(rows, func() error {
		var sequence int64
		var buried []byte
		var sealed sealedCredential
		if err := rows.Scan(append([]any{&sequence, &buried}, sealed.fields()...)...); err != nil {
			return err
		}
		c := publish.Change{Sequence: uint64(sequence), Deleted: !sealed.id.Valid}
		var err error
		if c.Deleted {
			c.Username, err = s.seal.Open(changePlace(sequence), buried)
		} else {
			c.Credential, err = s.unseal(sealed)
		}
		changes = append(changes, c)
		return err
	})
	return changes, classify(err)
}

// All implements [publish.Source].
func (s *Store) All(ctx context.Context, yield func(publish.Credential) error) (sequence uint64, err error) {
	err = s.snapshot(ctx, func(tx *sql.Tx) error {
		if err := tx.QueryRowContext(ctx, "SELECT value FROM counter WHERE name = 'change'").Scan(&sequence); err != nil {
			return err
		}
		rows, err := tx.QueryContext(ctx, "SELECT "+credentialColumns+" FROM account")
		if err != nil {
			return err
		}
		return each(rows, func() error {
			var sealed sealedCredential
			if err := rows.Scan(sealed.fields()...); err != nil {
				return err
			}
			c, err := s.unseal(sealed)
			if err != nil {
				return err
			}
			return own(yield(c))
		})
	})
	return sequence, err
}

// Published implements [publish.Source].
func (s *Store) Published(ctx context.Context, sequence uint64) error {
	return s.exec(ctx, "DELETE FROM change WHERE sequence <= $1", int64(sequence))
}

// NextVersion implements [publish.Source].
func (s *Store) NextVersion(ctx context.Context, floor uint64) (version uint64, err error) {
	err = s.change(ctx, false, func(tx *sql.Tx) error {
		n, err := next(ctx, tx, "version", int64(floor))
		version = uint64(n)
		return err
	})
	return version, err
}

// Directory implements [publish.Source].
func (s *Store) Directory(ctx context.Context) (d location.Directory, err error) {
	d = location.Directory{Locations: []location.Location{}, Servers: []location.Server{}}
	err = s.snapshot(ctx, func(tx *sql.Tx) error {
		rows, err := tx.QueryContext(ctx, "SELECT id, code, country, city FROM location ORDER BY id")
		if err != nil {
			return err
		}
		err = each(rows, func() error {
			var l location.Location
			err := rows.Scan(&l.ID, &l.Code, &l.Country, &l.City)
			d.Locations = append(d.Locations, l)
			return err
		})
		if err != nil {
			return err
		}
		rows, err = tx.QueryContext(ctx, "SELECT id, location, addresses, endpoints, ca, tls_crypt, enabled FROM server ORDER BY id")
		if err != nil {
			return err
		}
		return each(rows, func() error {
			var v location.Server
			err := rows.Scan(&v.ID, &v.Location, jsonColumn{&v.Addresses}, jsonColumn{&v.Endpoints}, &v.CA, &v.TLSCrypt, &v.Enabled)
			d.Servers = append(d.Servers, v)
			return err
		})
	})
	return d, err
}

// AddLocation implements [store.Places].
func (s *Store) AddLocation(ctx context.Context, l location.Location) (location.ID, error) {
	err := s.change(ctx, true, func(tx *sql.Tx) error {
		n, err := next(ctx, tx, "location", 0)
		if err != nil {
			return err
		}
		l.ID = location.ID(min(n, 1<<16)) // 1<<16 is 0 again, which is not valid
		if err := l.Validate(); err != nil {
			return invalid(err)
		}
		_, err = tx.ExecContext(ctx, "INSERT INTO location (id, code, country, city) VALUES ($1, $2, $3, $4)",
			n, l.Code, l.Country, l.City)
		return err
	})
	return l.ID, err
}

// RemoveLocation implements [store.Places].
func (s *Store) RemoveLocation(ctx context.Context, id location.ID) error {
	return s.change(ctx, true, func(tx *sql.Tx) error {
		r, err := tx.ExecContext(ctx, "DELETE FROM location WHERE id = $1", int64(id))
		return one(r, err, fault.New(fault.NotFound, "there is no such location"))
	})
}

// AddServer implements [store.Places].
func (s *Store) AddServer(ctx context.Context, v location.Server) error {
	if err := v.Validate(); err != nil {
		return invalid(err)
	}
	return s.change(ctx, true, func(tx *sql.Tx) error {
		var here bool
		err := tx.QueryRowContext(ctx, "SELECT EXISTS (SELECT 1 FROM location WHERE id = $1)", int64(v.Location)).Scan(&here)
		if err != nil {
			return err
		}
		if !here {
			return fault.New(fault.NotFound, "there is no such location")
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO server (id, location, addresses, endpoints, ca, tls_crypt, enabled)
			VALUES ($1, $2, $3, $4, $5, $6, $7)`, v.ID, int64(v.Location), jsonColumn{&v.Addresses}, jsonColumn{&v.Endpoints},
			v.CA, v.TLSCrypt, v.Enabled)
		return err
	})
}

// EnableServer implements [store.Places].
func (s *Store) EnableServer(ctx context.Context, id string, enabled bool) error {
	return s.change(ctx, true, func(tx *sql.Tx) error {
		r, err := tx.ExecContext(ctx, "UPDATE server SET enabled = $2 WHERE id = $1", id, enabled)
		return one(r, err, noServer())
	})
}

// RemoveServer implements [store.Places].
func (s *Store) RemoveServer(ctx context.Context, id string) error {
	return s.change(ctx, true, func(tx *sql.Tx) error {
		r, err := tx.ExecContext(ctx, "DELETE FROM server WHERE id = $1", id)
		return one(r, err, noServer())
	})
}

func noServer() *fault.Error { return fault.New(fault.NotFound, "there is no such server") }
