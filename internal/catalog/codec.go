package catalog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"unsafe"

	"lifeboat/internal/dr"
)

// Bits of the flags byte.
const (
	flagXattrs    = 1
	flagOpaque    = 2
	flagLinkGroup = 4
	flagIndirect  = 8
)

// appendEntry encodes e, which passed check, after the entry whose path is
// prev ("" for the first of a page).
func appendEntry(b []byte, prev string, e *Entry) []byte {
	b = appendPath(b, prev, e.Path)
	b = append(b, byte(e.Type))
	b = binary.AppendUvarint(b, uint64(e.Mode))
	b = binary.AppendUvarint(b, uint64(e.UID))
	b = binary.AppendUvarint(b, uint64(e.GID))
	b = binary.AppendVarint(b, e.MtimeSec)
	b = binary.AppendUvarint(b, uint64(e.MtimeNsec))
	var flags byte
	if len(e.Xattrs) > 0 {
		flags |= flagXattrs
	}
	if e.Opaque {
		flags |= flagOpaque
	}
	if e.LinkGroup {
		flags |= flagLinkGroup
	}
	if e.Indirect {
		flags |= flagIndirect
	}
	b = append(b, flags)
	if len(e.Xattrs) > 0 {
		b = binary.AppendUvarint(b, uint64(len(e.Xattrs)))
		for _, x := range e.Xattrs {
			b = binary.AppendUvarint(b, uint64(len(x.Name)))
			b = append(b, x.Name...)
			b = binary.AppendUvarint(b, uint64(len(x.Value)))
			b = append(b, x.Value...)
		}
	}
	switch e.Type {
	case File:
		b = binary.AppendUvarint(b, uint64(e.Size))
		b = binary.AppendUvarint(b, uint64(len(e.Refs)))
		b = AppendRefs(b, e.Refs)
	case Symlink, HardLink:
		b = binary.AppendUvarint(b, uint64(len(e.Target)))
		b = append(b, e.Target...)
	case CharDevice, BlockDevice:
		b = binary.AppendUvarint(b, uint64(e.Major))
		b = binary.AppendUvarint(b, uint64(e.Minor))
	}
	return b
}

func appendPath(b []byte, prev, path string) []byte {
	n := sharedPrefix(prev, path)
	b = binary.AppendUvarint(b, uint64(n))
	b = binary.AppendUvarint(b, uint64(len(path)-n))
	return append(b, path[n:]...)
}

func sharedPrefix(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// AppendRefs encodes refs one after the other, as entries and indirect lists
// hold them.
func AppendRefs(b []byte, refs []Ref) []byte {
	for i := range refs {
		r := &refs[i]
		if r.Hole {
			b = binary.AppendUvarint(b, uint64(r.Len)<<1|1)
			continue
		}
		b = binary.AppendUvarint(b, uint64(r.Len)<<1)
		b = append(b, r.ID[:]...)
	}
	return b
}

// DecodeRef reads the ref at the start of b and returns how many bytes it
// took. The error wraps dr.ErrTampered.
func DecodeRef(b []byte) (Ref, int, error) {
	d := decoder{b: b}
	r := d.ref()
	if d.err != nil {
		return Ref{}, 0, fmt.Errorf("ref: %w: %w", d.err, dr.ErrTampered)
	}
	return r, len(b) - len(d.b), nil
}

// decoder reads the primitives of the format and keeps the first error.
type decoder struct {
	b     []byte
	err   error
	arena []byte // memory for paths
}

var (
	errShort      = errors.New("ends early")
	errNotMinimal = errors.New("a number is not in its shortest form")
	errTrailing   = errors.New("bytes after the end")
)

func (d *decoder) fail(err error) {
	if d.err == nil {
		d.err = err
	}
	d.b = nil
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	switch {
	case n <= 0:
		d.fail(errShort)
		return 0
	case n != max(1, (bits.Len64(v)+6)/7):
		d.fail(errNotMinimal)
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) varint() int64 {
	v := d.uvarint()
	return int64(v>>1) ^ -int64(v&1)
}

// limited reads a number of at most limit.
func (d *decoder) limited(what string, limit uint64) uint64 {
	v := d.uvarint()
	if v > limit {
		d.fail(fmt.Errorf("%s %d, at most %d", what, v, limit))
		return 0
	}
	return v
}

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.fail(errShort)
		return 0
	}
	c := d.b[0]
	d.b = d.b[1:]
	return c
}

