package tree

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"sync"

	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
)

// A record file holds, for each entry of a tree in catalog order, what was
// known of it: statx, attributes, references to its content. The statcache is
// one, and so is what Precopy hands to Secure. It is local and disposable;
// checksums make sure that a damaged one is not believed.
//
//	"LBTC" version identity[32] care[17], then frames:
//	  kind byte · length uint32 · crc32c uint32 · data
//	kind R: records, front-coded within the frame
//	kind L: up to catalog.ListRefs refs of one long content list, named by
//	  their offset from a record that comes later
//	kind T: what Finish made of the records (appendResult); may be missing
//	kind E: uvarint number of records, uvarint offset of T or 0; the end. A file
//	  without it is not whole
const (
	recordMagic   = "LBTC"
	recordVersion = 2
	recordHeader  = len(recordMagic) + 1 + 32 + 17

	frameRecords = 'R'
	frameList    = 'L'
	frameResult  = 'T'
	frameEnd     = 'E'
	frameHeader  = 9
	frameTarget  = 64 << 10 // bytes of a frame of records
	maxFrame     = 16 << 20
)

// Flags of a record.
const (
	recTrusted  = 1 << iota // unchanged statx means unchanged content
	recUsable               // false: the entry was seen but could not be read
	recLink                 // a further name of a file whose content is with its first
	recXattrs               // has attributes
	recOpaque               // overlay: opaque directory
	recWhiteout             // overlay: whiteout in attribute form
)

var (
	errRecord  = errors.New("malformed record")
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// record is one entry of a record file. Its slices belong to the reader.
type record struct {
	path   []byte
	flags  uint8
	stat   Stat
	xattrs []byte // appendXattrs
	// content of a regular file (contentList) or target of a symlink.
	content []byte
}

func (r *record) has(flag uint8) bool { return r.flags&flag != 0 }

const statLen = 3*8 + 3*8 + 6*4

func appendStat(b []byte, s *Stat) []byte {
	le := binary.LittleEndian
	b = le.AppendUint64(b, s.Ino)
	b = le.AppendUint64(b, s.Dev)
	b = le.AppendUint64(b, s.Rdev)
	b = le.AppendUint64(b, uint64(s.Size))
	b = le.AppendUint64(b, uint64(s.MtimeSec))
	b = le.AppendUint64(b, uint64(s.CtimeSec))
	b = le.AppendUint32(b, s.MtimeNsec)
	b = le.AppendUint32(b, s.CtimeNsec)
	b = le.AppendUint32(b, s.Mode)
	b = le.AppendUint32(b, s.UID)
	b = le.AppendUint32(b, s.GID)
	return le.AppendUint32(b, s.Nlink)
}

func (s *Stat) decode(b []byte) {
	le := binary.LittleEndian
	*s = Stat{
		Ino: le.Uint64(b), Dev: le.Uint64(b[8:]), Rdev: le.Uint64(b[16:]),
		Size: int64(le.Uint64(b[24:])), MtimeSec: int64(le.Uint64(b[32:])), CtimeSec: int64(le.Uint64(b[40:])),
		MtimeNsec: le.Uint32(b[48:]), CtimeNsec: le.Uint32(b[52:]),
		Mode: le.Uint32(b[56:]), UID: le.Uint32(b[60:]), GID: le.Uint32(b[64:]), Nlink: le.Uint32(b[68:]),
	}
}

// appendRecordPath encodes the path of a record after the one of prev.
func appendRecordPath(b, prev, path []byte) []byte {
	n := 0
	for n < len(prev) && n < len(path) && prev[n] == path[n] {
		n++
	}
	b = binary.AppendUvarint(b, uint64(n))
	b = binary.AppendUvarint(b, uint64(len(path)-n))
	return append(b, path[n:]...)
}

// appendRecordBody encodes all of r but its path.
func appendRecordBody(b []byte, r *record) []byte {
	flags := r.flags &^ recXattrs
	if len(r.xattrs) > 0 {
		flags |= recXattrs
	}
	b = append(b, flags)
	b = appendStat(b, &r.stat)
	if len(r.xattrs) > 0 {
		b = binary.AppendUvarint(b, uint64(len(r.xattrs)))
		b = append(b, r.xattrs...)
	}
	b = binary.AppendUvarint(b, uint64(len(r.content)))
	return append(b, r.content...)
}

// fields reads the parts of a record; bad sticks.
type fields struct {
	b   []byte
	bad bool
}

func (d *fields) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *fields) bytes(n uint64) []byte {
	if n > uint64(len(d.b)) {
		d.bad, d.b = true, nil
		return nil
	}
	s := d.b[:n:n]
	d.b = d.b[n:]
	return s
}

