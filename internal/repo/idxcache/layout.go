package idxcache

import (
	"encoding/binary"
	"errors"

	"github.com/zeebo/blake3"

	"lifeboat/internal/dr"
)

// ErrDamaged: the file is not a whole cache file of this repository and
// manifest. It says nothing about the registry: make the file anew.
var ErrDamaged = errors.New("index cache file is damaged")

// The file: a header of headerSize bytes, then the sections one after the
// other, cut into blocks of blockSize for the checksums, then the checksums.
//
//	units   44 bytes each, in the index's order: id, length, offset in group, group
//	sorted  12 bytes each: first 8 bytes of id, position in units; sorted
//	filter  blocks of 64 bytes, at least one
//	packs   packRecord bytes each
//	groups  24 bytes each: pack, offset, sealed, plain, first unit, units
//	manifest  bytes of the pack manifest
const (
	magic      = "LBXCACH1"
	headerSize = 4096
	blockSize  = 32 << 10
	sumSize    = 8
	unitRecord = 32 + 4 + 4 + 4
	sortRecord = 8 + 4
	packRecord = 32 + 8 + 4 + 32 + 4 + 4
	grpRecord  = 6 * 4

	filterBlock = 64 // bytes
	filterBits  = 10 // per unit
	filterProbe = 7  // bits set per unit
)

// header is what the MAC covers beside the checksums.
type header struct {
	repo                    dr.RepoID
	manifest                [32]byte
	host                    dr.HostID
	units                   uint32
	filters, packs, groups  uint32
	manifestSize, sumsCount uint32
}

func (h *header) encode() []byte {
	b := make([]byte, 0, headerSize)
	b = append(b, magic...)
	b = append(b, h.repo[:]...)
	b = append(b, h.manifest[:]...)
	b = append(b, h.host[:]...)
	for _, n := range []uint32{h.units, h.filters, h.packs, h.groups, h.manifestSize, h.sumsCount} {
		b = binary.LittleEndian.AppendUint32(b, n)
	}
	return b
}

const headerUsed = len(magic) + 16 + 32 + 32 + 6*4

func decodeHeader(b []byte) (h header, ok bool) {
	if len(b) < headerUsed || string(b[:len(magic)]) != magic {
		return h, false
	}
	b = b[len(magic):]
	b = b[copy(h.repo[:], b):]
	b = b[copy(h.manifest[:], b):]
	b = b[copy(h.host[:], b):]
	for i, n := range []*uint32{&h.units, &h.filters, &h.packs, &h.groups, &h.manifestSize, &h.sumsCount} {
		*n = binary.LittleEndian.Uint32(b[4*i:])
	}
	return h, true
}

// sections are the offsets in the file at which each section begins.
type sections struct {
	units, sorted, filter, packs, groups, manifest, sums, end int64
}

func (h *header) sections() (s sections) {
	s.units = headerSize
	s.sorted = s.units + int64(h.units)*unitRecord
	s.filter = s.sorted + int64(h.units)*sortRecord
	s.packs = s.filter + int64(h.filters)*filterBlock
	s.groups = s.packs + int64(h.packs)*packRecord
	s.manifest = s.groups + int64(h.groups)*grpRecord
	s.sums = s.manifest + int64(h.manifestSize)
	s.end = s.sums + int64(h.sumsCount)*sumSize
	return s
}

// mac covers header and checksums, and through them the whole file.
func mac(key [32]byte, head, sums []byte) (out [32]byte) {
	h := newKeyed(key)
	_, _ = h.Write(head) // never fails
	_, _ = h.Write(sums)
	h.Sum(out[:0])
	return out
}

// blockSum is the checksum of block i.
func blockSum(key [32]byte, i uint64, block []byte) (out [sumSize]byte) {
	h := newKeyed(key)
	var n [8]byte
	binary.LittleEndian.PutUint64(n[:], i)
	_, _ = h.Write(n[:]) // never fails
	_, _ = h.Write(block)
	var full [32]byte
	h.Sum(full[:0])
	copy(out[:], full[:])
	return out
}

func newKeyed(key [32]byte) *blake3.Hasher {
	h, err := blake3.NewKeyed(key[:])
	if err != nil {
		panic("key of 32 bytes refused") // the type makes it impossible
	}
	return h
}

// prefix orders the sorted section.
func prefix(id []byte) uint64 { return binary.BigEndian.Uint64(id) }

// probe gives the filter block of an id and the bits to look at. Ids are keyed
// hashes, so their bytes serve as they are.
func probe(id []byte, blocks uint32) (block uint32, bits uint64) {
	at := uint64(binary.BigEndian.Uint32(id[16:])) * uint64(blocks) >> 32
	return uint32(at), binary.BigEndian.Uint64(id[8:])
}
