package landing

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"

	"lifeboat/internal/dr"
)

// maxMark bounds what is read of a mark.
const maxMark = 64 << 10

// Purpose is what is restored into a directory.
type Purpose struct {
	// Repository is the id of the repository, Snapshot that of the snapshot.
	Repository string        `json:"repository"`
	Snapshot   dr.SnapshotID `json:"snapshot"`
	// Trees are the keys of the trees, Path what of them is wanted, as it was asked
	// for; "" is all.
	Trees []string `json:"trees"`
	Path  string   `json:"path"`
	// InPlace: the directory may hold anything, which is written over; Remove: what
	// the snapshot does not have goes.
	InPlace bool `json:"in_place,omitempty"`
	Remove  bool `json:"remove,omitempty"`
	// System is the snapshot's, for people; marks of older versions have none.
	System dr.System `json:"system,omitempty"`
	// File: the only tree is a single file, which lies in the directory.
	File bool `json:"-"`
	// Half: what the snapshot has of the trees is itself half restored.
	Half bool `json:"-"`
}

// markName is the name of the mark of this purpose, which is written want.
func (p Purpose) markName(want []byte) string {
	sum := sha256.Sum256(want)
	return dr.RestoreMark(p.Snapshot, hex.EncodeToString(sum[:8]))
}

// same reports whether two restores do the same.
func (p Purpose) same(q Purpose) bool {
	return p.sameSource(q) && slices.Equal(p.Trees, q.Trees) && p.Path == q.Path && p.InPlace == q.InPlace && p.Remove == q.Remove
}

func (p Purpose) sameSource(q Purpose) bool {
	return p.Repository == q.Repository && p.Snapshot == q.Snapshot
}

// covers reports whether a restore in place brings everything to its own end that
// the restore of a mark has begun. Without Remove, what the other snapshot has and
// this one has not would stay.
func (p Purpose) covers(m Mark) bool {
	old := m.Purpose
	switch {
	case !p.InPlace:
		return false
	case p.Half && (m.Damaged || !p.sameSource(old)): // it would be the end of nothing
		return false
	case p.Path == "" && p.Remove && len(p.Trees) == 1 && !p.File: // all that the directory holds
		return true
	case m.Damaged: // it can be of anything
		return p.Path == "" && p.Remove
	case !p.Remove && !p.sameSource(old):
		return false
	case (len(p.Trees) > 1) != (len(old.Trees) > 1): // several lie in a directory each
		return false
	case slices.ContainsFunc(old.Trees, func(t string) bool { return !slices.Contains(p.Trees, t) }):
		return false
	}
	// What a pattern means depends on the snapshot.
	return p.Path == "" || p.Path == old.Path && (p.sameSource(old) || !strings.ContainsAny(p.Path, `*?[\`))
}

// Mark is what a restore has left in a directory that is not at its end.
type Mark struct {
	Name string // of the file
	// Purpose is what it says; Damaged, that it says nothing that can be read.
	Purpose Purpose
	Damaged bool

	text []byte
	file *os.File // locked
}

// begunAs reports whether a mark was cut off while want was written: then nothing
// was restored yet.
func (m Mark) begunAs(want []byte) bool {
	return m.Damaged && strings.HasPrefix(string(want), string(m.text))
}

// Plain reports whether what the mark says can be printed as it is. A mark in a volume
// can be of anybody who may write there.
func (m Mark) Plain() bool {
	odd := func(s string) bool { return strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) }
	return !m.Damaged && !odd(string(m.Purpose.System)) && !odd(m.Purpose.Path) && !slices.ContainsFunc(m.Purpose.Trees, odd)
}

// String says for people what was being restored.
func (m Mark) String() string {
	if m.Damaged {
		return "a damaged mark of a restore, " + m.Name
	}
	s := strings.Join(m.Purpose.Trees, ", ")
	if !m.Plain() {
		s = strconv.Quote(s)
	}
	if m.Purpose.Path != "" {
		s += fmt.Sprintf(", path %q", m.Purpose.Path)
	}
	return "of " + s + ", snapshot " + m.Purpose.Snapshot.Short()
}

// OccupiedError says that a directory holds what other restores have left that were
// cut off. Nothing was changed.
type OccupiedError struct {
	Dir   string
	Marks []Mark
}

func (e *OccupiedError) Error() string {
	var all []string
	for _, m := range e.Marks {
		all = append(all, m.String())
	}
	return fmt.Sprintf("directory %s holds a part of another restore, which was cut off (%s); nothing was changed", e.Dir, strings.Join(all, "; "))
}

// Unwrap makes it one of usage.
func (e *OccupiedError) Unwrap() error { return dr.ErrUsage }

// Marks are the marks in a directory, as they are now; nothing is locked.
func Marks(dir string) ([]Mark, error) {
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []Mark
	for _, e := range names {
		if !e.Type().IsRegular() || !dr.IsRestoreMark(e.Name()) {
			continue
		}
		m := Mark{Name: e.Name()}
		f, err := os.OpenFile(filepath.Join(dir, m.Name), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err == nil {
			err = errors.Join(m.read(f), f.Close())
		}
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, nil
}

// read finds out what a mark says.
func (m *Mark) read(r io.Reader) (err error) {
	m.text, err = io.ReadAll(io.LimitReader(r, maxMark))
	m.Damaged = json.Unmarshal(m.text, &m.Purpose) != nil || len(m.Purpose.Trees) == 0
	return err
}

func heldError(dir string) error {
	return fmt.Errorf("another process is restoring into %s: %w", dir, dr.ErrHeld)
}

// openMark takes hold of a mark that is there.
func openMark(dir, name string) (Mark, error) {
	m, err := lockMark(dir, name, 0)
	if err != nil {
		return m, err
	}
	if err := m.read(m.file); err != nil {
		return m, errors.Join(fmt.Errorf("mark in %s: %w", dir, err), m.file.Close())
	}
	return m, nil
}

// makeMark makes one, still empty.
func makeMark(dir, name string) (Mark, error) { return lockMark(dir, name, os.O_CREATE|os.O_EXCL) }

func lockMark(dir, name string, how int) (Mark, error) {
	m := Mark{Name: name}
	var err error
	if m.file, err = os.OpenFile(filepath.Join(dir, name), os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK|how, 0o600); err != nil {
		return m, fmt.Errorf("mark the directory to restore into: %w", err)
	}
	if err := unix.Flock(int(m.file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return m, errors.Join(heldError(dir), err, m.file.Close())
	}
	return m, nil
}

func closeMarks(list []Mark) error {
	var errs []error
	for _, m := range list {
		if err := m.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