// next decodes the record at the start of d into r, whose path is that of the
// record before.
func (d *fields) next(r *record) error {
	shared := d.uvarint()
	suffix := d.bytes(d.uvarint())
	if shared > uint64(len(r.path)) {
		return errRecord
	}
	r.path = append(r.path[:shared], suffix...)
	if f := d.bytes(1); !d.bad {
		r.flags = f[0]
	}
	if s := d.bytes(statLen); !d.bad {
		r.stat.decode(s)
	}
	r.xattrs = nil
	if r.flags&recXattrs != 0 {
		r.xattrs = d.bytes(d.uvarint())
	}
	r.content = d.bytes(d.uvarint())
	if d.bad {
		return errRecord
	}
	return nil
}

// recordWriter writes a record file. List frames may be added at any time by
// anyone; record frames by one goroutine, in order.
type recordWriter struct {
	mu  sync.Mutex
	f   *os.File
	off int64
	buf []byte
	err error

	frame  []byte // records so far
	prev   []byte // path of the last
	n      uint64
	framed uint64 // of n, before frame

	result  int64 // where the result is, 0: none
	indexed bool  // keep index
	index   []frameAt
}

// frameAt is where a frame of records lies.
type frameAt struct {
	off    int64
	before uint64 // records before it
	first  []byte // path of its first record
}

// care is what a statcache says of the watch on its tree.
type care struct {
	full     int64 // when the whole tree was last looked at in Secure, seconds since 1970
	partial  int64 // when only candidates were, last time; 0: not last time
	distrust bool  // a change was found that the watch had missed
}

func newRecordWriter(f *os.File, identity [32]byte, c care) (*recordWriter, error) {
	w := &recordWriter{f: f}
	head := append([]byte(recordMagic), recordVersion)
	head = append(head, identity[:]...)
	head = binary.LittleEndian.AppendUint64(head, uint64(c.full))
	head = binary.LittleEndian.AppendUint64(head, uint64(c.partial))
	head = append(head, 0)
	if c.distrust {
		head[len(head)-1] = 1
	}
	if _, err := f.WriteAt(head, 0); err != nil {
		return nil, err
	}
	w.off = int64(len(head))
	return w, nil
}

// writeFrame appends a frame and returns where it is.
func (w *recordWriter) writeFrame(kind byte, data []byte) (int64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil && len(data) > maxFrame {
		w.err = fmt.Errorf("record of %d bytes, at most %d", len(data), maxFrame)
	}
	if w.err != nil {
		return 0, w.err
	}
	w.buf = append(w.buf[:0], kind)
	w.buf = binary.LittleEndian.AppendUint32(w.buf, uint32(len(data)))
	w.buf = binary.LittleEndian.AppendUint32(w.buf, crc32.Checksum(data, castagnoli))
	w.buf = append(w.buf, data...)
	off := w.off
	if _, err := w.f.WriteAt(w.buf, off); err != nil {
		w.err = err
		return 0, err
	}
	w.off += int64(len(w.buf))
	return off, nil
}

// add appends one record.
func (w *recordWriter) add(r *record) error {
	if len(w.frame) == 0 {
		w.prev = w.prev[:0]
	}
	w.frame = appendRecordPath(w.frame, w.prev, r.path)
	w.prev = append(w.prev[:0], r.path...)
	w.frame = appendRecordBody(w.frame, r)
	w.n++
	if len(w.frame) < frameTarget {
		return nil
	}
	return w.flush()
}

