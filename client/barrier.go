package client

import (
	"context"
	"errors"
	"os"
	"sync"

	"lethe/fault"
)

// barrier is everything that the helper changes on the machine: the lock, the routes, the kernel
// settings and the resolvers. It is put up and taken down as one, the lock first and last.
type barrier struct {
	lock     lock
	names    names
	undoPath string

	mu      sync.Mutex
	up      bool // the lock is up
	portals []portal
	face    *face
	undo    *undo
}

// recover finds out what a former helper has left. When the lock is up it stays up; when it is not,
// the machine was restarted, and what survives a restart is put back.
func (b *barrier) recover(ctx context.Context) (locked bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.undo, err = loadUndo(b.undoPath); err != nil {
		return false, err
	}
	if b.up, _, err = b.lock.isUp(ctx); err != nil || b.up || b.undo == nil {
		return b.up, err
	}
	return false, b.takeDown()
}

// raise puts the barrier up, or changes what it lets through: the tunnels' packets to the portals and,
// with f, everything into the tunnel. On an error the barrier is as closed as before or more.
func (b *barrier) raise(ctx context.Context, portals []portal, f *face) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.undo == nil {
		settings, err := readSettings()
		if err != nil {
			return err
		}
		u := &undo{path: b.undoPath, Version: undoVersion, Settings: settings}
		if err := u.save(); err != nil {
			return err
		}
		b.undo = u
	}
	if err := b.lock.raise(ctx, portals, f); err != nil {
		return err
	}
	b.up, b.portals, b.face = true, portals, f
	return b.arrange(ctx, f)
}

// arrange sets everything but the lock. The caller holds mu.
func (b *barrier) arrange(ctx context.Context, f *face) error {
	err := applySettings(nil)
	if err == nil {
		err = divert()
	}
	if err == nil && f != nil {
		if err = enter(f); err == nil {
			err = b.names.use(ctx, f, b.undo)
		}
	}
	return err
}

// mend repairs what others have changed: a firewall's reload that flushed the lock, a DHCP client
// that wrote resolv.conf, routes that went with an interface. It does nothing when the barrier is
// down or nothing was raised since the helper started.
func (b *barrier) mend(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.up {
		return nil
	}
	_, whole, err := b.lock.isUp(ctx)
	if err == nil && !whole {
		err = b.lock.raise(ctx, b.portals, b.face)
	}
	if err != nil || b.undo == nil {
		return err
	}
	if f := b.face; f != nil {
		if err := b.arrange(ctx, f); err == nil || exists(f.device) {
			return err
		} // else the tunnel has just ended, and whoever owns it does the rest
	}
	return b.arrange(ctx, nil)
}

// lower takes everything down. What cannot be put back stays recorded, so that the next call tries
// again.
func (b *barrier) lower(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	err := b.takeDown()
	if e := b.lock.lower(ctx); e != nil {
		return errors.Join(err, e)
	}
	b.up, b.portals, b.face = false, nil, nil
	return err
}

// takeDown undoes all but the lock. The caller holds mu.
func (b *barrier) takeDown() error {
	if b.undo == nil {
		return undivert()
	}
	err := errors.Join(b.undo.Resolv.restore(), undivert(), applySettings(b.undo.Settings))
	if err != nil {
		return err
	}
	if err := os.Remove(b.undoPath); err != nil {
		return fault.Wrap(fault.Internal, "the record of what to restore cannot be removed", err)
	}
	b.undo = nil
	return nil
}

// isUp reports whether the lock is up as far as the helper knows.
func (b *barrier) isUp() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.up
}
