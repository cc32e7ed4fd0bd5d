package tree

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"os"
	"sync/atomic"
)

// spoolPart is the most that is sealed in one go, in bytes.
const spoolPart = 1 << 20

// spool keeps secured bytes that exceed the budget in an unnamed file,
// encrypted with a key that never leaves memory: whatever becomes of the disk,
// nothing of the content is on it (invariant 9). Safe for concurrent use.
type spool struct {
	f    *os.File
	aead cipher.AEAD
	end  atomic.Int64
}

func newSpool(f *os.File) (*spool, error) {
	var key [32]byte
	// rand.Read never fails.
	_, _ = rand.Read(key[:])
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	return &spool{f: f, aead: aead}, nil
}

// nonce of the part at pos: positions never repeat within a file, and the key
// is the file's own.
func (s *spool) nonce(pos int64) []byte {
	return binary.BigEndian.AppendUint64(make([]byte, 4, 12), uint64(pos))
}

// put seals data, at most spoolPart bytes, and returns where it is. scratch
// has room for spoolPart+16 bytes.
func (s *spool) put(data, scratch []byte) (int64, error) {
	n := int64(len(data) + s.aead.Overhead())
	pos := s.end.Add(n) - n
	sealed := s.aead.Seal(scratch[:0], s.nonce(pos), data, nil)
	if _, err := s.f.WriteAt(sealed, pos); err != nil {
		return 0, fmt.Errorf("spool secured bytes: %w", err)
	}
	return pos, nil
}

// get opens the part of n bytes at pos into dst's memory.
func (s *spool) get(dst []byte, pos int64, n int) ([]byte, error) {
	if cap(dst) < n+s.aead.Overhead() {
		dst = make([]byte, n+s.aead.Overhead())
	}
	dst = dst[:n+s.aead.Overhead()]
	if _, err := s.f.ReadAt(dst, pos); err != nil {
		return nil, fmt.Errorf("read spool: %w", noEOF(err))
	}
	plain, err := s.aead.Open(dst[:0], s.nonce(pos), dst, nil)
	if err != nil {
		return nil, fmt.Errorf("read spool: %w", err)
	}
	return plain, nil
}
