package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/zeebo/blake3"

	"lifeboat/internal/dr"
)

// ErrGeneration: something was sealed with a data key that is not at hand: the
// key was rotated after the repository was opened, or the bytes are altered.
// It wraps dr.ErrTampered; a caller that can read the key records again does
// so first.
var ErrGeneration = fmt.Errorf("sealed with an unknown key generation: %w", dr.ErrTampered)

// ErrOpen: sealed bytes fail authentication. It wraps dr.ErrTampered.
var ErrOpen = fmt.Errorf("sealed data fails authentication: %w", dr.ErrTampered)

// Overhead is what sealing adds to a group, segment or record, in bytes.
const Overhead = 16

// SaltSize is the length of the salt in the header of a pack or an index.
const SaltSize = 32

// Salt makes the key of one pack or index.
type Salt [SaltSize]byte

// NewSalt draws a salt.
func NewSalt() (s Salt) {
	fill(s[:])
	return s
}

// Ring seals, opens and hashes with the keys of one repository. It is
// immutable and safe for concurrent use.
type Ring struct {
	secret  *Secret
	hashers sync.Pool
}

// NewRing returns the ring of a secret.
func NewRing(s *Secret) *Ring {
	r := &Ring{secret: s}
	r.hashers.New = func() any {
		h, err := blake3.NewKeyed(s.idKey[:])
		if err != nil {
			panic(errKeyLength) // the type makes it impossible
		}
		return h
	}
	return r
}

// Secret returns what the ring was made of.
func (r *Ring) Secret() *Secret { return r.secret }

// Repo is the repository's id.
func (r *Ring) Repo() dr.RepoID { return r.secret.repo }

// Generation is the key generation that seals what is new.
func (r *Ring) Generation() Generation { return r.secret.generation }

// UnitID is the keyed hash of a unit's content.
func (r *Ring) UnitID(content []byte) (id dr.UnitID) {
	h := r.hashers.Get().(*blake3.Hasher)
	h.Reset()
	_, _ = h.Write(content) // never fails
	h.Sum(id[:0])
	r.hashers.Put(h)
	return id
}

// LocalKey derives a key for files that stay on this host (the index cache),
// fixed for the repository's life.
func (r *Ring) LocalKey(context string) [32]byte { return Derive(context, r.secret.idKey[:]) }

// Pack returns the cipher of the pack with this generation and salt.
// ErrGeneration when its data key is not at hand.
func (r *Ring) Pack(g Generation, s Salt) (cipher.AEAD, error) {
	return r.aead("lifeboat v1 pack", g, s[:])
}

func (r *Ring) aead(context string, g Generation, salt []byte) (cipher.AEAD, error) {
	k, ok := r.secret.dataKeys[g]
	if !ok {
		return nil, fmt.Errorf("generation %d of %d: %w", g, r.secret.generation, ErrGeneration)
	}
	key := Derive(context, k[:], salt)
	return newGCM(key)
}

var errCipher = errors.New("cipher cannot be made")

func newGCM(key [32]byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errCipher, err)
	}
	a, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errCipher, err)
	}
	return a, nil
}

// CounterNonce is the nonce of group or segment i under a key that is used for
// one pack or index only: 3 zero bytes, the flag, i big endian.
func CounterNonce(flag byte, i uint64) (n [12]byte) {
	n[3] = flag
	binary.BigEndian.PutUint64(n[4:], i)
	return n
}
