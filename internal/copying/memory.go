package copying

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"lifeboat/internal/dr"
	"lifeboat/internal/repo"
)

// memory remembers which unit of one repository became which of the other: a
// file of mode 0600 that is disposable. Each line carries a keyed hash, so that
// a damaged file costs reading again and nothing else.
type memory struct {
	db  *bolt.DB
	to  *repo.Repo
	new map[dr.UnitID]dr.UnitID // not in the file yet
}

// spillAt is how many units are kept before they are written down.
const spillAt = 32 << 10

const sumLen = 8

var bucket = []byte("units 1")

// openMemory opens the file of a pair of repositories; one that is no database any
// more is made anew.
func openMemory(dir string, from, to *repo.Repo) (*memory, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("memory of copied units: %w", err)
	}
	name := filepath.Join(dir, fmt.Sprintf("copied-%s-%s.db", from.ID(), to.ID()))
	db, err := openDB(name)
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("another run copies between these repositories: %w", dr.ErrHeld)
	}
	if err != nil {
		if err := os.Remove(name); err != nil {
			return nil, fmt.Errorf("memory of copied units: %w", err)
		}
		if db, err = openDB(name); err != nil {
			return nil, fmt.Errorf("memory of copied units: %w", err)
		}
	}
	return &memory{db: db, to: to, new: map[dr.UnitID]dr.UnitID{}}, nil
}

func openDB(name string) (*bolt.DB, error) {
	db, err := bolt.Open(name, 0o600, &bolt.Options{Timeout: time.Second, NoFreelistSync: true})
	if err != nil {
		return nil, err
	}
	err = db.Update(func(tx *bolt.Tx) error {
		_, err := tx.CreateBucketIfNotExists(bucket)
		return err
	})
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// sum binds a line to what it says.
func (m *memory) sum(from, to dr.UnitID) []byte {
	h := m.to.UnitID(append(append([]byte("lifeboat v1 copied unit"), from[:]...), to[:]...))
	return h[:sumLen]
}

func (m *memory) get(id dr.UnitID) (to dr.UnitID, ok bool) {
	if to, ok = m.new[id]; ok {
		return to, true
	}
	// A file that cannot be read knows nothing.
	_ = m.db.View(func(tx *bolt.Tx) error {
		v := tx.Bucket(bucket).Get(id[:])
		if len(v) == len(to)+sumLen {
			copy(to[:], v)
			ok = string(m.sum(id, to)) == string(v[len(to):])
		}
		return nil
	})
	return to, ok
}

// put remembers a unit; the caller sees to it that nobody else does so at the
// same time.
func (m *memory) put(from, to dr.UnitID) { m.new[from] = to }

// spill writes down what was learned once it is much.
func (m *memory) spill() error {
	if len(m.new) < spillAt {
		return nil
	}
	return m.flush()
}

func (m *memory) flush() error {
	if len(m.new) == 0 {
		return nil
	}
	err := m.db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket(bucket)
		for from, to := range m.new {
			if err := b.Put(from[:], append(to[:], m.sum(from, to)...)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("memory of copied units: %w", err)
	}
	clear(m.new)
	return nil
}

func (m *memory) close() error { return errors.Join(m.flush(), m.db.Close()) }
