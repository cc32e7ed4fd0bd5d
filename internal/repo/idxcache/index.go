package idxcache

import (
	"bytes"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"sort"
	"sync/atomic"
	"syscall"

	"lifeboat/internal/dr"
	"lifeboat/internal/pack"
	"lifeboat/internal/seal"
)

// Location is where a unit lies.
type Location struct {
	// Group is the number of the group, counted through all packs.
	Group uint32
	// Offset and Len are in bytes of the group's uncompressed body.
	Offset, Len uint32
}

// Pack is one pack of the manifest.
type Pack struct {
	Digest [32]byte
	Size   int64
	Header pack.Header
	// FirstGroup and Groups are its groups, counted through all packs.
	FirstGroup, Groups uint32
}

// Group is one group of a pack.
type Group struct {
	// Pack is the number of its pack, Number its own within the pack.
	Pack, Number uint32
	// Offset and Sealed are where it lies in the pack, in bytes; Plain is the
	// length of its body.
	Offset, Sealed, Plain uint32
	// FirstUnit and Units are its units, counted through all packs.
	FirstUnit, Units uint32
}

// Index is an open cache file. Safe for concurrent use until Close.
type Index struct {
	key     [32]byte
	head    header
	at      sections
	m       []byte          // the mapped file
	checked []atomic.Uint64 // blocks whose checksum was compared
	// touched are pages that may be in memory, counted in resident; nil: not
	// counted.
	touched  []atomic.Uint64
	resident *Resident
	filter   []byte // a copy, where it is small; else nil
}

// Open maps a cache file and checks its header; blocks are checked when they
// are touched. resident bounds what is in memory of it, and of all that were opened
// with it; nil means no bound. IsMissing tells whether the error means to make it
// anew.
func Open(name string, key [32]byte, repo dr.RepoID, manifest [32]byte, resident *Resident) (*Index, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("open index cache: %w", err)
	}
	defer func() { _ = f.Close() }() // read only; the map stays
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("open index cache: %w", err)
	}
	if st.Size() < headerSize || st.Size() != int64(int(st.Size())) {
		return nil, fmt.Errorf("open index cache %s: %d bytes: %w", name, st.Size(), ErrDamaged)
	}
	m, err := syscall.Mmap(int(f.Fd()), 0, int(st.Size()), syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map index cache %s: %w", name, err)
	}
	x := &Index{key: key, m: m, resident: resident}
	err = ErrDamaged
	if x.valid(repo, manifest) {
		err = x.settle()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open index cache %s: %w", name, err), x.Close())
	}
	return x, nil
}

// smallFilter is the size in bytes up to which a filter is copied: of a mapped one
// at least that much is in memory, and there may be hundreds of small files that are
// asked for units that they do not have.
const smallFilter = around

// settle gives back what was touched while the file was opened.
func (x *Index) settle() error {
	if x.resident == nil {
		return nil
	}
	if n := x.at.packs - x.at.filter; n <= smallFilter {
		b, err := x.bytes(x.at.filter, n)
		if err != nil {
			return err
		}
		x.filter = bytes.Clone(b)
	}
	return x.resident.settle(x)
}

func (x *Index) valid(repo dr.RepoID, manifest [32]byte) (ok bool) {
	if x.head, ok = decodeHeader(x.m); !ok || x.head.repo != repo || x.head.manifest != manifest {
		return false
	}
	x.at = x.head.sections()
	blocks := (x.at.sums - headerSize + blockSize - 1) / blockSize
	if x.at.end != int64(len(x.m)) || int64(x.head.sumsCount) != blocks || x.head.filters == 0 {
		return false
	}
	want := mac(x.key, x.m[:headerUsed], x.m[x.at.sums:])
	if subtle.ConstantTimeCompare(want[:], x.m[headerUsed:headerUsed+len(want)]) != 1 {
		return false
	}
	x.checked = make([]atomic.Uint64, (blocks+63)/64)
	if x.resident != nil {
		x.resident.add(x)
	}
	return true
}