// addFrame appends a frame of n records that was encoded elsewhere.
func (w *recordWriter) addFrame(data []byte, n int) error {
	if err := w.flush(); err != nil {
		return err
	}
	before := w.n
	w.n += uint64(n)
	w.framed = w.n
	return w.records(data, before)
}

// records writes a frame of records and remembers where it is.
func (w *recordWriter) records(data []byte, before uint64) error {
	off, err := w.writeFrame(frameRecords, data)
	if err != nil || !w.indexed {
		return err
	}
	var first record
	if err := (&fields{b: data}).next(&first); err != nil {
		return err
	}
	w.index = append(w.index, frameAt{off, before, first.path})
	return nil
}

func (w *recordWriter) flush() error {
	if len(w.frame) == 0 {
		return nil
	}
	err := w.records(w.frame, w.framed)
	w.frame, w.framed = w.frame[:0], w.n
	return err
}

// setResult adds what was made of the records. A result that is too large is
// left out.
func (w *recordWriter) setResult(t *dr.Tree, refs []catalog.Ref) error {
	if err := w.flush(); err != nil {
		return err
	}
	data, err := appendResult(nil, t, refs)
	if err != nil || len(data) > maxFrame {
		return err
	}
	w.result, err = w.writeFrame(frameResult, data)
	return err
}

// finish writes the end; the file is whole after it.
func (w *recordWriter) finish() error {
	if err := w.flush(); err != nil {
		return err
	}
	_, err := w.writeFrame(frameEnd, binary.AppendUvarint(binary.AppendUvarint(nil, w.n), uint64(w.result)))
	return err
}

// recordReader reads the records of a file in order.
type recordReader struct {
	f     io.ReaderAt
	off   int64
	data  []byte // memory of the current frame
	left  fields
	rec   record
	ended bool
	n     uint64
	care  care

	result int64 // once ended: where the result is, 0: none
}

// jump goes on with the frame at. It must be one of this file's.
func (r *recordReader) jump(at frameAt) {
	r.off, r.n, r.left, r.ended = at.off, at.before, fields{}, false
	r.rec.path = r.rec.path[:0]
}

// openRecords checks the head of a record file.
func openRecords(f io.ReaderAt, identity [32]byte) (*recordReader, error) {
	head := make([]byte, recordHeader)
	if _, err := f.ReadAt(head, 0); err != nil {
		return nil, err
	}
	if string(head[:len(recordMagic)]) != recordMagic || head[len(recordMagic)] != recordVersion ||
		[32]byte(head[len(recordMagic)+1:len(recordMagic)+33]) != identity {
		return nil, fmt.Errorf("statcache of another tree, repository or version")
	}
	tail := head[len(recordMagic)+1+32:]
	c := care{
		full: int64(binary.LittleEndian.Uint64(tail)), partial: int64(binary.LittleEndian.Uint64(tail[8:])), distrust: tail[16] != 0,
	}
	return &recordReader{f: f, off: int64(recordHeader), care: c}, nil
}

// next returns the next record, valid until the call after, or io.EOF at the
// proper end.
func (r *recordReader) next() (*record, error) {
	for len(r.left.b) == 0 {
		if r.ended {
			return nil, io.EOF
		}
		if err := r.nextFrame(); err != nil {
			return nil, err
		}
	}
	if err := r.left.next(&r.rec); err != nil {
		return nil, err
	}
	r.n++
	return &r.rec, nil
}

func (r *recordReader) nextFrame() error {
	kind, size, sum, err := readFrameHeader(r.f, r.off)
	if err != nil {
		return err
	}
	at := r.off + frameHeader
	r.off = at + int64(size)
	if kind == frameList || kind == frameResult {
		return nil
	}
	if cap(r.data) < size {
		r.data = make([]byte, size)
	}
	r.data = r.data[:size]
	if err := readChecked(r.f, at, r.data, sum); err != nil {
		return err
	}
	switch kind {
	case frameRecords:
		r.left = fields{b: r.data}
		r.rec.path = r.rec.path[:0]
		return nil
	case frameEnd:
		d := fields{b: r.data}
		n, at := d.uvarint(), d.uvarint()
		if d.bad || n != r.n || at > uint64(r.off) {
			return errRecord
		}
		r.result = int64(at)
		r.ended = true
		return nil
	}
	return errRecord
}

