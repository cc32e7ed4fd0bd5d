package pack

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/zeebo/blake3"

	"lifeboat/internal/dr"
	"lifeboat/internal/seal"
)

// MaxIndex bounds a stored index, in bytes.
const MaxIndex = 1 << 30

// IndexWriter writes the index of a pack manifest in one pass. Not safe for
// concurrent use.
type IndexWriter struct {
	s     *seal.StreamWriter
	w     *bufio.Writer
	sum   *blake3.Hasher
	host  *seal.HostKey
	repo  dr.RepoID
	packs int
	buf   []byte
}

// NewIndexWriter begins the index of packs packs, signed by host, on w.
func NewIndexWriter(w io.Writer, r *seal.Ring, host *seal.HostKey, packs int) (*IndexWriter, error) {
	if packs < 1 || packs > MaxPacks {
		return nil, fmt.Errorf("write index: %d packs, want 1 to %d", packs, MaxPacks)
	}
	s, err := r.NewIndexWriter(w)
	if err != nil {
		return nil, err
	}
	x := &IndexWriter{s: s, sum: blake3.New(), host: host, repo: r.Repo(), packs: packs}
	x.w = bufio.NewWriterSize(io.MultiWriter(s, x.sum), 64<<10)
	id := host.ID()
	x.buf = append(x.buf, id[:]...)
	x.buf = binary.AppendUvarint(x.buf, uint64(packs))
	return x, x.flush()
}

// Pack begins the next pack; groups of Info are not looked at: the caller adds
// that many with Group.
func (x *IndexWriter) Pack(p Info, groups int) error {
	if x.packs == 0 {
		return errors.New("write index: more packs than announced")
	}
	x.packs--
	x.buf = append(x.buf, p.Digest[:]...)
	x.buf = binary.AppendUvarint(x.buf, uint64(p.Size))
	x.buf = binary.AppendUvarint(x.buf, uint64(p.Header.Generation))
	x.buf = append(x.buf, p.Header.Salt[:]...)
	x.buf = binary.AppendUvarint(x.buf, uint64(groups))
	return x.flush()
}

// Group adds the next group of the pack.
func (x *IndexWriter) Group(g GroupInfo) error {
	x.buf = binary.AppendUvarint(x.buf, uint64(g.Offset))
	x.buf = binary.AppendUvarint(x.buf, uint64(g.Sealed))
	x.buf = binary.AppendUvarint(x.buf, uint64(g.Plain))
	x.buf = binary.AppendUvarint(x.buf, uint64(len(g.Units)))
	for _, u := range g.Units {
		x.buf = append(x.buf, u.ID[:]...)
		x.buf = binary.AppendUvarint(x.buf, uint64(u.Len))
	}
	return x.flush()
}

func (x *IndexWriter) flush() error {
	_, err := x.w.Write(x.buf)
	x.buf = x.buf[:0]
	if err != nil {
		return fmt.Errorf("write index: %w", err)
	}
	return nil
}

// Close signs the index and seals its end. It does not close the writer below.
func (x *IndexWriter) Close() error {
	if x.packs != 0 {
		return fmt.Errorf("write index: %d packs fewer than announced", x.packs)
	}
	if err := x.w.Flush(); err != nil {
		return fmt.Errorf("write index: %w", err)
	}
	var sum [32]byte
	x.sum.Sum(sum[:0])
	sig := x.host.SignIndex(x.repo, sum)
	if _, err := x.s.Write(sig[:]); err != nil {
		return fmt.Errorf("write index: %w", err)
	}
	return x.s.Close()
}

// Visitor receives an index in order. An error of a method ends the reading
// and comes back as it is. Nothing may be relied upon before ReadIndex has
// returned without error: the signature comes last.
type Visitor interface {
	// Pack begins a pack with that many groups; Groups of the Info is nil.
	Pack(p Info, groups int) error
	// Group begins a group with that many units; Units of the GroupInfo is nil.
	Group(g GroupInfo, units int) error
	Unit(u dr.UnitRef) error
}