// Close unmaps the file; nothing of the index may be used afterwards.
func (x *Index) Close() error {
	x.resident.remove(x)
	m := x.m
	x.m = nil
	if m == nil {
		return nil
	}
	if err := syscall.Munmap(m); err != nil {
		return fmt.Errorf("unmap index cache: %w", err)
	}
	return nil
}

// Host is who signed the index.
func (x *Index) Host() dr.HostID { return x.head.host }

// Packs, Groups and Units count what the index holds.
func (x *Index) Packs() int { return int(x.head.packs) }

// Groups counts the groups of all packs.
func (x *Index) Groups() int { return int(x.head.groups) }

// Units counts the units of all packs.
func (x *Index) Units() int { return int(x.head.units) }

// Manifest is the pack manifest as stored, a copy.
func (x *Index) Manifest() ([]byte, error) {
	b, err := x.bytes(x.at.manifest, int64(x.head.manifestSize))
	return bytes.Clone(b), err
}

// bytes returns n bytes of the file at off, once the blocks that hold them were
// checked.
func (x *Index) bytes(off, n int64) ([]byte, error) {
	if n == 0 {
		return nil, nil
	}
	if err := x.touch(off, n); err != nil {
		return nil, err
	}
	for i := (off - headerSize) / blockSize; i <= (off+n-1-headerSize)/blockSize; i++ {
		word, bit := &x.checked[i/64], uint64(1)<<(i%64)
		if word.Load()&bit != 0 {
			continue
		}
		begin := headerSize + i*blockSize
		end := min(begin+blockSize, x.at.sums)
		want := x.m[x.at.sums+i*sumSize:][:sumSize]
		if got := blockSum(x.key, uint64(i), x.m[begin:end]); !bytes.Equal(got[:], want) {
			return nil, fmt.Errorf("block %d: %w", i, ErrDamaged)
		}
		word.Or(bit)
	}
	return x.m[off : off+n : off+n], nil
}

// Lookup finds a unit; ok is false when the index does not have it. The error
// wraps ErrDamaged.
func (x *Index) Lookup(id dr.UnitID) (loc Location, ok bool, err error) {
	err = x.find(id, func(_ uint32, rec []byte) bool {
		loc, ok = Location{
			Len:    binary.LittleEndian.Uint32(rec[32:]),
			Offset: binary.LittleEndian.Uint32(rec[36:]),
			Group:  binary.LittleEndian.Uint32(rec[40:]),
		}, true
		return false
	})
	return loc, ok, err
}

// Positions calls fn with the number of each unit that has an id, counted
// through all packs: several packs may hold the same. The error wraps
// ErrDamaged.
func (x *Index) Positions(id dr.UnitID, fn func(unit uint32)) error {
	return x.find(id, func(unit uint32, _ []byte) bool {
		fn(unit)
		return true
	})
}

// find calls fn with the records of an id until it returns false.
func (x *Index) find(id dr.UnitID, fn func(unit uint32, rec []byte) bool) error {
	maybe, err := x.maybe(id[:])
	if err != nil || !maybe {
		return err
	}
	want := prefix(id[:])
	at, err := x.search(want)
	if err != nil {
		return err
	}
	for ; at < int(x.head.units); at++ {
		p, pos, err := x.sorted(at)
		if err != nil || p != want {
			return err
		}
		rec, err := x.bytes(x.at.units+int64(pos)*unitRecord, unitRecord)
		if err != nil {
			return err
		}
		if bytes.Equal(rec[:32], id[:]) && !fn(pos, rec) {
			return nil
		}
	}
	return nil
}

// maybe asks the filter.
func (x *Index) maybe(id []byte) (bool, error) {
	block, want := probe(id, x.head.filters)
	off := int64(block) * filterBlock
	var b []byte
	var err error
	if x.filter != nil {
		b = x.filter[off : off+filterBlock]
	} else if b, err = x.bytes(x.at.filter+off, filterBlock); err != nil {
		return false, err
	}
	for range filterProbe {
		bit := want & (8*filterBlock - 1)
		if b[bit/8]&(1<<(bit%8)) == 0 {
			return false, nil
		}
		want >>= 9
	}
	return true, nil
}

