// Package site keeps what one site remembers locally: the lock of each system,
// how a system was brought up here (bringup.go), and which volumes are in the
// middle of being written (marks.go).
//
// The state belongs to one engine: two engines on one machine do not share it.
// All of it is a convenience or a guard; losing it loses no snapshot. The
// package does not talk to engines or repositories.
package site

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"lifeboat/internal/dr"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// State is the local state of one site. Methods may be called concurrently for
// different systems; for one system the caller holds Lock.
type State struct{ dir string }

// Open returns the state of the engine with the given id below base (mode 0700),
// creating the directory.
func Open(base, engineID string) (*State, error) {
	sum := sha256.Sum256([]byte(engineID))
	dir := filepath.Join(base, "engines", hex.EncodeToString(sum[:8]))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("state directory: %w (set state_dir in the configuration, or LIFEBOAT_STATE_DIR)", err)
	}
	return &State{dir: dir}, nil
}

// Dir is the directory of the engine's state: the host key, the index cache
// and the freeze records live here too.
func (s *State) Dir() string { return s.dir }

// SystemDir is the directory of one system's state, created when missing.
func (s *State) SystemDir(sys dr.System) (string, error) {
	dir := filepath.Join(s.dir, "systems", string(sys))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("state of system %s: %w", sys, err)
	}
	return dir, nil
}

// Lock takes the system's lock for the life of the process or until the
// returned function is called. Another holder gives an error wrapping
// dr.ErrHeld. The lock goes with the process, so it is never stale.
func (s *State) Lock(sys dr.System) (unlock func(), err error) {
	dir, err := s.SystemDir(sys)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock system %s: %w", sys, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("another lifeboat works on system %s here; wait for it to end (lock %s): %w", sys, path, dr.ErrHeld)
		}
		return nil, fmt.Errorf("lock system %s: %w", sys, err)
	}
	return func() { f.Close() }, nil
}

// JournalPath is where the journal of an operation on a system lives.
func (s *State) JournalPath(sys dr.System, operation string) (string, error) {
	dir, err := s.SystemDir(sys)
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, operation+".journal"), nil
}

// load reads a JSON file below the system's directory; false when there is none.
func (s *State) load(sys dr.System, name string, out any) (bool, error) {
	dir, err := s.SystemDir(sys)
	if err != nil {
		return false, err
	}
	raw, err := os.ReadFile(filepath.Join(dir, name))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("local state %s of system %s: %w", name, sys, err)
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return false, fmt.Errorf("local state %s is damaged: %w", filepath.Join(dir, name), err)
	}
	return true, nil
}

// save replaces a JSON file below the system's directory, durably.
func (s *State) save(sys dr.System, name string, v any) error {
	dir, err := s.SystemDir(sys)
	if err != nil {
		return err
	}
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	// The directory is synced too: what is rewritten next may reach the disk
	// before the new name would.
	err = renameio.WriteFile(filepath.Join(dir, name), raw, 0o600, renameio.WithTempDir(dir))
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		return fmt.Errorf("local state %s of system %s: %w", name, sys, err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (s *State) remove(sys dr.System, name string) error {
	dir, err := s.SystemDir(sys)
	if err != nil {
		return err
	}
	err = os.Remove(filepath.Join(dir, name))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		return fmt.Errorf("local state %s of system %s: %w", name, sys, err)
	}
	return nil
}
