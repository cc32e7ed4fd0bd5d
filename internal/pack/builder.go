package pack

import (
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"lifeboat/internal/dr"
	"lifeboat/internal/seal"
)

const (
	// HeaderSize is the length of a pack's header, in bytes.
	HeaderSize = 4 + 1 + 4 + seal.SaltSize
	// TargetSize is the size, in bytes, above which a pack is not filled further.
	TargetSize = 8 << 20
	// TargetUnits is how many units a pack has at most when it is written: tiny
	// ones that compress well would otherwise make an index of any size.
	TargetUnits = 64 << 10
	// BufferSize is the room for a pack with its padding.
	BufferSize = TargetSize + TargetSize/16
	// MaxSize is the largest pack that is accepted.
	MaxSize = 64 << 20
	// MaxPacks is the largest number of packs of one pack manifest.
	MaxPacks = 10000

	packMagic = "LBPK"
	// GroupOverhead is what sealing and the codec byte add to a group.
	GroupOverhead = seal.Overhead + 1
)

// Header is what a pack's key and nonces are made of; the index repeats it, so
// that a group can be read without the beginning of its pack.
type Header struct {
	Generation seal.Generation
	Salt       seal.Salt
}

func (h Header) encode() []byte {
	b := make([]byte, HeaderSize)
	copy(b, packMagic)
	b[4] = 1
	binary.BigEndian.PutUint32(b[5:], uint32(h.Generation))
	copy(b[9:], h.Salt[:])
	return b
}

// CheckHeader compares the first HeaderSize bytes of a stored pack with what
// its index says. The error wraps dr.ErrTampered.
func (h Header) CheckHeader(stored []byte) error {
	if string(h.encode()) != string(stored) {
		return fmt.Errorf("pack header is not that of its index: %w", dr.ErrTampered)
	}
	return nil
}

// GroupInfo is where a sealed group lies in its pack and what it holds.
type GroupInfo struct {
	Offset, Sealed, Plain uint32
	Units                 []dr.UnitRef
}

// Info is what the index keeps of a pack.
type Info struct {
	// Digest is the SHA-256 of the pack; the builder leaves it to its caller,
	// who computes it once, on another core (see Digest).
	Digest [sha256.Size]byte
	Size   int64
	Header Header
	Groups []GroupInfo
}

// Builder fills one pack in memory. Not safe for concurrent use.
type Builder struct {
	a    cipher.AEAD
	head Header
	data []byte // additional data of every group
	buf  []byte
	info Info

	units int
}

// NewBuilder begins a pack in buf. When its memory does not suffice it is
// exchanged once, for one of BufferSize.
func NewBuilder(r *seal.Ring, buf []byte) (*Builder, error) {
	h := Header{Generation: r.Generation(), Salt: seal.NewSalt()}
	a, err := r.Pack(h.Generation, h.Salt)
	if err != nil {
		return nil, fmt.Errorf("begin pack: %w", err)
	}
	head := h.encode()
	repo := r.Repo()
	return &Builder{a: a, head: h, data: append(head, repo[:]...), buf: append(buf[:0], head...), info: Info{Header: h}}, nil
}

// Groups is the number of groups so far.
func (b *Builder) Groups() int { return len(b.info.Groups) }

// Fits reports whether a payload of n bytes with so many units may be added:
// always into an empty pack.
func (b *Builder) Fits(n, units int) bool {
	return len(b.info.Groups) == 0 || len(b.buf)+n+seal.Overhead <= TargetSize && b.units+units <= TargetUnits
}

// Add seals the payload of a group (see Codec.Encode) into the pack. units are
// kept.
func (b *Builder) Add(payload []byte, units []dr.UnitRef) {
	var plain uint32
	for _, u := range units {
		plain += u.Len
	}
	if n := len(b.buf) + len(payload) + seal.Overhead; n > cap(b.buf) {
		b.buf = append(make([]byte, 0, max(BufferSize, n+n/16)), b.buf...)
	}
	b.units += len(units)
	off := len(b.buf)
	nonce := seal.CounterNonce(0, uint64(len(b.info.Groups)))
	b.buf = b.a.Seal(b.buf, nonce[:], payload, b.data)
	b.info.Groups = append(b.info.Groups, GroupInfo{
		Offset: uint32(off), Sealed: uint32(len(b.buf) - off), Plain: plain, Units: clipUnits(units),
	})
}

// Finish pads the pack and returns its bytes, which share memory with buf, and
// what the index keeps of it, without the digest. The builder is done.
func (b *Builder) Finish() ([]byte, Info) {
	n := len(b.buf)
	size := int(Padme(int64(n)))
	if cap(b.buf) < size {
		b.buf = append(make([]byte, 0, size), b.buf...)
	}
	b.buf = b.buf[:size]
	_, _ = rand.Read(b.buf[n:]) // never fails: it ends the program instead
	b.info.Size = int64(size)
	return b.buf, b.info
}

// Opener opens the groups of one pack. Safe for concurrent use.
type Opener struct {
	a     cipher.AEAD
	codec *Codec
	data  []byte
}

// NewOpener returns the opener of the pack with header h. Errors:
// seal.ErrGeneration.
func NewOpener(r *seal.Ring, c *Codec, h Header) (*Opener, error) {
	a, err := r.Pack(h.Generation, h.Salt)
	if err != nil {
		return nil, fmt.Errorf("open pack: %w", err)
	}
	repo := r.Repo()
	return &Opener{a: a, codec: c, data: append(h.encode(), repo[:]...)}, nil
}

// Open opens group number i, which is authenticated, and appends its body of
// exactly plain bytes to dst. sealed is overwritten. The units in it are not
// yet compared with their ids. The error wraps dr.ErrTampered.
func (o *Opener) Open(dst []byte, i int, sealed []byte, plain int) ([]byte, error) {
	return o.open(dst, i, sealed, plain, o.codec.Decode)
}

// View is Open without a copy where the group was not compressed: the body then
// lies in sealed's memory, else in dst's where it fits.
func (o *Opener) View(dst []byte, i int, sealed []byte, plain int) ([]byte, error) {
	return o.open(dst[:0], i, sealed, plain, o.codec.view)
}

func (o *Opener) open(dst []byte, i int, sealed []byte, plain int, decode func(dst, payload []byte, plain int) ([]byte, error)) ([]byte, error) {
	nonce := seal.CounterNonce(0, uint64(i))
	payload, err := o.a.Open(sealed[:0], nonce[:], sealed, o.data)
	if err != nil {
		return nil, fmt.Errorf("group %d: %w", i, seal.ErrOpen)
	}
	body, err := decode(dst, payload, plain)
	if err != nil {
		return nil, fmt.Errorf("group %d: %w", i, err)
	}
	return body, nil
}