// sorted reads one entry of the sorted section.
func (x *Index) sorted(i int) (p uint64, pos uint32, err error) {
	b, err := x.bytes(x.at.sorted+int64(i)*sortRecord, sortRecord)
	if err != nil {
		return 0, 0, err
	}
	pos = binary.LittleEndian.Uint32(b[8:])
	if pos >= x.head.units {
		return 0, 0, fmt.Errorf("position %d of %d: %w", pos, x.head.units, ErrDamaged)
	}
	return binary.BigEndian.Uint64(b), pos, nil
}

// search returns the first entry whose prefix is not less than want. Ids are
// uniform, so it guesses where the entry stands and looks around there; the
// guess only narrows a binary search, which keeps ids that somebody chose from
// making it slow.
func (x *Index) search(want uint64) (int, error) {
	n := int(x.head.units)
	hi64, _ := bits.Mul64(want, uint64(n))
	lo, hi := 0, n
	guess := int(hi64)
	for step := 64; step < n; step *= 4 {
		a, b := max(0, guess-step), min(n-1, guess+step)
		pa, _, err := x.sorted(a)
		if err != nil {
			return 0, err
		}
		pb, _, err := x.sorted(b)
		if err != nil {
			return 0, err
		}
		if pa < want {
			lo = max(lo, a+1)
		}
		if pb >= want {
			hi = min(hi, b)
		}
		if (pa < want || a == 0) && (pb >= want || b == n-1) {
			break
		}
	}
	var failed error
	at := lo + sort.Search(hi-lo, func(i int) bool {
		p, _, err := x.sorted(lo + i)
		if err != nil {
			failed = err
		}
		return p >= want
	})
	return at, failed
}

// Pack returns pack number i of 0 to Packs()-1.
func (x *Index) Pack(i uint32) (p Pack, err error) {
	if i >= x.head.packs {
		return p, fmt.Errorf("pack %d of %d: %w", i, x.head.packs, ErrDamaged)
	}
	b, err := x.bytes(x.at.packs+int64(i)*packRecord, packRecord)
	if err != nil {
		return p, err
	}
	b = b[copy(p.Digest[:], b):]
	p.Size = int64(binary.LittleEndian.Uint64(b))
	p.Header.Generation = seal.Generation(binary.LittleEndian.Uint32(b[8:]))
	b = b[12:]
	b = b[copy(p.Header.Salt[:], b):]
	p.FirstGroup = binary.LittleEndian.Uint32(b)
	p.Groups = binary.LittleEndian.Uint32(b[4:])
	return p, nil
}

// Group returns group number i of 0 to Groups()-1.
func (x *Index) Group(i uint32) (g Group, err error) {
	if i >= x.head.groups {
		return g, fmt.Errorf("group %d of %d: %w", i, x.head.groups, ErrDamaged)
	}
	b, err := x.bytes(x.at.groups+int64(i)*grpRecord, grpRecord)
	if err != nil {
		return g, err
	}
	for k, n := range []*uint32{&g.Pack, &g.Offset, &g.Sealed, &g.Plain, &g.FirstUnit, &g.Units} {
		*n = binary.LittleEndian.Uint32(b[4*k:])
	}
	p, err := x.Pack(g.Pack)
	if err != nil {
		return g, err
	}
	g.Number = i - p.FirstGroup
	return g, nil
}

// UnitsOf returns the units of a group in their order.
func (x *Index) UnitsOf(g Group) ([]dr.UnitRef, error) {
	if uint64(g.FirstUnit)+uint64(g.Units) > uint64(x.head.units) {
		return nil, fmt.Errorf("units of a group: %w", ErrDamaged)
	}
	b, err := x.bytes(x.at.units+int64(g.FirstUnit)*unitRecord, int64(g.Units)*unitRecord)
	if err != nil {
		return nil, err
	}
	out := make([]dr.UnitRef, g.Units)
	for i := range out {
		rec := b[i*unitRecord:]
		copy(out[i].ID[:], rec)
		out[i].Len = binary.LittleEndian.Uint32(rec[32:])
	}
	return out, nil
}
