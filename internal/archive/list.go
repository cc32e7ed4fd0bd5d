package archive

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"unsafe"

	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
)

// DefaultBudget is the memory for the entries of one run's trees, in bytes:
// about 700 000 files.
const DefaultBudget = 256 << 20

// ErrTooMany: the list of entries does not fit into its Budget.
var ErrTooMany = errors.New("too many files for the degraded mode")

// Budget bounds the memory of the lists of a run. Safe for concurrent use.
type Budget struct {
	mu          sync.Mutex
	limit, used int64
}

// NewBudget returns a budget of limit bytes, DefaultBudget if it is not positive.
func NewBudget(limit int64) *Budget {
	if limit <= 0 {
		limit = DefaultBudget
	}
	return &Budget{limit: limit}
}

func (b *Budget) take(n int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.used+n > b.limit {
		return fmt.Errorf("the list of entries takes more than %d MiB of memory: %w", b.limit>>20, ErrTooMany)
	}
	b.used += n
	return nil
}

func (b *Budget) give(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used -= n
}

// List collects the entries of one tree, in any order, and makes a catalog of
// them. It is not safe for concurrent use.
type List struct {
	budget  *Budget
	size    int64
	entries []catalog.Entry
}

// NewList returns an empty list whose memory comes out of the budget. Close
// gives it back.
func NewList(b *Budget) *List { return &List{budget: b} }

// Add appends a copy of e.
func (l *List) Add(e catalog.Entry) error {
	n := int64(unsafe.Sizeof(e)) + int64(len(e.Path)+len(e.Target)) + int64(len(e.Refs))*int64(unsafe.Sizeof(catalog.Ref{}))
	for _, x := range e.Xattrs {
		n += int64(unsafe.Sizeof(x)) + int64(len(x.Name)+len(x.Value))
	}
	if err := l.budget.take(n); err != nil {
		return err
	}
	l.size += n
	l.entries = append(l.entries, e.Clone())
	return nil
}

// Close forgets the entries.
func (l *List) Close() {
	l.budget.give(l.size)
	l.size, l.entries = 0, nil
}

// Len is the number of entries.
func (l *List) Len() int { return len(l.entries) }

// sorted puts the entries in the order of a catalog and makes the first name of
// each hard-linked file the one that holds the content. A name that comes twice
// and a link to something that is not in the list wrap ErrMalformed.
func (l *List) sorted() ([]catalog.Entry, error) {
	slices.SortStableFunc(l.entries, func(a, b catalog.Entry) int { return catalog.ComparePaths(a.Path, b.Path) })
	for i := 1; i < len(l.entries); i++ {
		if l.entries[i].Path == l.entries[i-1].Path {
			return nil, fmt.Errorf("%q comes twice: %w", l.entries[i].Path, ErrMalformed)
		}
	}
	groups := map[string][]int{} // target, links in order
	for i := range l.entries {
		if e := &l.entries[i]; e.Type == catalog.HardLink {
			groups[e.Target] = append(groups[e.Target], i)
		}
	}
	for _, target := range slices.Sorted(maps.Keys(groups)) {
		links := groups[target]
		at, ok := l.find(target)
		if !ok {
			return nil, &missingTarget{path: l.entries[links[0]].Path, target: target}
		}
		switch t := l.entries[at].Type; t {
		case catalog.HardLink, catalog.Directory, catalog.Whiteout:
			return nil, fmt.Errorf("%q is a hard link to %q, a %v: %w", l.entries[links[0]].Path, target, t, ErrMalformed)
		}
		l.lead(at, links)
	}
	return l.entries, nil
}

// lead makes the first of a file's names the one with the content.
func (l *List) lead(at int, links []int) {
	if links[0] < at {
		a, b := &l.entries[at], &l.entries[links[0]]
		pa, pb := a.Path, b.Path
		*a, *b = *b, *a
		a.Path, b.Path = pa, pb
		at, links = links[0], append(links[1:len(links):len(links)], at)
	}
	l.entries[at].LinkGroup = true
	for _, i := range links {
		l.entries[i] = catalog.Entry{Path: l.entries[i].Path, Type: catalog.HardLink, Target: l.entries[at].Path}
		t := l.entries[at]
		e := &l.entries[i]
		e.Mode, e.UID, e.GID, e.MtimeSec, e.MtimeNsec = t.Mode, t.UID, t.GID, t.MtimeSec, t.MtimeNsec
	}
}

func (l *List) find(path string) (int, bool) {
	return slices.BinarySearchFunc(l.entries, path, func(e catalog.Entry, p string) int { return catalog.ComparePaths(e.Path, p) })
}

// missingTarget is a hard link whose target is not in the list.
type missingTarget struct{ path, target string }

func (m *missingTarget) Error() string {
	return fmt.Sprintf("%q is a hard link to %q, which is not there", m.path, m.target)
}

func (m *missingTarget) Unwrap() error { return ErrMalformed }

// Catalog stores the entries as a catalog.
func (l *List) Catalog(ctx context.Context, sink catalog.Sink, cutKey [32]byte, unitID func([]byte) dr.UnitID) (catalog.Summary, error) {
	entries, err := l.sorted()
	if err != nil {
		return catalog.Summary{}, err
	}
	b := catalog.NewBuilder(sink, cutKey, unitID)
	for i := range entries {
		if err := b.Add(ctx, entries[i]); err != nil {
			return catalog.Summary{}, err
		}
	}
	return b.Close(ctx)
}

// below reports whether path is one of the directories or lies in one.
func below(path string, dirs []string) bool {
	return slices.ContainsFunc(dirs, func(d string) bool { return path == d || catalog.Under(path, d) })
}

// clean is an absolute path of a container as a path of a tree: without its
// slashes at both ends.
func clean(path string) string { return strings.Trim(path, "/") }
