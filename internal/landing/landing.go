// Package landing marks a directory into which files are being restored, so that
// a run that was cut off can be gone on with, and nothing else is taken for one.
//
// The mark is a file in the directory itself: it goes where the directory goes,
// and one that another restore has left does not fit. It is durable before the
// first file is written and gone after the last one is (invariant 8). A restore in
// place takes over the marks of others, where it brings all that they speak of to
// its own end (Purpose.covers). Landing is the main type. The package restores
// nothing.
package landing

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"lifeboat/internal/dr"
)

// Landing is a directory that one restore has to itself. Not safe for concurrent
// use.
type Landing struct {
	dir     string
	purpose Purpose
	own     *Mark
	taken   []Mark // of others, which end with this one
	left    []Mark // of others, which stay
	resumed bool
	made    []string // directories that were not there, the outermost first
}

// Open takes the directory for a restore: it is made, or is empty, or holds the
// mark of the same purpose; or anything where the purpose is to write over it. The
// error is an OccupiedError if it holds marks of others that stand in the way, wraps
// dr.ErrUsage if it holds anything else, dr.ErrHeld if another process is restoring
// there; then nothing was changed. The caller ends with Finish or Close.
func Open(dir string, p Purpose) (_ *Landing, err error) {
	l := &Landing{dir: dir, purpose: p, made: absent(dir)}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("directory to restore into: %w", err)
	}
	want, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	var before unix.Stat_t
	if err := unix.Stat(dir, &before); err != nil {
		return nil, fmt.Errorf("directory to restore into: %w", err)
	}
	if err := l.admit(want); err != nil {
		return nil, err
	}
	if l.own == nil {
		err = l.mark(want)
	} else if l.own.Damaged {
		err = l.write(want)
	}
	if err != nil {
		return nil, err
	}
	if p.InPlace {
		// That a mark was made is no difference from the snapshot.
		if err := setTime(dir, before.Mtim); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// admit looks at what is there, and decides about the marks that are.
func (l *Landing) admit(want []byte) error {
	names, others, err := l.list()
	if err != nil {
		return err
	}
	name := l.purpose.markName(want)
	var way []Mark
	for _, n := range names {
		m, err := openMark(l.dir, n)
		if errors.Is(err, os.ErrNotExist) {
			continue // its restore has ended
		}
		if err != nil {
			return errors.Join(err, closeMarks(way))
		}
		switch begun := n == name && m.begunAs(want); {
		case l.own == nil && (begun || !m.Damaged && m.Purpose.same(l.purpose) || n == name && m.Damaged && l.purpose.covers(m)):
			l.own, l.resumed = &m, true
		case l.purpose.covers(m):
			l.taken = append(l.taken, m)
		case l.purpose.InPlace && l.purpose.Path != "":
			l.left = append(l.left, m)
		default:
			way = append(way, m)
		}
	}
	switch {
	case len(way) > 0:
		return errors.Join(&OccupiedError{Dir: l.dir, Marks: way}, closeMarks(way))
	case others && !l.purpose.InPlace && (l.own == nil || l.own.begunAs(want)):
		return l.notEmpty() // nothing was restored yet: it is somebody's
	}
	return nil
}

func (l *Landing) notEmpty() error {
	return fmt.Errorf("directory %s is not empty and holds no restore that was cut off; nothing was restored: %w", l.dir, dr.ErrUsage)
}

// list returns the names of the marks in the directory, and whether it holds
// anything else.
func (l *Landing) list() (marks []string, others bool, err error) {
	names, err := os.ReadDir(l.dir)
	if err != nil {
		return nil, false, fmt.Errorf("directory to restore into: %w", err)
	}
	for _, e := range names {
		if e.Type().IsRegular() && dr.IsRestoreMark(e.Name()) {
			marks = append(marks, e.Name())
		} else {
			others = true
		}
	}
	return marks, others, nil
}

// mark makes the mark, and makes sure that nobody else has made one meanwhile.
func (l *Landing) mark(want []byte) error {
	m, err := makeMark(l.dir, l.purpose.markName(want))
	if err != nil {
		return err
	}
	l.own = &m
	err = l.write(want)
	names, _, lerr := l.list()
	if err = errors.Join(err, lerr); err == nil {
		for _, n := range names {
			if !slices.Contains(l.Own(l.dir), n) {
				err = heldError(l.dir)
			}
		}
	}
	if err != nil {
		return errors.Join(err, l.Undo())
	}
	return nil
}

func (l *Landing) write(want []byte) error {
	err := l.own.file.Truncate(0)
	if err == nil {
		_, err = l.own.file.WriteAt(want, 0)
	}
	if err = errors.Join(err, l.own.file.Sync(), syncDir(l.dir)); err != nil {
		return fmt.Errorf("mark the directory to restore into: %w", err)
	}
	return nil
}

// Own are the names in dir that a restore has to leave alone: the marks, where dir
// is the directory itself.
func (l *Landing) Own(dir string) []string {
	if filepath.Clean(dir) != filepath.Clean(l.dir) {
		return nil
	}
	names := []string{l.own.Name}
	for _, m := range slices.Concat(l.taken, l.left) {
		names = append(names, m.Name)
	}
	return names
}

// Resumed reports whether an earlier run of the same has left something here.
func (l *Landing) Resumed() bool { return l.resumed }

// Taken are the marks of other restores that are at their end with this one.
func (l *Landing) Taken() []Mark { return l.taken }

// Left are the marks of other restores of which this one brings but a part to its
// end: they stay, and the directory stays half restored.
func (l *Landing) Left() []Mark { return l.left }

// Finish takes the mark away once everything is restored and on disk, and those that
// were taken over; the directory keeps its time.
func (l *Landing) Finish() error {
	err := func() error {
		var st unix.Stat_t
		if err := unix.Stat(l.dir, &st); err != nil {
			return err
		}
		// The own one goes last: what is cut off here is gone on with.
		for _, m := range append(slices.Clone(l.taken), *l.own) {
			if err := os.Remove(filepath.Join(l.dir, m.Name)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		if err := setTime(l.dir, st.Mtim); err != nil {
			return err
		}
		return syncDir(l.dir)
	}()
	if err = errors.Join(err, l.Close()); err != nil {
		return fmt.Errorf("everything is restored, and the mark %s could not be taken away: %w", filepath.Join(l.dir, l.own.Name), err)
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
	if _, others, err := l.list(); err != nil {
		return err
	} else if others && !l.purpose.InPlace {
		return l.notEmpty()
	}
	var before unix.Stat_t
	err := unix.Stat(l.dir, &before)
	if err == nil {
		err = os.Remove(filepath.Join(l.dir, l.own.Name))
	}
	if err == nil && l.purpose.InPlace {
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
	all := slices.Concat(l.taken, l.left)
	if l.own != nil {
		all = append(all, *l.own)
	}
	return closeMarks(all)
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
