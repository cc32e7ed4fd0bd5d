package catalog

import "context"

// CloneLenient is Clone of a reader whose Next, and with it Diff and Merge, goes on
// behind pages that cannot be had or are not what the page table says. For each pass
// is asked, with why; where it is false the error is returned as ever. It may be asked
// before Next comes to the page, and again after Rewind. Directories may lie in a page
// that was passed over: of what comes after it the parents are taken as given. Lookup,
// Seek and Content are not lenient. Clones of the clone are like it.
func (r *Reader) CloneLenient(pass func(p Page, err error) bool) *Reader {
	c := r.Clone()
	c.pass = pass
	return c
}

// passes reports whether Next goes on behind a page.
func (r *Reader) passes(ctx context.Context, page int, err error) bool {
	if r.pass == nil || ctx.Err() != nil || !r.pass(r.Page(page), err) {
		return false
	}
	r.loose = true
	return true
}

// fetchWhole fetches pages one by one, because not all of them can be had, and
// returns the first. Those that are passed over are remembered.
func (r *Reader) fetchWhole(ctx context.Context, at []int) (first []byte, err error) {
	r.ahead = make(map[int][]byte, len(at))
	if r.failed == nil {
		r.failed = map[int]error{}
	}
	for i, page := range at {
		data, uerr := unit(ctx, r.src, r.pages[page].ref)
		switch {
		case uerr == nil && i == 0:
			first = data
		case uerr == nil:
			r.ahead[page] = data
		case ctx.Err() != nil || !r.pass(r.Page(page), uerr):
			return nil, uerr
		default:
			r.failed[page] = uerr
			if i == 0 {
				err = uerr
			}
		}
	}
	return first, err
}
