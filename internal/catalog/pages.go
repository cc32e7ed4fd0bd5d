package catalog

import (
	"lifeboat/internal/dr"
)

// Page is one page of a catalog: its unit, and the paths that it covers.
type Page struct {
	Ref dr.UnitRef
	// First is the path of the page's first entry. The page holds all entries from
	// there on that come before End; End is "" for the last page.
	First, End string
}

// NumPages counts the pages.
func (r *Reader) NumPages() int { return len(r.pages) }

// Page returns page number i of 0 to NumPages()-1, as the page table tells it:
// also of a page that cannot be read it is known what it covers.
func (r *Reader) Page(i int) Page {
	p := Page{Ref: r.pages[i].ref, First: r.pages[i].first}
	if i+1 < len(r.pages) {
		p.End = r.pages[i+1].first
	}
	return p
}

// OpenPage decodes the bytes of page number i and checks them against the page
// table; the entries share memory with data. That each entry lies in a directory
// is not checked: Next does. The error wraps dr.ErrTampered.
func (r *Reader) OpenPage(i int, data []byte) ([]Entry, error) { return r.decode(i, data) }
