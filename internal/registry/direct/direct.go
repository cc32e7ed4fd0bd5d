// Package direct writes big files past the page cache.
//
// What is written once and not read soon, such as packs that a registry receives,
// costs a copy into the page cache, pages that something else has to make room for,
// and a second pass when they are written back: as much processor time as hashing
// them. [Writer] hands full buffers to the disk itself where the file system can do
// that (O_DIRECT), and writes like any other where it cannot, and what is small.
//
// Nothing is durable before fsync, as with any writer. The package reads nothing.
package direct

import (
	"errors"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// align is what addresses, offsets, and lengths have to be a multiple of. Disks
	// have sectors of 512 or 4096 bytes.
	align = 4096
	// bufferSize is how much is handed to the disk at a time, in bytes: enough that
	// the time of a request does not count, and that pieces of several files that are
	// written at once do not lie too scattered.
	bufferSize = 1 << 20
)

// Buffers are those that writers share. The zero value is ready to be used; safe
// for concurrent use.
type Buffers struct{ pool sync.Pool }

func (b *Buffers) get() *[]byte {
	if buf, ok := b.pool.Get().(*[]byte); ok {
		return buf
	}
	raw := make([]byte, bufferSize+align)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(raw)))) & (align - 1)
	buf := raw[skip : skip+bufferSize : skip+bufferSize]
	return &buf
}

// Writer writes a file from some offset on. Not safe for concurrent use.
type Writer struct {
	file *os.File
	from *Buffers
	buf  *[]byte // nil while nothing is buffered
	held int     // bytes of buf
	at   int64   // where buf belongs in the file

	past    bool // O_DIRECT is set
	refused bool // the file system cannot do it
}

// NewWriter returns a writer of f that begins at an offset in bytes. It takes its
// buffer from from. The file must not have been opened for appending.
func NewWriter(f *os.File, at int64, from *Buffers) *Writer {
	return &Writer{file: f, from: from, at: at}
}

// Write buffers p, and writes what fills the buffer. Errors are those of the disk.
func (w *Writer) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		if w.buf == nil {
			w.buf = w.from.get()
		}
		k := copy((*w.buf)[w.held:], p)
		p, n, w.held = p[k:], n+k, w.held+k
		if w.held == bufferSize {
			if err := w.out(); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

// Flush writes what is buffered and gives the buffer back. More may be written
// afterwards.
func (w *Writer) Flush() error {
	defer w.Release()
	return w.out()
}

// Release gives the buffer back with what is in it, which is not written.
func (w *Writer) Release() {
	if w.buf != nil {
		w.from.pool.Put(w.buf)
		w.buf, w.held = nil, 0
	}
}

// out writes what is buffered: past the page cache as much as is whole.
func (w *Writer) out() error {
	if w.held == 0 {
		return nil
	}
	data := (*w.buf)[:w.held]
	w.held = 0
	// Small files, and ends, are written as any other.
	if len(data) == bufferSize && w.at%align == 0 {
		w.bypass(true)
	}
	if whole := len(data) &^ (align - 1); w.past && whole > 0 && w.at%align == 0 {
		done, err := w.write(data[:whole])
		data = data[done:]
		if errors.Is(err, unix.EINVAL) {
			w.refused = true // said so only now
		} else if err != nil {
			return err
		}
	}
	if len(data) > 0 {
		w.bypass(false)
		if _, err := w.write(data); err != nil {
			return err
		}
	}
	return nil
}

func (w *Writer) write(data []byte) (int, error) {
	n, err := w.file.WriteAt(data, w.at)
	w.at += int64(n)
	return n, err
}

// bypass sets or clears O_DIRECT.
func (w *Writer) bypass(on bool) {
	if w.past == on || on && w.refused {
		return
	}
	fd := w.file.Fd()
	flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0)
	if err == nil {
		flags &^= unix.O_DIRECT
		if on {
			flags |= unix.O_DIRECT
		}
		_, err = unix.FcntlInt(fd, unix.F_SETFL, flags)
	}
	// Where it cannot be set it is not needed; where it cannot be cleared, a write
	// that is not aligned says so.
	w.refused = w.refused || err != nil
	w.past = on && err == nil
}
