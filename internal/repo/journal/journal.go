// Package journal keeps on this host which packs a writer has stored and no pack
// manifest names yet, so that a run that was cut off goes on without sending them
// again (docs/format.md, Writing rules).
//
// Main types: [Journal] is written by a run; [Recover] reads what runs left that
// are no longer there. A journal is a file of records, each authenticated with a
// key of the repository and bound to its place; reading ends at the first that is
// not whole, so a file that was cut off costs sending a pack or two again and no
// more. It is disposable, and holds no secrets: ids of units are keyed hashes.
//
// The package knows nothing of the registry: whether the packs are still there is
// the caller's question.
package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/zeebo/blake3"

	"lifeboat/internal/pack"
)

const (
	suffix = ".packs"
	macLen = 16
	// maxRecord bounds a record, in bytes: the index of a pack of small files.
	maxRecord = 64 << 20
	// maxFile bounds what is read of one journal, in bytes: a writer makes a pack
	// manifest long before.
	maxFile = 1 << 30
)

// Journal is the journal of one run. Safe for concurrent use.
type Journal struct {
	key [32]byte

	mu   sync.Mutex
	f    *os.File
	at   int64
	err  error // the first failure; nothing is added after it
	buf  []byte
	wake chan struct{}
	done chan struct{}
}

// Create begins a journal in dir, which exists. It is locked as long as this
// process lives and it is not closed.
func Create(dir string, key [32]byte) (*Journal, error) {
	f, err := os.CreateTemp(dir, "*"+suffix) // mode 0600
	if err != nil {
		return nil, fmt.Errorf("journal of packs: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("journal of packs: lock %s: %w", f.Name(), err), f.Close(), os.Remove(f.Name()))
	}
	j := &Journal{key: key, f: f, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go j.sync()
	return j, nil
}

// sync makes what was added durable, some time after it was added: what a power
// failure takes is sent again.
func (j *Journal) sync() {
	defer close(j.done)
	for range j.wake {
		_ = syscall.Fdatasync(int(j.f.Fd())) // a disk that fails costs sending again
	}
}

// Add notes a pack that is stored. It is in the file on return, whatever becomes
// of the process, and on the disk soon after. A failure is returned by every
// later call.
func (j *Journal) Add(p pack.Info) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err != nil {
		return j.err
	}
	j.buf = append(j.buf[:0], 0, 0, 0, 0)
	j.buf = encode(j.buf, p)
	binary.BigEndian.PutUint32(j.buf, uint32(len(j.buf)-4))
	j.buf = appendMAC(j.buf, j.key, j.at)
	n, err := j.f.WriteAt(j.buf, j.at)
	if err != nil {
		j.err = fmt.Errorf("journal of packs: %w", err)
		return j.err
	}
	j.at += int64(n)
	select {
	case j.wake <- struct{}{}:
	default:
	}
	return nil
}

// appendMAC authenticates a record, which begins b, and its place in the file.
func appendMAC(b []byte, key [32]byte, at int64) []byte {
	h, err := blake3.NewKeyed(key[:])
	if err != nil {
		panic(err) // NewKeyed refuses nothing but keys that are not of 32 bytes
	}
	var place [8]byte
	binary.BigEndian.PutUint64(place[:], uint64(at))
	_, _ = h.Write(place[:]) // never fails
	_, _ = h.Write(b)
	var sum [32]byte
	h.Sum(sum[:0])
	return append(b, sum[:macLen]...)
}

// Close ends the journal and leaves its file for Recover. It may be called once,
// or Remove.
func (j *Journal) Close() error {
	close(j.wake)
	<-j.done
	return j.f.Close()
}

// Remove ends the journal and deletes its file: a pack manifest names what was in
// it.
func (j *Journal) Remove() error {
	err := os.Remove(j.f.Name())
	return errors.Join(err, j.Close())
}

// Recover hands what each journal in dir holds, whose writer is no longer there,
// to use, and deletes it when use returns nil. Journals of writers that run are
// left alone. An error of use ends it and comes back as it is.
func Recover(dir string, key [32]byte, use func([]pack.Info) error) error {
	list, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("journals of packs: %w", err)
	}
	for _, e := range list {
		if !strings.HasSuffix(e.Name(), suffix) {
			continue
		}
		if err := recoverOne(filepath.Join(dir, e.Name()), key, use); err != nil {
			return err
		}
	}
	return nil
}

func recoverOne(name string, key [32]byte, use func([]pack.Info) error) error {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // another process was faster
	}
	if err != nil {
		return fmt.Errorf("journal of packs: %w", err)
	}
	defer func() { _ = f.Close() }() // read only; it also unlocks
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil // its writer lives, or another process reads it
	}
	if st, err := os.Stat(name); err != nil || !sameFile(f, st) {
		return nil // read and deleted by another process meanwhile
	}
	infos, err := read(f, key)
	if err != nil {
		return fmt.Errorf("journal of packs %s: %w", name, err)
	}
	if len(infos) > 0 {
		if err := use(infos); err != nil {
			return err
		}
	}
	if err := os.Remove(name); err != nil {
		return fmt.Errorf("journal of packs: %w", err)
	}
	return nil
}

func sameFile(f *os.File, st fs.FileInfo) bool {
	have, err := f.Stat()
	return err == nil && os.SameFile(have, st)
}

// read returns the records up to the first that is not whole. The error is that
// of the disk.
func read(f io.Reader, key [32]byte) ([]pack.Info, error) {
	raw, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return nil, err
	}
	var out []pack.Info
	for at := 0; ; {
		info, n, ok := readRecord(raw[at:], key, int64(at))
		if !ok {
			return out, nil
		}
		out = append(out, info)
		at += n
	}
}

// readRecord reads the record that begins b.
func readRecord(b []byte, key [32]byte, at int64) (info pack.Info, n int, ok bool) {
	if len(b) < 4 {
		return info, 0, false
	}
	size := binary.BigEndian.Uint32(b)
	if size > maxRecord || uint64(len(b)) < 4+uint64(size)+macLen {
		return info, 0, false
	}
	end := 4 + int(size)
	// Not secret from who may read the file, so it need not be compared in
	// constant time; it is against accidents and against files from elsewhere.
	if string(appendMAC(b[:end:end], key, at)[end:]) != string(b[end:end+macLen]) {
		return info, 0, false
	}
	info, err := decode(b[4:end])
	return info, end + macLen, err == nil
}
