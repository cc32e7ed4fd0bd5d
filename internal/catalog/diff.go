package catalog

import (
	"context"
	"errors"
	"io"

	"lifeboat/internal/dr"
)

// Kind says in what a Change consists.
type Kind uint8

const (
	// Added entries are only in the second catalog.
	Added Kind = iota + 1
	// Removed entries are only in the first.
	Removed
	// Metadata: same type and content; mode, owner, mtime, attributes or flags differ.
	Metadata
	// Content: type, content, target or device differ, and maybe metadata.
	Content
)

func (k Kind) String() string {
	return [...]string{"", "added", "removed", "metadata", "content"}[k]
}

// Change is one path in which two catalogs differ. A is nil for Added, B for
// Removed.
type Change struct {
	Kind Kind
	A, B *Entry
}

// Path is the path of the change.
func (c Change) Path() string {
	if c.A != nil {
		return c.A.Path
	}
	return c.B.Path
}

// Merge calls fn for each path of either catalog in order; an entry that one
// does not have is nil. a or b may be nil as a whole: an empty catalog. Both
// are read from their start. An error of fn is returned as it is.
func Merge(ctx context.Context, a, b *Reader, fn func(a, b *Entry) error) error {
	return merge(ctx, a, b, false, fn)
}

// Diff calls fn for each path in which the catalogs differ, in order. Pages
// that both have are passed over unread, so the cost is that of what differs.
func Diff(ctx context.Context, a, b *Reader, fn func(Change) error) error {
	return merge(ctx, a, b, true, func(x, y *Entry) error {
		switch {
		case x == nil:
			return fn(Change{Kind: Added, B: y})
		case y == nil:
			return fn(Change{Kind: Removed, A: x})
		case x.Type != y.Type, x.Target != y.Target, x.Major != y.Major, x.Minor != y.Minor, !SameContent(x, y):
			return fn(Change{Kind: Content, A: x, B: y})
		case !SameMetadata(x, y):
			return fn(Change{Kind: Metadata, A: x, B: y})
		}
		return nil
	})
}

// SameMetadata reports whether mode, owner, mtime, attributes and flags agree.
func SameMetadata(a, b *Entry) bool {
	if a.Mode != b.Mode || a.UID != b.UID || a.GID != b.GID || a.MtimeSec != b.MtimeSec || a.MtimeNsec != b.MtimeNsec ||
		a.Opaque != b.Opaque || a.LinkGroup != b.LinkGroup {
		return false
	}
	return SameXattrs(a.Xattrs, b.Xattrs)
}

// SameXattrs reports whether two sorted lists of attributes are equal.
func SameXattrs(a, b []Xattr) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].Name != b[i].Name || string(a[i].Value) != string(b[i].Value) {
			return false
		}
	}
	return true
}

// side is one catalog of a merge with its next entry.
type side struct {
	r    *Reader
	head *Entry
	end  bool
}

func (s *side) fill(ctx context.Context) error {
	if s.head != nil || s.end {
		return nil
	}
	e, err := s.r.advance(ctx)
	if errors.Is(err, io.EOF) {
		s.end = true
		return nil
	}
	s.head = e
	return err
}

func merge(ctx context.Context, a, b *Reader, skip bool, fn func(a, b *Entry) error) error {
	sides := [2]side{{r: a, end: a == nil}, {r: b, end: b == nil}}
	for _, s := range sides {
		if s.r != nil {
			s.r.Rewind()
		}
	}
	skip = skip && a != nil && b != nil
	if skip {
		// Fetching ahead leaves out what will probably be passed over.
		a.known, b.known = b.pageSet(), a.pageSet()
		defer func() { a.known, b.known = nil, nil }()
	}
	x, y := &sides[0], &sides[1]
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if skip && x.head == nil && y.head == nil {
			skipEqual(a, b)
		}
		if err := x.fill(ctx); err != nil {
			return err
		}
		if err := y.fill(ctx); err != nil {
			return err
		}
		order := 0
		switch {
		case x.head == nil && y.head == nil:
			return nil
		case x.head == nil:
			order = 1
		case y.head == nil:
			order = -1
		default:
			order = ComparePaths(x.head.Path, y.head.Path)
		}
		var ea, eb *Entry
		if order <= 0 {
			ea, x.head = x.head, nil
		}
		if order >= 0 {
			eb, y.head = y.head, nil
		}
		if err := fn(ea, eb); err != nil {
			return err
		}
	}
}

// skipEqual passes over pages that come next in both.
func skipEqual(a, b *Reader) {
	for len(a.entries) == 0 && len(b.entries) == 0 && a.next < len(a.pages) && b.next < len(b.pages) &&
		a.pages[a.next].ref == b.pages[b.next].ref {
		for _, r := range []*Reader{a, b} {
			delete(r.ahead, r.next)
			r.next++
			r.loose = true
		}
	}
}

func (r *Reader) pageSet() map[dr.UnitID]struct{} {
	set := make(map[dr.UnitID]struct{}, len(r.pages))
	for _, p := range r.pages {
		set[p.ref.ID] = struct{}{}
	}
	return set
}
