// Package readlog remembers, in one local file, when this host last read each
// pack of a repository from its first byte to its last, so that a verification
// that reads a little every day reads everything every so often, and one that is
// cut off goes on where it was.
//
// Main types: [Log] is an open file; [Entry] is what is known of one pack.
// [Choose] decides what a run reads (no I/O).
//
// The file is a journal: a record is appended as soon as a pack was read, and
// the last one counts. It is disposable and bounded: losing it, or a record of
// it, means only that reading begins again there. The package does not read
// packs and knows nothing of what is in them.
package readlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/zeebo/blake3"
)

// Digest is the SHA-256 of a pack.
type Digest = [32]byte

// Entry is what is known of one pack.
type Entry struct {
	// Seen is when the pack was first met, Read when it was last read whole and
	// found sound; zero for never.
	Seen, Read time.Time
	// Bad: it was found damaged since.
	Bad bool
}

// Since is the time from which the next reading is counted.
func (e Entry) Since() time.Time {
	if e.Read.IsZero() {
		return e.Seen
	}
	return e.Read
}

// Record kinds.
const (
	kindSeen = iota + 1
	kindRead
	kindBad
	kindRun   // a sampling run has ended; the digest is zero
	kindBegun // a run that reads all has begun; the digest is that of its scope
	kindDone  // and has ended
)

// recordSize is digest 32, kind 1, unix seconds 7, checksum 8.
const recordSize = 48

// spare is how many records more than packs there may be before the file is
// written anew.
const spare = 4096

// Log is an open log. Safe for concurrent use; several processes may have one
// file open.
type Log struct {
	name string

	mu      sync.Mutex
	f       *os.File // nil: memory only
	entries map[Digest]Entry
	lastRun time.Time
	begun   map[Digest]time.Time
	records int
}

// New returns a log that is kept in memory.
func New() *Log { return &Log{entries: map[Digest]Entry{}, begun: map[Digest]time.Time{}} }

// Copy returns a log in memory that begins with what l knows now.
func (l *Log) Copy() *Log {
	l.mu.Lock()
	defer l.mu.Unlock()
	return &Log{entries: maps.Clone(l.entries), begun: maps.Clone(l.begun), lastRun: l.lastRun}
}

// Open opens the log in a file, or makes it. What cannot be understood of it is
// as if it were not there; the error is that of the file system.
func Open(name string) (*Log, error) {
	l := New()
	l.name = name
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open read log: %w", err)
	}
	b, err := io.ReadAll(f)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open read log: %w", err), f.Close())
	}
	l.f = f
	l.decode(b)
	if torn := len(b) % recordSize; torn != 0 { // a record that a crash has cut off
		if err := f.Truncate(int64(len(b) - torn)); err != nil {
			return nil, errors.Join(fmt.Errorf("open read log: %w", err), f.Close())
		}
	}
	return l, nil
}

// decode plays the records.
func (l *Log) decode(b []byte) {
	for ; len(b) >= recordSize; b = b[recordSize:] {
		l.records++
		sum := blake3.Sum256(b[:40])
		if string(sum[:8]) != string(b[40:48]) {
			continue
		}
		var d Digest
		copy(d[:], b)
		l.apply(d, b[32], time.Unix(int64(binary.BigEndian.Uint64(b[32:40])&(1<<56-1)), 0))
	}
}

func (l *Log) apply(d Digest, kind byte, at time.Time) {
	e := l.entries[d]
	switch kind {
	case kindSeen:
		e.Seen = at
	case kindRead:
		e.Read, e.Bad = at, false
	case kindBad:
		e.Bad = true
	case kindRun:
		l.lastRun = at
		return
	case kindBegun:
		l.begun[d] = at
		return
	case kindDone:
		delete(l.begun, d)
		return
	default:
		return
	}
	l.entries[d] = e
}

