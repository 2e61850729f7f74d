package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"strconv"

	"lethe/account"
	"lethe/day"
	"lethe/fault"
	"lethe/private"
)

func noAccount() *fault.Error { return fault.New(fault.NotFound, "there is no such account") }

const accountColumns = `id, email, password, disabled, plan, devices, paid_until, licence_disabled,
	vpn_username, vpn_password, app_os, app_version`

// The places of sealed fields, see [store.Sealer].
func usernamePlace(id account.ID) string { return "account/vpn_username/" + string(id) }
func passwordPlace(id account.ID) string { return "account/vpn_password/" + string(id) }
func changePlace(sequence int64) string {
	return "change/vpn_username/" + strconv.FormatInt(sequence, 10)
}

// values returns the columns of a record in the order of accountColumns.
func (s *Store) values(r account.Record) []any {
	return []any{
		string(r.ID), r.Email.Reveal(), r.Password.Reveal(), r.Disabled, r.Licence.Plan, r.Licence.Devices,
		int64(r.Licence.PaidUntil), r.Licence.Disabled, s.seal.Seal(usernamePlace(r.ID), r.Credential.Username),
		s.seal.Seal(passwordPlace(r.ID), r.Credential.Password), r.App.OS, r.App.Version,
	}
}

type scanner interface{ Scan(...any) error }

// scan reads the columns of a record.
func (s *Store) scan(row scanner) (r account.Record, err error) {
	var email, password string
	var username, secret []byte
	err = row.Scan(&r.ID, &email, &password, &r.Disabled, &r.Licence.Plan, &r.Licence.Devices,
		&r.Licence.PaidUntil, &r.Licence.Disabled, &username, &secret, &r.App.OS, &r.App.Version)
	if errors.Is(err, sql.ErrNoRows) {
		return account.Record{}, noAccount()
	}
	if err != nil {
		return account.Record{}, err
	}
	r.Email, r.Password = private.Of(email), private.Of(password)
	var err1, err2 error
	r.Credential.Username, err1 = s.seal.Open(usernamePlace(r.ID), username)
	r.Credential.Password, err2 = s.seal.Open(passwordPlace(r.ID), secret)
	return r, errors.Join(err1, err2)
}

// AddAccount implements [account.Store].
func (s *Store) AddAccount(ctx context.Context, r account.Record) error {
	err := s.change(ctx, true, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO account (`+accountColumns+`)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)`, s.values(r)...)
		if err != nil {
			return err
		}
		return s.mark(ctx, tx, r.ID)
	})
	if fault.Of(err) == fault.Conflict {
		return fault.Wrap(fault.Conflict, "there is an account with that e-mail address", err)
	}
	return err
}

// mark gives the account's credential the next number of a change.
func (s *Store) mark(ctx context.Context, tx *sql.Tx, id account.ID) error {
	n, err := next(ctx, tx, "change", 0)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO change (sequence, account) VALUES ($1, $2)
		ON CONFLICT (account) DO UPDATE SET sequence = excluded.sequence`, n, string(id))
	return err
}

// bury leaves a change that tells servers to forget a user name.
func (s *Store) bury(ctx context.Context, tx *sql.Tx, username private.Value[string]) error {
	n, err := next(ctx, tx, "change", 0)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, "INSERT INTO change (sequence, vpn_username) VALUES ($1, $2)",
		n, s.seal.Seal(changePlace(n), username))
	return err
}

// FindAccount implements [account.Store].
func (s *Store) FindAccount(ctx context.Context, email private.Value[string]) (account.Record, error) {
	r, err := s.scan(s.read.QueryRowContext(ctx, "SELECT "+accountColumns+" FROM account WHERE email = $1", email.Reveal()))
	return r, classify(err)
}

// Account implements [account.Store].
func (s *Store) Account(ctx context.Context, id account.ID) (account.Record, error) {
	r, err := s.scan(s.read.QueryRowContext(ctx, "SELECT "+accountColumns+" FROM account WHERE id = $1", string(id)))
	return r, classify(err)
}

// published is the part of a record that servers are told.
type published struct {
	username, password string
	paidUntil          day.Day
	disabled           bool
}

func publishedOf(r account.Record) published {
	return published{r.Credential.Username.Reveal(), r.Credential.Password.Reveal(), r.Licence.PaidUntil,
		r.Disabled || r.Licence.Disabled}
}

