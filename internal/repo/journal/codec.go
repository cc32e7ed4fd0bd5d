package journal

import (
	"encoding/binary"
	"errors"

	"lifeboat/internal/dr"
	"lifeboat/internal/pack"
	"lifeboat/internal/seal"
)

// A record: sha256 of the pack [32] · uvarint size · uvarint key generation · salt
// [32] · uvarint groups; for each: uvarint offset · uvarint sealed length · uvarint
// uncompressed length · uvarint units; for each: id [32] · uvarint length. As in
// the index of a pack manifest (docs/format.md, Index and pack manifest).

var errRecord = errors.New("not a record")

func encode(b []byte, p pack.Info) []byte {
	b = append(b, p.Digest[:]...)
	b = binary.AppendUvarint(b, uint64(p.Size))
	b = binary.AppendUvarint(b, uint64(p.Header.Generation))
	b = append(b, p.Header.Salt[:]...)
	b = binary.AppendUvarint(b, uint64(len(p.Groups)))
	for _, g := range p.Groups {
		for _, n := range []uint32{g.Offset, g.Sealed, g.Plain, uint32(len(g.Units))} {
			b = binary.AppendUvarint(b, uint64(n))
		}
		for _, u := range g.Units {
			b = append(b, u.ID[:]...)
			b = binary.AppendUvarint(b, uint64(u.Len))
		}
	}
	return b
}

// decode takes a record apart, strictly: what it accepts is exactly what encode
// writes for it.
func decode(b []byte) (p pack.Info, err error) {
	d := decoder{b: b}
	d.bytes(p.Digest[:])
	p.Size = int64(d.uvarint(1, pack.MaxSize))
	p.Header.Generation = seal.Generation(d.uvarint(1, 1<<32-1))
	d.bytes(p.Header.Salt[:])
	groups := d.uvarint(1, pack.MaxSize)
	for i := uint64(0); i < groups && d.err == nil; i++ {
		g := pack.GroupInfo{Offset: uint32(d.uvarint(pack.HeaderSize, pack.MaxSize)), Sealed: uint32(d.uvarint(1, pack.MaxSize)), Plain: uint32(d.uvarint(1, pack.MaxGroup))}
		units := d.uvarint(1, pack.MaxGroup)
		// A unit takes 33 bytes at least: no memory for more than can follow.
		if units > uint64(len(d.b)/33) {
			d.err = errRecord
			break
		}
		g.Units = make([]dr.UnitRef, 0, units)
		for range units {
			var u dr.UnitRef
			d.bytes(u.ID[:])
			u.Len = uint32(d.uvarint(1, dr.MaxUnit))
			g.Units = append(g.Units, u)
		}
		p.Groups = append(p.Groups, g)
	}
	if d.err == nil && len(d.b) > 0 {
		d.err = errRecord
	}
	return p, d.err
}

type decoder struct {
	b   []byte
	err error
}

func (d *decoder) bytes(out []byte) {
	if d.err == nil && len(d.b) < len(out) {
		d.err = errRecord
	}
	if d.err == nil {
		d.b = d.b[copy(out, d.b):]
	}
}

func (d *decoder) uvarint(least, most uint64) uint64 {
	if d.err != nil {
		return 0
	}
	n, size := binary.Uvarint(d.b)
	if size <= 0 || n < least || n > most || (size > 1 && d.b[size-1] == 0) {
		d.err = errRecord
		return 0
	}
	d.b = d.b[size:]
	return n
}