func encode(d Digest, kind byte, at time.Time) []byte {
	b := append(make([]byte, 0, recordSize), d[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(at.Unix())&(1<<56-1))
	b[32] = kind
	sum := blake3.Sum256(b)
	return append(b, sum[:8]...)
}

func (l *Log) write(d Digest, kind byte, at time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.apply(d, kind, at)
	if l.f == nil {
		return nil
	}
	l.records++
	if _, err := l.f.Write(encode(d, kind, at)); err != nil {
		return fmt.Errorf("write read log: %w", err)
	}
	return nil
}

// Read notes that a pack was read whole and is sound.
func (l *Log) Read(d Digest, at time.Time) error { return l.write(d, kindRead, at) }

// Bad notes that a pack was found damaged.
func (l *Log) Bad(d Digest, at time.Time) error { return l.write(d, kindBad, at) }

// Ended notes that a run has read all that it chose.
func (l *Log) Ended(at time.Time) error { return l.write(Digest{}, kindRun, at) }

// stale is how old a run that was cut off may be to be gone on with.
const stale = 7 * 24 * time.Hour

// Begin notes that a run begins that reads all of a scope (a system, say; "" is
// everything), and returns the second after which what was read need not be read
// again, that in which an earlier run over the same scope began that was cut off;
// zero where there is none, and all is to be read.
func (l *Log) Begin(scope string, now time.Time) (time.Time, error) {
	d := blake3.Sum256([]byte(scope))
	l.mu.Lock()
	at, ok := l.begun[d]
	l.mu.Unlock()
	if ok && !at.After(now) && now.Sub(at) < stale {
		return at, nil
	}
	return time.Time{}, l.write(d, kindBegun, time.Unix(now.Unix(), 0)) // as the file keeps it
}

// Done notes that a run over a scope has read all of it.
func (l *Log) Done(scope string, now time.Time) error {
	return l.write(blake3.Sum256([]byte(scope)), kindDone, now)
}

// LastRun is when a run last ended, zero for never or in the future of now: then
// a clock was wrong.
func (l *Log) LastRun(now time.Time) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lastRun.After(now) {
		return time.Time{}
	}
	return l.lastRun
}

// Get returns what is known of a pack, and notes that it was met where nothing
// is. A time after now was written by a wrong clock and counts as never.
func (l *Log) Get(d Digest, now time.Time) (Entry, error) {
	l.mu.Lock()
	e := l.entries[d]
	l.mu.Unlock()
	if e.Read.After(now) {
		e.Read = time.Time{}
	}
	if !e.Seen.IsZero() && !e.Seen.After(now) {
		return e, nil
	}
	e.Seen = now
	return e, l.write(d, kindSeen, now)
}

// Keep forgets all packs but those that keep names, and writes the file anew
// where it has become much longer than it need be.
func (l *Log) Keep(keep func(Digest) bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.DeleteFunc(l.entries, func(d Digest, _ Entry) bool { return !keep(d) })
	if l.f == nil || l.records <= 3*len(l.entries)+spare {
		return nil
	}
	return l.rewrite()
}

// rewrite replaces the file, whole or not at all unless the power fails; the
// caller holds mu. What another process appends to the old one meanwhile is
// lost, and read again some day.
func (l *Log) rewrite() error {
	var b []byte
	records := 0
	add := func(d Digest, kind byte, at time.Time) {
		b = append(b, encode(d, kind, at)...)
		records++
	}
	for d, e := range l.entries {
		if !e.Seen.IsZero() {
			add(d, kindSeen, e.Seen)
		}
		if !e.Read.IsZero() {
			add(d, kindRead, e.Read)
		}
		if e.Bad {
			add(d, kindBad, e.Seen)
		}
	}
	for d, at := range l.begun {
		add(d, kindBegun, at)
	}
	if !l.lastRun.IsZero() {
		add(Digest{}, kindRun, l.lastRun)
	}
	f, err := os.CreateTemp(filepath.Dir(l.name), ".readlog-*.tmp") // mode 0600
	if err != nil {
		return fmt.Errorf("write read log: %w", err)
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), l.name)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write read log: %w", err), ignoreMissing(os.Remove(f.Name())))
	}
	if f, err = os.OpenFile(l.name, os.O_RDWR|os.O_APPEND, 0o600); err != nil {
		return fmt.Errorf("write read log: %w", err)
	}
	err = l.f.Close()
	l.f, l.records = f, records
	return err
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// BadOnes lists the packs that were found damaged and not sound since.
func (l *Log) BadOnes() []Digest {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []Digest
	for d, e := range l.entries {
		if e.Bad {
			out = append(out, d)
		}
	}
	return out
}

// Close closes the file.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil {
		return nil
	}
	err := l.f.Close()
	l.f = nil
	return err
}