func (d *decoder) bytes(n uint64) []byte {
	if n > uint64(len(d.b)) {
		d.fail(errShort)
		return nil
	}
	s := d.b[:n:n]
	d.b = d.b[n:]
	return s
}

// text returns n bytes as a string over the page's own memory: pages are never
// written to after decoding.
func (d *decoder) text(n uint64) string {
	s := d.bytes(n)
	return unsafe.String(unsafe.SliceData(s), len(s))
}

func (d *decoder) ref() Ref {
	v := d.uvarint()
	r := Ref{Len: int64(v >> 1), Hole: v&1 != 0}
	if !r.Hole {
		copy(r.ID[:], d.bytes(32))
	}
	return r
}

// path reads a path after prev. Paths that share nothing need no memory.
func (d *decoder) path(prev string) string {
	shared := d.uvarint()
	suffix := d.text(d.limited("path length", MaxPath))
	if d.err != nil {
		return ""
	}
	if shared > uint64(len(prev)) || shared+uint64(len(suffix)) > MaxPath {
		d.fail(fmt.Errorf("path shares %d bytes with one of %d", shared, len(prev)))
		return ""
	}
	rest := prev[shared:]
	if rest != "" && suffix != "" && rest[0] == suffix[0] {
		d.fail(errNotMinimal)
		return ""
	}
	if shared == 0 {
		return suffix
	}
	return d.join(prev[:shared], suffix)
}

// join is a + b in memory that many paths share.
func (d *decoder) join(a, b string) string {
	n := len(a) + len(b)
	if cap(d.arena)-len(d.arena) < n {
		d.arena = make([]byte, 0, max(n, min(pathArena, 2*len(d.b))))
	}
	from := len(d.arena)
	d.arena = append(append(d.arena, a...), b...)
	return unsafe.String(&d.arena[from], n)
}

// pathArena is how many bytes of paths one allocation holds.
const pathArena = 16 << 10

// entry reads one entry after the one whose path is prev into e. refs is the
// memory to take refs from.
func (d *decoder) entry(prev string, e *Entry, refs *[]Ref) {
	e.Path = d.path(prev)
	e.Type = Type(d.byte())
	e.Mode = uint32(d.limited("mode", 0o7777))
	e.UID = uint32(d.limited("uid", 1<<32-1))
	e.GID = uint32(d.limited("gid", 1<<32-1))
	e.MtimeSec = d.varint()
	e.MtimeNsec = uint32(d.limited("nanoseconds", 999_999_999))
	flags := d.byte()
	if flags > flagXattrs|flagOpaque|flagLinkGroup|flagIndirect {
		d.fail(fmt.Errorf("flags %#x", flags))
	}
	e.Opaque = flags&flagOpaque != 0
	e.LinkGroup = flags&flagLinkGroup != 0
	e.Indirect = flags&flagIndirect != 0
	if flags&flagXattrs != 0 {
		d.xattrs(e)
	}
	switch e.Type {
	case File:
		e.Size = int64(d.limited("size", 1<<63-1))
		n := d.uvarint()
		// A ref takes at least a byte; check before memory is taken.
		if n > uint64(len(d.b)) {
			d.fail(errShort)
			return
		}
		if n == 0 {
			break
		}
		from := len(*refs)
		for range n {
			if d.err != nil {
				return
			}
			*refs = append(*refs, d.ref())
		}
		e.Refs = (*refs)[from:len(*refs):len(*refs)]
	case Symlink:
		e.Target = d.text(d.limited("target length", MaxTarget))
	case HardLink:
		e.Target = d.text(d.limited("target length", MaxPath))
	case CharDevice, BlockDevice:
		e.Major = uint32(d.limited("major", 1<<32-1))
		e.Minor = uint32(d.limited("minor", 1<<32-1))
	}
	if d.err == nil {
		if err := e.check(); err != nil {
			d.fail(err)
		}
	}
}

func (d *decoder) xattrs(e *Entry) {
	n := d.limited("extended attributes", MaxXattrs)
	// Each takes at least three bytes.
	if n == 0 || 3*n > uint64(len(d.b)) {
		d.fail(errShort)
		return
	}
	e.Xattrs = make([]Xattr, n)
	for i := range e.Xattrs {
		e.Xattrs[i].Name = d.text(d.limited("attribute name length", MaxXattrName))
		e.Xattrs[i].Value = d.bytes(d.limited("attribute value length", MaxXattrValue))
	}
}
