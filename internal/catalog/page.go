package catalog

import (
	"encoding/binary"
	"fmt"

	"lifeboat/internal/dr"
)

const (
	pageMagic  = "LBCP\x01"
	tableMagic = "LBCT\x01"

	// maxTablePages and maxTableUnit end a unit of the page table.
	maxTablePages = 4096
	maxTableUnit  = 1 << 20
	// maxTableUnits bounds what a root record can make a reader load: 16
	// million pages, a tera of catalog.
	maxTableUnits = 4096
)

// appendPage appends the stored form of a page to b. body are its n entries.
func appendPage(b []byte, n int, body []byte) []byte {
	b = append(b, pageMagic...)
	b = binary.AppendUvarint(b, uint64(n))
	return append(b, body...)
}

// DecodePage decodes a page. The entries share memory with data, which must
// not be written to afterwards. Order is checked within the page only. The
// error wraps dr.ErrTampered.
func DecodePage(data []byte) ([]Entry, error) {
	entries, err := decodePage(data)
	if err != nil {
		return nil, fmt.Errorf("catalog page: %w: %w", err, dr.ErrTampered)
	}
	return entries, nil
}

func decodePage(data []byte) ([]Entry, error) {
	if len(data) > dr.MaxUnit || len(data) < len(pageMagic) || string(data[:len(pageMagic)]) != pageMagic {
		return nil, fmt.Errorf("no page of version 1")
	}
	d := decoder{b: data[len(pageMagic):]}
	n := d.uvarint()
	// An entry takes at least nine bytes.
	if n == 0 || n > uint64(len(d.b))/9 {
		return nil, fmt.Errorf("%d entries in %d bytes", n, len(d.b))
	}
	entries := make([]Entry, n)
	// Most entries have one ref or none; a guess of half a ref per 40 bytes
	// saves growing it for ordinary trees.
	refs := make([]Ref, 0, len(d.b)/80)
	prev := ""
	for i := range entries {
		e := &entries[i]
		d.entry(prev, e, &refs)
		if d.err != nil {
			return nil, fmt.Errorf("entry %d: %w", i, d.err)
		}
		if i > 0 && ComparePaths(prev, e.Path) >= 0 {
			return nil, fmt.Errorf("%q after %q", e.Path, prev)
		}
		prev = e.Path
	}
	if len(d.b) != 0 {
		return nil, errTrailing
	}
	return entries, nil
}

// EncodePage is the stored form of entries, in their order. The error names
// the first that the format does not allow. Builder uses the same encoding;
// this form serves tests and tools.
func EncodePage(entries []Entry) ([]byte, error) {
	var body []byte
	prev := ""
	for i := range entries {
		e := &entries[i]
		if err := e.check(); err != nil {
			return nil, fmt.Errorf("%q: %w", e.Path, err)
		}
		if i > 0 && ComparePaths(prev, e.Path) >= 0 {
			return nil, fmt.Errorf("%q after %q", e.Path, prev)
		}
		body = appendEntry(body, prev, e)
		prev = e.Path
	}
	if len(entries) == 0 {
		return nil, fmt.Errorf("a page without entries")
	}
	return appendPage(nil, len(entries), body), nil
}

// pageInfo is one line of the page table.
type pageInfo struct {
	ref   dr.UnitRef
	first string // path of the first entry
}

// tableEncoder makes units of the page table.
type tableEncoder struct {
	body []byte
	n    int
	prev string
}

func (t *tableEncoder) full() bool {
	return t.n == maxTablePages || len(t.body) >= maxTableUnit
}

func (t *tableEncoder) add(p pageInfo) {
	t.body = appendPath(t.body, t.prev, p.first)
	t.body = append(t.body, p.ref.ID[:]...)
	t.body = binary.AppendUvarint(t.body, uint64(p.ref.Len))
	t.prev = p.first
	t.n++
}

// take returns the unit made so far and starts the next.
func (t *tableEncoder) take() []byte {
	b := make([]byte, 0, len(tableMagic)+binary.MaxVarintLen64+len(t.body))
	b = append(b, tableMagic...)
	b = binary.AppendUvarint(b, uint64(t.n))
	b = append(b, t.body...)
	t.body, t.n, t.prev = t.body[:0], 0, ""
	return b
}

// decodeTable appends the pages of one unit of the page table to pages.
func decodeTable(pages []pageInfo, data []byte) ([]pageInfo, error) {
	if len(data) < len(tableMagic) || string(data[:len(tableMagic)]) != tableMagic {
		return nil, fmt.Errorf("no page table of version 1")
	}
	d := decoder{b: data[len(tableMagic):]}
	n := d.uvarint()
	if n == 0 || n > maxTablePages {
		return nil, fmt.Errorf("page table of %d pages", n)
	}
	prev := ""
	for range n {
		p := pageInfo{first: d.path(prev)}
		copy(p.ref.ID[:], d.bytes(32))
		p.ref.Len = uint32(d.limited("page length", dr.MaxUnit))
		if d.err != nil {
			return nil, d.err
		}
		if err := CheckPath(p.first); err != nil {
			return nil, err
		}
		if len(pages) == 0 && p.first != "" {
			return nil, fmt.Errorf("the first page starts with %q, not with the root", p.first)
		}
		if len(pages) > 0 && ComparePaths(pages[len(pages)-1].first, p.first) >= 0 {
			return nil, fmt.Errorf("page of %q after page of %q", p.first, pages[len(pages)-1].first)
		}
		if p.ref.Len == 0 {
			return nil, fmt.Errorf("page of %q has no bytes", p.first)
		}
		pages = append(pages, p)
		prev = p.first
	}
	if len(d.b) != 0 {
		return nil, errTrailing
	}
	return pages, nil
}
