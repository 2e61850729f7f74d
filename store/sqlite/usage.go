package sqlite

import (
	"bytes"
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"errors"

	"lethe/day"
	"lethe/fault"
	"lethe/usage"
)

// ceiling is where a row's megabytes stop growing, far from an overflow.
const ceiling = int64(1) << 60

// AcceptUsage implements [store.Usage].
func (s *Store) AcceptUsage(ctx context.Context, server string, b usage.Batch) error {
	if err := b.Validate(); err != nil {
		return invalid(err)
	}
	return s.change(ctx, false, func(tx *sql.Tx) error {
		var last []byte
		err := tx.QueryRowContext(ctx, "SELECT id FROM batch WHERE server = $1", server).Scan(&last)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if bytes.Equal(last, b.ID[:]) {
			return nil
		}
		merge, err := tx.PrepareContext(ctx, `INSERT INTO usage (user_hash, date, country, isp, location, protocol, mb_in, mb_out)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
			ON CONFLICT (user_hash, date, country, isp, location, protocol) DO UPDATE SET
			mb_in = CASE WHEN usage.mb_in > $9 THEN usage.mb_in ELSE usage.mb_in + excluded.mb_in END,
			mb_out = CASE WHEN usage.mb_out > $9 THEN usage.mb_out ELSE usage.mb_out + excluded.mb_out END`)
		if err != nil {
			return err
		}
		defer func() { _ = merge.Close() }()
		for _, r := range b.Records {
			_, err := merge.ExecContext(ctx, r.User[:], int64(r.Date), r.Country, r.ISP, int64(r.Location), int64(r.Protocol),
				int64(r.In), int64(r.Out), ceiling)
			if err != nil {
				return err
			}
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO batch (server, id) VALUES ($1, $2)
			ON CONFLICT (server) DO UPDATE SET id = excluded.id`, server, b.ID[:])
		return err
	})
}

// UsageOf implements [store.Usage].
func (s *Store) UsageOf(ctx context.Context, user usage.UserHash, from, through day.Day) ([]usage.Record, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT date, country, isp, location, protocol, mb_in, mb_out FROM usage
		WHERE user_hash = $1 AND date BETWEEN $2 AND $3
		ORDER BY date, country, isp, location, protocol`, user[:], int64(from), int64(through))
	if err != nil {
		return nil, classify(err)
	}
	found := []usage.Record{}
	err = each(rows, func() error {
		r := usage.Record{Key: usage.Key{User: user}}
		err := rows.Scan(&r.Date, &r.Country, &r.ISP, &r.Location, &r.Protocol, &r.In, &r.Out)
		found = append(found, r)
		return err
	})
	return found, classify(err)
}

// PurgeUsage implements [store.Usage].
func (s *Store) PurgeUsage(ctx context.Context, before day.Day) (n int64, err error) {
	err = s.change(ctx, false, func(tx *sql.Tx) error {
		r, err := tx.ExecContext(ctx, "DELETE FROM usage WHERE date < $1", int64(before))
		if err != nil {
			return err
		}
		n, err = r.RowsAffected()
		return err
	})
	return n, err
}

// invalid makes a validation's complaint public: it speaks of what the operator
// or a server sent, never of a customer.
func invalid(err error) error {
	return fault.Wrap(fault.Invalid, err.Error(), err)
}

// jsonColumn keeps a list in a TEXT column.
type jsonColumn struct{ v any }

// Value implements [driver.Valuer].
func (c jsonColumn) Value() (driver.Value, error) {
	b, err := json.Marshal(c.v)
	return string(b), err
}

// Scan implements [sql.Scanner].
func (c jsonColumn) Scan(text any) error {
	s, ok := text.(string)
	if !ok || json.Unmarshal([]byte(s), c.v) != nil {
		return damaged(nil)
	}
	return nil
}