// EditAccount implements [account.Store].
func (s *Store) EditAccount(ctx context.Context, id account.ID, edit func(*account.Record) error) error {
	notice := false
	err := s.change(ctx, false, func(tx *sql.Tx) error {
		r, err := s.scan(tx.QueryRowContext(ctx, "SELECT "+accountColumns+" FROM account WHERE id = $1", string(id)))
		if err != nil {
			return err
		}
		before := publishedOf(r)
		oldName := r.Credential.Username
		if err := own(edit(&r)); err != nil {
			return err
		}
		r.ID = id
		_, err = tx.ExecContext(ctx, `UPDATE account SET email = $2, password = $3, disabled = $4, plan = $5, devices = $6,
			paid_until = $7, licence_disabled = $8, vpn_username = $9, vpn_password = $10, app_os = $11, app_version = $12
			WHERE id = $1`, s.values(r)...)
		after := publishedOf(r)
		if err != nil || before == after {
			return err
		}
		notice = true
		if before.username != after.username {
			if err := s.bury(ctx, tx, oldName); err != nil {
				return err
			}
		}
		if err := s.mark(ctx, tx, id); err != nil {
			return err
		}
		_, err = next(ctx, tx, "notice", 0)
		return err
	})
	if err == nil && notice {
		s.poke()
	}
	return err
}

// DeleteAccount implements [account.Store].
func (s *Store) DeleteAccount(ctx context.Context, id account.ID) error {
	return s.change(ctx, true, func(tx *sql.Tx) error {
		r, err := s.scan(tx.QueryRowContext(ctx, "DELETE FROM account WHERE id = $1 RETURNING "+accountColumns, string(id)))
		if err != nil {
			return err
		}
		return s.bury(ctx, tx, r.Credential.Username)
	})
}

// EachAccount implements [account.Store].
func (s *Store) EachAccount(ctx context.Context, yield func(account.Record) error) error {
	rows, err := s.read.QueryContext(ctx, "SELECT "+accountColumns+" FROM account ORDER BY email")
	if err != nil {
		return classify(err)
	}
	return classify(each(rows, func() error {
		r, err := s.scan(rows)
		if err != nil {
			return err
		}
		return own(yield(r))
	}))
}

// AddToken implements [account.TokenStore].
func (s *Store) AddToken(ctx context.Context, id account.ID, hash account.TokenHash, today, through day.Day, app account.App) error {
	return s.change(ctx, false, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "DELETE FROM token WHERE expires < $1", int64(today))
		if err != nil {
			return err
		}
		r, err := tx.ExecContext(ctx, "UPDATE account SET app_os = $2, app_version = $3 WHERE id = $1", string(id), app.OS, app.Version)
		if err := one(r, err, noAccount()); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, "INSERT INTO token (hash, account, expires) VALUES ($1, $2, $3)", hash[:], string(id), int64(through))
		return err
	})
}

// TokenOwner implements [account.TokenStore].
func (s *Store) TokenOwner(ctx context.Context, hash account.TokenHash, today day.Day) (id account.ID, err error) {
	err = s.read.QueryRowContext(ctx, `SELECT account.id FROM token JOIN account ON account.id = token.account
		WHERE token.hash = $1 AND token.expires >= $2 AND NOT account.disabled`, hash[:], int64(today)).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		return "", fault.New(fault.NotFound, "there is no such token")
	}
	return id, classify(err)
}

// DeleteToken implements [account.TokenStore].
func (s *Store) DeleteToken(ctx context.Context, hash account.TokenHash) error {
	return s.exec(ctx, "DELETE FROM token WHERE hash = $1", hash[:])
}

// DeleteTokens implements [account.TokenStore].
func (s *Store) DeleteTokens(ctx context.Context, id account.ID) error {
	return s.exec(ctx, "DELETE FROM token WHERE account = $1", string(id))
}

// exec runs one statement that the publisher need not know of.
func (s *Store) exec(ctx context.Context, statement string, args ...any) error {
	return s.change(ctx, false, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, statement, args...)
		return err
	})
}

// verbatim carries a caller's own error past classify.
type verbatim struct{ error }

func own(err error) error {
	if err == nil {
		return nil
	}
	return &verbatim{err}
}

// each calls row for every row and closes rows.
func each(rows *sql.Rows, row func() error) error {
	defer func() { _ = rows.Close() }() // Err tells what matters
	for rows.Next() {
		if err := row(); err != nil {
			return err
		}
	}
	return rows.Err()
}
