package tree

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"os"

	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
)

// maxMeta bounds the catalog units that a statcache remembers; a larger catalog
// is made anew each time.
const maxMeta = 256 << 10

// metaSink passes on the units of a catalog and remembers which they were.
type metaSink struct {
	catalog.Sink
	refs []catalog.Ref
	over bool
}

func (m *metaSink) Put(ctx context.Context, data []byte) (dr.UnitRef, error) {
	ref, err := m.Sink.Put(ctx, data)
	if len(m.refs) == maxMeta {
		m.over = true
	} else {
		m.refs = append(m.refs, catalog.Ref{ID: ref.ID, Len: int64(ref.Len)})
	}
	return ref, err
}

// appendResult encodes a captured tree with the units of its catalog:
// uvarint length, JSON of the tree, refs.
func appendResult(b []byte, t *dr.Tree, refs []catalog.Ref) ([]byte, error) {
	j, err := json.Marshal(t)
	if err != nil {
		return nil, err
	}
	b = binary.AppendUvarint(b, uint64(len(j)))
	return catalog.AppendRefs(append(b, j...), refs), nil
}

func decodeResult(b []byte) (t dr.Tree, refs []catalog.Ref, err error) {
	d := fields{b: b}
	j := d.bytes(d.uvarint())
	if d.bad {
		return t, nil, errRecord
	}
	if err := json.Unmarshal(j, &t); err != nil {
		return t, nil, errors.Join(errRecord, err)
	}
	_, err = decodeRefs(d.b, func(r catalog.Ref) error { refs = append(refs, r); return nil })
	return t, refs, err
}

// unchanged reports whether the records taken from the cache were all of the
// cache, and all of the tree: then its result holds too.
func (p *precopier) unchanged() bool {
	if p.fresh || p.cache == nil || p.head != nil {
		return false
	}
	_, err := p.cache.next()
	return errors.Is(err, io.EOF) && p.cache.result != 0
}

// reuse returns the result of the capture before where nothing has changed since
// and the repository still has its catalog. The statcache stays as it is then.
func (c *Capture) reuse() (dr.Tree, bool) {
	if c.result == 0 || c.sec == nil || !c.sec.fast || len(c.report.Unstable) > 0 {
		return dr.Tree{}, false
	}
	for _, s := range c.sec.steps {
		if s.kind != stepCopy {
			return dr.Tree{}, false
		}
	}
	f, err := os.Open(c.state)
	if err != nil {
		return dr.Tree{}, false
	}
	defer f.Close()
	if _, err := openRecords(f, c.identity); err != nil {
		return dr.Tree{}, false
	}
	kind, size, sum, err := readFrameHeader(f, c.result)
	if err != nil || kind != frameResult {
		return dr.Tree{}, false
	}
	data := make([]byte, size)
	if readChecked(f, c.result+frameHeader, data, sum) != nil {
		return dr.Tree{}, false
	}
	t, refs, err := decodeResult(data)
	if err != nil {
		return dr.Tree{}, false
	}
	units := make([]dr.UnitRef, len(refs))
	for i, r := range refs {
		units[i] = r.Unit()
	}
	if !c.o.Sink.HaveAll(units) {
		return dr.Tree{}, false
	}
	return t, true
}
