package layer

import (
	"hash"
	"io"
)

// asyncWriter writes on its own goroutine, so that hashing or compressing
// runs beside reading and cutting. The first error is reported by a later
// Write or by Close. Close must be called, also after an error: it waits for
// the goroutine. One writer, one goroutine.
type asyncWriter struct {
	full, free chan []byte
	done       chan struct{}
	cur        []byte
	err        error // of the goroutine; valid once done is closed
	closed     bool
}

const (
	asyncBuffers = 4
	asyncBuffer  = 256 << 10
)

func newAsyncWriter(w io.Writer) *asyncWriter {
	a := &asyncWriter{
		full: make(chan []byte, asyncBuffers),
		free: make(chan []byte, asyncBuffers),
		done: make(chan struct{}),
	}
	for range asyncBuffers {
		a.free <- make([]byte, 0, asyncBuffer)
	}
	a.cur = <-a.free
	go func() {
		defer close(a.done)
		for b := range a.full {
			if _, a.err = w.Write(b); a.err != nil {
				return
			}
			a.free <- b[:0]
		}
	}()
	return a
}

func (a *asyncWriter) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		n := min(len(p), cap(a.cur)-len(a.cur))
		a.cur = append(a.cur, p[:n]...)
		p = p[n:]
		if len(a.cur) == cap(a.cur) {
			if err := a.send(); err != nil {
				return 0, err
			}
		}
	}
	return total, nil
}

func (a *asyncWriter) send() error {
	select {
	case a.full <- a.cur:
	case <-a.done:
		return a.err
	}
	select {
	case a.cur = <-a.free:
		return nil
	case <-a.done:
		return a.err
	}
}

// Close hands over what is left, waits for the goroutine and returns its error.
// It may be called more than once.
func (a *asyncWriter) Close() error {
	if a.closed {
		return a.err
	}
	a.closed = true
	select {
	case a.full <- a.cur:
	case <-a.done:
	}
	close(a.full)
	<-a.done
	return a.err
}

// asyncHash hashes on its own goroutine and counts.
type asyncHash struct {
	*asyncWriter
	h    hash.Hash
	size int64
}

func newAsyncHash(h hash.Hash) *asyncHash {
	return &asyncHash{asyncWriter: newAsyncWriter(h), h: h}
}

func (a *asyncHash) Write(p []byte) (int, error) {
	a.size += int64(len(p))
	return a.asyncWriter.Write(p)
}

// digest ends the hash.
func (a *asyncHash) digest() (Digest, error) {
	if err := a.Close(); err != nil {
		return "", err
	}
	return digestFrom(a.h.Sum(nil)), nil
}
