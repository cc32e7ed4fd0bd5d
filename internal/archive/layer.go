package archive

import (
	"fmt"
	"slices"
	"strings"

	"lifeboat/internal/catalog"
)

// request is one archive to ask for.
type request struct {
	path string // relative to the container's root
	// whole asks for everything below a directory.
	whole bool
	// opaque: a directory that replaced one of the image; it is whole, too.
	opaque bool
	// members, if any, are what is taken of the whole: many requests in one.
	members map[string]request
}

// bulk is how many changed names in one directory are read with all of it. One
// archive takes some 20 ms to begin with, as long as a megabyte of another.
const bulk = 128

// takes reports whether an entry of the archive belongs to what was asked for.
func (r *request) takes(path string) bool {
	if r.members == nil {
		return true
	}
	for up := path; ; up = catalog.Parent(up) {
		if m, ok := r.members[up]; ok {
			return up == path || m.whole
		}
		if up == "" {
			return false
		}
	}
}

// layerPlan is how the writable layer is read.
type layerPlan struct {
	requests []request // sorted by path
	deleted  []string
	garbled  lostNames
}

// planLayer turns the engine's list of changes into requests: one for each
// changed path, one for all of a directory that the image does not have.
//
// Engines tell of a directory that replaced one of the image in two ways: as
// changed, with each deletion in it, or as deleted, with what it holds now as
// added. Both are a directory with what it holds; the second is opaque.
func planLayer(changes []Change, left func(string) bool) (layerPlan, error) {
	var p layerPlan
	kinds := map[string]ChangeKind{"": Modified}
	for _, ch := range changes {
		rel, ok := strings.CutPrefix(ch.Path, "/")
		if !ok {
			return p, fmt.Errorf("changed path %.200q is not absolute: %w", ch.Path, ErrMalformed)
		}
		if err := catalog.CheckPath(rel); err != nil {
			return p, fmt.Errorf("list of changes: %w: %w", err, ErrMalformed)
		}
		if ch.Kind != Modified && ch.Kind != Added && ch.Kind != Deleted {
			return p, fmt.Errorf("changed path %.200q: kind %d: %w", ch.Path, ch.Kind, ErrMalformed)
		}
		if rel == "" || left(rel) {
			continue
		}
		kinds[rel] = ch.Kind
	}
	paths := make([]string, 0, len(kinds))
	for path := range kinds {
		paths = append(paths, path)
	}
	// Every entry lies in one; engines name them all, but need not.
	for _, path := range paths {
		for up := path; up != ""; {
			up = catalog.Parent(up)
			if _, ok := kinds[up]; !ok {
				kinds[up] = Modified
				paths = append(paths, up)
			}
		}
	}
	slices.SortFunc(paths, catalog.ComparePaths)
	covered := "" // what is read as a whole, with all below
	for i, path := range paths {
		if covered != "" && catalog.Under(path, covered) {
			continue
		}
		// The engine's JSON has this character for each byte that is not UTF-8.
		if strings.ContainsRune(path, '\ufffd') {
			if p.garbled.n++; p.garbled.n == 1 {
				p.garbled.first = path
			}
			continue
		}
		holds := holdsMore(paths[i+1:], kinds, path)
		switch kind := kinds[path]; {
		case kind == Deleted && !holds:
			p.deleted = append(p.deleted, path)
			covered = path // a deletion has nothing below it
		case kind == Deleted:
			p.requests = append(p.requests, request{path: path, whole: true, opaque: true})
			covered = path
		case kind == Added:
			p.requests = append(p.requests, request{path: path, whole: true})
			covered = path
		default:
			p.requests = append(p.requests, request{path: path})
		}
	}
	p.requests = gather(p.requests)
	return p, nil
}

// gather makes one request of those for many names in one directory.
func gather(all []request) []request {
	in := map[string]int{}
	for _, r := range all {
		if r.path != "" && !r.opaque {
			in[catalog.Parent(r.path)]++
		}
	}
	var out []request
	at := map[string]int{} // directory to its request in out
	for _, r := range all {
		dir := catalog.Parent(r.path)
		if r.path == "" || r.opaque || in[dir] < bulk {
			out = append(out, r)
			continue
		}
		i, ok := at[dir]
		if !ok {
			i = len(out)
			at[dir] = i
			out = append(out, request{path: dir, whole: true, members: map[string]request{}})
		}
		out[i].members[r.path] = r
	}
	return out
}

// holdsMore reports whether something that is not a deletion lies below dir;
// paths are those that follow it in order.
func holdsMore(paths []string, kinds map[string]ChangeKind, dir string) bool {
	for _, path := range paths {
		if !catalog.Under(path, dir) {
			return false
		}
		if kinds[path] != Deleted {
			return true
		}
	}
	return false
}
