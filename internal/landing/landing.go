// Package landing marks a directory into which files are being restored, so that
// a run that was cut off can be gone on with, and nothing else is taken for one.
//
// The mark is a file in the directory itself: it goes where the directory goes,
// and one that another restore has left does not fit. It is durable before the
// first file is written and gone after the last one is (invariant 8). Landing is
// the main type. The package restores nothing.
package landing

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"lifeboat/internal/dr"
)

// prefix begins the name of a mark; the snapshot's id follows, which no name in
// the snapshot itself can contain.
const prefix = ".lifeboat-restore."

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
}

// Landing is a directory that one restore has to itself. Not safe for concurrent
// use.
type Landing struct {
	dir     string
	mark    *os.File
	inPlace bool
	resumed bool
	made    []string // directories that were not there, the outermost first
}

// Open takes the directory for a restore: it is made, or is empty, or holds the
// mark of the same purpose, or anything where the purpose is to write over it. The error wraps dr.ErrUsage if it holds
// anything else, dr.ErrHeld if another process is restoring there; then nothing was
// changed. The caller
// ends with Finish or Close.
func Open(dir string, p Purpose) (*Landing, error) {
	made := absent(dir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("directory to restore into: %w", err)
	}
	want, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	l := &Landing{dir: dir, made: made, inPlace: p.InPlace}
	var before unix.Stat_t
	if err := unix.Stat(dir, &before); err != nil {
		return nil, fmt.Errorf("directory to restore into: %w", err)
	}
	name := filepath.Join(dir, prefix+p.Snapshot.String())
	l.mark, err = os.OpenFile(name, os.O_RDWR|unix.O_NOFOLLOW, 0)
	switch {
	case err == nil:
		l.resumed = true
	case errors.Is(err, os.ErrNotExist):
		if err := l.vacant(""); err != nil {
			return nil, err
		}
		l.mark, err = os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("mark the directory to restore into: %w", err)
	}
	if err := l.take(want); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	if l.inPlace {
		// That a mark was made is no difference from the snapshot.
		if err := setTime(dir, before.Mtim); err != nil {
			return nil, errors.Join(err, l.Close())
		}
	}
	return l, nil
}

// take makes sure that nobody else restores here, and that the mark is the one
// that is wanted.
func (l *Landing) take(want []byte) error {
	if err := unix.Flock(int(l.mark.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("another process is restoring into %s: %w", l.dir, errors.Join(err, dr.ErrHeld))
	}
	if l.resumed {
		return l.fits(want)
	}
	return l.write(want)
}

// fits compares the mark that was found. One that was cut off while it was
// written says that nothing was restored yet: it is written again.
func (l *Landing) fits(want []byte) error {
	have, err := io.ReadAll(io.LimitReader(l.mark, maxMark))
	if err != nil {
		return fmt.Errorf("mark in %s: %w", l.dir, err)
	}
	if string(have) == string(want) {
		return nil
	}
	if strings.HasPrefix(string(want), string(have)) {
		if err := l.vacant(filepath.Base(l.mark.Name())); err != nil {
			return err
		}
		return l.write(want)
	}
	var p Purpose
	if err := json.Unmarshal(have, &p); err != nil {
		return fmt.Errorf("directory %s holds a damaged mark of a restore; nothing was changed: %w", l.dir, dr.ErrUsage)
	}
	return fmt.Errorf("directory %s holds a part of another restore (%s, path %q); nothing was changed: %w", l.dir, strings.Join(p.Trees, ", "), p.Path, dr.ErrUsage)
}

func (l *Landing) write(mark []byte) error {
	_, err := l.mark.WriteAt(mark, 0)
	if err = errors.Join(err, l.mark.Sync(), syncDir(l.dir)); err != nil {
		return fmt.Errorf("mark the directory to restore into: %w", err)
	}
	return nil
}

// vacant makes sure that nothing is overwritten that is not to be: nothing is there
// but what is called own, or what a restore in place is for.
func (l *Landing) vacant(own string) error {
	dir := l.dir
	names, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("directory to restore into: %w", err)
	}
	for _, e := range names {
		id, marked := strings.CutPrefix(e.Name(), prefix)
		switch {
		case e.Name() == own:
		case marked:
			return fmt.Errorf("directory %s holds a part of the restore of another snapshot (%s); nothing was changed: %w", dir, id, dr.ErrUsage)
		case l.inPlace:
		default:
			return fmt.Errorf("directory %s is not empty and holds no restore that was cut off; nothing was restored: %w", dir, dr.ErrUsage)
		}
	}
	return nil
}

// Own are the names in dir that a restore has to leave alone: the mark, where dir
// is the directory itself.
func (l *Landing) Own(dir string) []string {
	if filepath.Clean(dir) != filepath.Clean(l.dir) {
		return nil
	}
	return []string{filepath.Base(l.mark.Name())}
}

// Resumed reports whether an earlier run has left something here.
func (l *Landing) Resumed() bool { return l.resumed }

// Finish takes the mark away once everything is restored and on disk; the
// directory keeps its time.
func (l *Landing) Finish() error {
	err := func() error {
		var st unix.Stat_t
		if err := unix.Stat(l.dir, &st); err != nil {
			return err
		}
		if err := os.Remove(l.mark.Name()); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := setTime(l.dir, st.Mtim); err != nil {
			return err
		}
		return syncDir(l.dir)
	}()
	if err = errors.Join(err, l.Close()); err != nil {
		return fmt.Errorf("everything is restored, and the mark %s could not be taken away: %w", l.mark.Name(), err)
	}
	return nil
}

// Undo takes the mark away again, and the directories that Open made, where nothing
// was restored. What an earlier run has left stays as it is. The caller ends with Close
// all the same.
func (l *Landing) Undo() error {
	if l.resumed {
		return nil
	}
	if err := l.vacant(filepath.Base(l.mark.Name())); err != nil {
		return err
	}
	var before unix.Stat_t
	err := unix.Stat(l.dir, &before)
	if err == nil {
		err = os.Remove(l.mark.Name())
	}
	if err == nil && l.inPlace {
		err = setTime(l.dir, before.Mtim)
	}
	for i := len(l.made) - 1; i >= 0 && err == nil; i-- {
		err = os.Remove(l.made[i])
	}
	if err != nil {
		return fmt.Errorf("leave the directory as it was: %w", err)
	}
	return nil
}

// absent lists what is not there of a directory and those above it, the outermost
// first.
func absent(dir string) (list []string) {
	for dir = filepath.Clean(dir); ; dir = filepath.Dir(dir) {
		if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
			return list
		}
		list = append([]string{dir}, list...)
	}
}

// Close leaves the mark for a later run. Closing again does nothing.
func (l *Landing) Close() error {
	if err := l.mark.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

func setTime(dir string, mtime unix.Timespec) error {
	return unix.UtimesNanoAt(unix.AT_FDCWD, dir, []unix.Timespec{{Nsec: unix.UTIME_OMIT}, mtime}, 0)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
