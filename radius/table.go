package radius

import "time"

// table is a map that forgets: what was put into it falls out after its life span,
// or earlier when it is full and something newer comes. That bounds what a flood of
// half-open logins costs, and lets a login that ends within seconds outrun it.
// Entries are wiped when they leave and used again. A table is not safe for
// concurrent use.
type table[K comparable, V any] struct {
	life time.Duration
	max  int
	lost func(K) // is told of entries that fell out; may be nil

	items map[K]*item[K, V]
	ends  item[K, V] // next is the oldest, prev the newest; a ring
	spare *item[K, V]
}

type item[K comparable, V any] struct {
	prev, next *item[K, V]
	key        K
	until      time.Time
	value      V
}

func newTable[K comparable, V any](life time.Duration, max int, lost func(K)) *table[K, V] {
	t := &table[K, V]{life: life, max: max, lost: lost, items: map[K]*item[K, V]{}}
	t.ends.prev, t.ends.next = &t.ends, &t.ends
	return t
}

// put returns the value of a key as the newest entry: the one it has, or a zero one.
// The pointer is good until the next call of put, take or expire.
func (t *table[K, V]) put(key K, now time.Time) *V {
	i := t.items[key]
	switch {
	case i != nil:
		i.unlink()
	case len(t.items) >= t.max:
		t.lose(t.ends.next)
		fallthrough
	default:
		if i = t.spare; i != nil {
			t.spare = i.next
		} else {
			i = &item[K, V]{}
		}
		i.key = key
		t.items[key] = i
	}
	i.until = now.Add(t.life)
	i.prev, i.next = t.ends.prev, &t.ends
	i.prev.next, i.next.prev = i, i
	return &i.value
}

// get returns the value of a key, or nil.
func (t *table[K, V]) get(key K) *V {
	if i := t.items[key]; i != nil {
		return &i.value
	}
	return nil
}

// take removes an entry, copies what it held into v and reports whether there was
// one.
func (t *table[K, V]) take(key K, v *V) bool {
	i := t.items[key]
	if i == nil {
		return false
	}
	*v = i.value
	t.remove(i)
	return true
}

// expire drops what has outlived its span.
func (t *table[K, V]) expire(now time.Time) {
	for t.ends.next != &t.ends && !now.Before(t.ends.next.until) {
		t.lose(t.ends.next)
	}
}

func (t *table[K, V]) lose(i *item[K, V]) {
	key := i.key
	t.remove(i)
	if t.lost != nil {
		t.lost(key)
	}
}

func (t *table[K, V]) remove(i *item[K, V]) {
	delete(t.items, i.key)
	i.unlink()
	*i = item[K, V]{next: t.spare}
	t.spare = i
}

func (i *item[K, V]) unlink() { i.prev.next, i.next.prev = i.next, i.prev }