func readFrameHeader(f io.ReaderAt, off int64) (kind byte, size int, sum uint32, err error) {
	var h [frameHeader]byte
	if _, err := f.ReadAt(h[:], off); err != nil {
		return 0, 0, 0, noEOF(err)
	}
	size = int(binary.LittleEndian.Uint32(h[1:]))
	if size > maxFrame {
		return 0, 0, 0, errRecord
	}
	return h[0], size, binary.LittleEndian.Uint32(h[5:]), nil
}

func readChecked(f io.ReaderAt, off int64, data []byte, sum uint32) error {
	if _, err := f.ReadAt(data, off); err != nil {
		return noEOF(err)
	}
	if crc32.Checksum(data, castagnoli) != sum {
		return errRecord
	}
	return nil
}

// noEOF: an end where something should be is damage.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// contentWriter encodes the content list of one regular file:
//
//	uvarint number of refs; at most catalog.MaxDirect: the refs
//	else: uvarint number of list frames; for each its offset in the file
type contentWriter struct {
	w      *recordWriter
	refs   []catalog.Ref
	n      uint64
	frames []int64
	size   int64
	buf    []byte
}

func (c *contentWriter) add(r catalog.Ref) error {
	c.size += r.Len
	if n := len(c.refs); n > 0 && r.Hole && c.refs[n-1].Hole {
		c.refs[n-1].Len += r.Len
		return nil
	}
	if len(c.refs) == catalog.ListRefs {
		if err := c.spill(); err != nil {
			return err
		}
	}
	c.refs = append(c.refs, r)
	c.n++
	return nil
}

func (c *contentWriter) spill() error {
	c.buf = catalog.AppendRefs(c.buf[:0], c.refs)
	off, err := c.w.writeFrame(frameList, c.buf)
	c.frames = append(c.frames, off)
	c.refs = c.refs[:0]
	return err
}

// finish appends the encoded list to b and makes c ready for the next file.
func (c *contentWriter) finish(b []byte) ([]byte, error) {
	b = binary.AppendUvarint(b, c.n)
	if c.n <= catalog.MaxDirect {
		b = catalog.AppendRefs(b, c.refs)
	} else {
		if err := c.spill(); err != nil {
			return nil, err
		}
		b = binary.AppendUvarint(b, uint64(len(c.frames)))
		for _, off := range c.frames {
			b = binary.AppendUvarint(b, uint64(off))
		}
	}
	c.reset()
	return b, nil
}

// reset drops what was added.
func (c *contentWriter) reset() {
	c.refs, c.n, c.frames, c.size = c.refs[:0], 0, c.frames[:0], 0
}

// content calls fn for each ref of an encoded content list of the record file f.
func content(f io.ReaderAt, list []byte, fn func(catalog.Ref) error) error {
	d := fields{b: list}
	n := d.uvarint()
	if n <= catalog.MaxDirect {
		got, err := decodeRefs(d.b, fn)
		if err == nil && got != n {
			err = errRecord
		}
		return err
	}
	total := uint64(0)
	for range d.uvarint() {
		off := d.uvarint()
		if d.bad {
			return errRecord
		}
		kind, size, sum, err := readFrameHeader(f, int64(off))
		if err == nil && kind != frameList {
			err = errRecord
		}
		if err != nil {
			return err
		}
		data := make([]byte, size)
		if err := readChecked(f, int64(off)+frameHeader, data, sum); err != nil {
			return err
		}
		got, err := decodeRefs(data, fn)
		if err != nil {
			return err
		}
		total += got
	}
	if total != n || d.bad || len(d.b) != 0 {
		return errRecord
	}
	return nil
}

func decodeRefs(b []byte, fn func(catalog.Ref) error) (uint64, error) {
	n := uint64(0)
	for len(b) > 0 {
		ref, size, err := catalog.DecodeRef(b)
		if err != nil {
			return n, fmt.Errorf("%w: %w", errRecord, err)
		}
		if err := fn(ref); err != nil {
			return n, err
		}
		b = b[size:]
		n++
	}
	return n, nil
}