// ReadIndex opens an index, checks every bound and its signature, and hands it
// to v. It returns the host that signed; whether that host is trusted is the
// caller's question. Memory is that of one segment, whatever src holds. Errors
// wrap dr.ErrTampered, are seal.ErrGeneration, or are those of src and v.
func ReadIndex(src io.Reader, r *seal.Ring, v Visitor) (dr.HostID, error) {
	s, err := r.NewIndexReader(src)
	if err != nil {
		return dr.HostID{}, err
	}
	d := &indexReader{r: bufio.NewReaderSize(s, 64<<10), sum: blake3.New(), v: v}
	var host dr.HostID
	d.bytes(host[:])
	n := d.uvarint("packs", 1, MaxPacks)
	for i := uint64(0); i < n && d.err == nil; i++ {
		d.pack()
	}
	if d.err != nil {
		return dr.HostID{}, fmt.Errorf("index: %w", d.err)
	}
	d.hash()
	var sum [32]byte
	d.sum.Sum(sum[:0])
	var sig [64]byte
	if d.bytes(sig[:]); d.err != nil {
		return dr.HostID{}, fmt.Errorf("index: %w", d.err)
	}
	if _, err := d.r.ReadByte(); err == nil {
		return dr.HostID{}, fmt.Errorf("index: bytes follow its end: %w", dr.ErrTampered)
	} else if err != io.EOF {
		return dr.HostID{}, fmt.Errorf("index: %w", err)
	}
	if !seal.VerifyIndex(host, r.Repo(), sum, sig) {
		return dr.HostID{}, fmt.Errorf("index: the signature of host %s is wrong: %w", host.Short(), dr.ErrTampered)
	}
	return host, nil
}

type indexReader struct {
	r       *bufio.Reader
	sum     *blake3.Hasher
	v       Visitor
	pending []byte // read and not yet hashed
	err     error
}

func (d *indexReader) pack() {
	var p Info
	d.bytes(p.Digest[:])
	p.Size = int64(d.uvarint("pack size", HeaderSize+GroupOverhead+1, MaxSize))
	p.Header.Generation = seal.Generation(d.uvarint("generation", 1, 1<<32-1))
	d.bytes(p.Header.Salt[:])
	groups := d.uvarint("groups", 1, uint64(p.Size-HeaderSize)/(GroupOverhead+1))
	if d.err != nil {
		return
	}
	if d.err = d.v.Pack(p, int(groups)); d.err != nil {
		return
	}
	end := uint64(HeaderSize)
	for i := uint64(0); i < groups && d.err == nil; i++ {
		end = d.group(end, uint64(p.Size))
	}
}

func (d *indexReader) group(begin, packSize uint64) (end uint64) {
	off := d.uvarint("group offset", begin, begin)
	sealed := d.uvarint("sealed length", GroupOverhead+1, min(MaxGroup+GroupOverhead, packSize-min(begin, packSize)))
	plain := d.uvarint("uncompressed length", max(1, sealed-min(sealed, GroupOverhead)), MaxGroup)
	units := d.uvarint("units", 1, plain)
	if d.err != nil {
		return 0
	}
	g := GroupInfo{Offset: uint32(off), Sealed: uint32(sealed), Plain: uint32(plain)}
	if d.err = d.v.Group(g, int(units)); d.err != nil {
		return 0
	}
	left := plain
	for i := uint64(0); i < units && d.err == nil; i++ {
		var u dr.UnitRef
		d.bytes(u.ID[:])
		n := d.uvarint("unit length", 1, left)
		if d.err != nil {
			return 0
		}
		left -= n
		u.Len = uint32(n)
		d.err = d.v.Unit(u)
	}
	if d.err == nil && left != 0 {
		d.err = fmt.Errorf("units do not fill their group: %w", dr.ErrTampered)
	}
	return begin + sealed
}

func (d *indexReader) bytes(b []byte) {
	if d.err != nil {
		return
	}
	if _, err := io.ReadFull(d.r, b); err != nil {
		d.err = endsEarly(err)
		return
	}
	d.take(b)
}

func (d *indexReader) uvarint(what string, least, most uint64) uint64 {
	if d.err != nil {
		return 0
	}
	b, err := d.r.Peek(binary.MaxVarintLen64) // less at the end of the index
	n, size := binary.Uvarint(b)
	if size <= 0 {
		d.err = fmt.Errorf("%s: not a number: %w", what, dr.ErrTampered)
		if err != nil {
			d.err = endsEarly(err)
		}
		return 0
	}
	d.take(b[:size])
	_, _ = d.r.Discard(size) // it was just peeked at
	if n < least || n > most {
		d.err = fmt.Errorf("%s %d is out of bounds: %w", what, n, dr.ErrTampered)
		return 0
	}
	return n
}

func (d *indexReader) take(b []byte) {
	d.pending = append(d.pending, b...)
	if len(d.pending) >= 32<<10 {
		d.hash()
	}
}

func (d *indexReader) hash() {
	_, _ = d.sum.Write(d.pending) // never fails
	d.pending = d.pending[:0]
}

func endsEarly(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return fmt.Errorf("it ends too early: %w", dr.ErrTampered)
	}
	return err
}
