package registry

import "sync"

// lockTable is a set of read-write locks by key that holds only those in use.
// The zero value is ready.
type lockTable struct {
	mu    sync.Mutex
	locks map[string]*countedLock
}

type countedLock struct {
	sync.RWMutex
	users int
}

func (t *lockTable) take(key string) *countedLock {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.locks == nil {
		t.locks = map[string]*countedLock{}
	}
	l := t.locks[key]
	if l == nil {
		l = &countedLock{}
		t.locks[key] = l
	}
	l.users++
	return l
}

func (t *lockTable) drop(key string, l *countedLock) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if l.users--; l.users == 0 {
		delete(t.locks, key)
	}
}

// lock takes key for one holder and returns how to give it back.
func (t *lockTable) lock(key string) (unlock func()) {
	l := t.take(key)
	l.Lock()
	return func() { l.Unlock(); t.drop(key, l) }
}

// rlock takes key together with other readers.
func (t *lockTable) rlock(key string) (unlock func()) {
	l := t.take(key)
	l.RLock()
	return func() { l.RUnlock(); t.drop(key, l) }
}

// tryLock is lock, and gives up at once where anybody has key.
func (t *lockTable) tryLock(key string) (unlock func(), ok bool) {
	l := t.take(key)
	if !l.TryLock() {
		t.drop(key, l)
		return nil, false
	}
	return func() { l.Unlock(); t.drop(key, l) }, true
}
