package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/zeebo/blake3"

	"lifeboat/internal/dr"
	"lifeboat/internal/repo"
)

// listedHits bounds how many files, and how many other things, one damage lists
// of the snapshots that it hits alike.
const listedHits = 10

// hitList is the first of what is hit; Files begin with their tree.
type hitList struct {
	Objects      []string `json:"objects"`
	Files        []string `json:"files"`
	FurtherFiles int      `json:"further_files"`
}

func newHitList() hitList { return hitList{Objects: []string{}, Files: []string{}} }

func (l *hitList) add(row lossRow) {
	switch {
	case row.Kind == repo.LossFile && len(l.Files) < listedHits:
		l.Files = append(l.Files, row.text())
	case row.Kind == repo.LossFile:
		l.FurtherFiles++
	case len(l.Objects) < listedHits:
		l.Objects = append(l.Objects, row.text())
	}
}

// further says how many files are not listed, "" for none.
func (l *hitList) further() string {
	if l.FurtherFiles == 0 {
		return ""
	}
	return fmt.Sprintf("and %d more files", l.FurtherFiles)
}

// damageHit is what one damage takes from snapshots of one system that lose the
// same by it.
type damageHit struct {
	System dr.System `json:"system"`
	Tags   []string  `json:"tags"`
	hitList

	snapshots []dr.SnapshotID
	sum       [32]byte
}

// text says which snapshots lose what.
func (h *damageHit) text() string {
	what := slices.Concat(h.Objects, h.Files)
	if more := h.further(); more != "" {
		what = append(what, more)
	}
	return "in " + tagRanges(h.Tags) + ": " + strings.Join(what, ", ")
}

// tagRanges shortens tags of one system, which come in the order of their numbers.
func tagRanges(tags []string) string {
	var parts []string
	for i := 0; i < len(tags); {
		last := i
		for last+1 < len(tags) && follows(tags[last], tags[last+1]) {
			last++
		}
		switch last - i {
		case 0:
			parts = append(parts, tags[i])
		case 1:
			parts = append(parts, tags[i], tags[last])
		default:
			parts = append(parts, tags[i]+" to "+tags[last])
		}
		i = last + 1
	}
	if n := len(parts); n > listedHits {
		parts = append(parts[:listedHits-1:listedHits-1], fmt.Sprintf("and %d more, to %s", n-listedHits+1, tags[len(tags)-1]))
	}
	return strings.Join(parts, ", ")
}

// follows reports whether b has the number after a's.
func follows(a, b string) bool {
	x, err := repo.ParseTag(a)
	y, err2 := repo.ParseTag(b)
	return err == nil && err2 == nil && x.Class == y.Class && x.System == y.System && y.Number == x.Number+1
}

// hitBook gathers, for each damaged blob, what of which snapshots is hit.
type hitBook struct {
	of      map[digest.Digest][]int // by blob: damages
	current []*damageHit            // by damage: of the snapshot that is gone through
	sums    []*blake3.Hasher
	hits    [][]damageHit
}

func newHitBook(damaged []damage) *hitBook {
	b := &hitBook{of: map[digest.Digest][]int{}, current: make([]*damageHit, len(damaged)), sums: make([]*blake3.Hasher, len(damaged)), hits: make([][]damageHit, len(damaged))}
	for i, d := range damaged {
		if d.Blob != "" {
			b.of[digest.Digest(d.Blob)] = append(b.of[digest.Digest(d.Blob)], i)
		}
	}
	return b
}

// add takes one loss; blobs are all that are at fault.
func (b *hitBook) add(s *repo.Snapshot, row lossRow, blobs []digest.Digest) {
	for _, blob := range blobs {
		for _, i := range b.of[blob] {
			h := b.current[i]
			if h == nil || h.Tags[0] != s.Tag {
				b.end(i)
				h = &damageHit{System: s.System, Tags: []string{s.Tag}, snapshots: []dr.SnapshotID{s.ID}, hitList: newHitList()}
				b.current[i], b.sums[i] = h, blake3.New()
			}
			text := row.text()
			_, _ = fmt.Fprintf(b.sums[i], "%d %s %d %s\n", len(row.Kind), row.Kind, len(text), text) // a hash takes everything
			h.hitList.add(row)
		}
	}
}

// end puts what the last snapshot loses by a damage with what others lose by it.
func (b *hitBook) end(i int) {
	h := b.current[i]
	if h == nil {
		return
	}
	b.sums[i].Sum(h.sum[:0])
	b.current[i] = nil
	for k := range b.hits[i] {
		if have := &b.hits[i][k]; have.System == h.System && have.sum == h.sum {
			have.Tags, have.snapshots = append(have.Tags, h.Tags...), append(have.snapshots, h.snapshots...)
			return
		}
	}
	b.hits[i] = append(b.hits[i], *h)
}

// close tells each damaged blob what it hits: of the systems and snapshots that
// only list it those are left that lose something by it.
func (b *hitBook) close(damaged []damage) {
	for i := range damaged {
		d := &damaged[i]
		b.end(i)
		if d.Blob == "" {
			continue
		}
		d.Hits = append([]damageHit{}, b.hits[i]...)
		d.Systems, d.Snapshots = []dr.System{}, []dr.SnapshotID{}
		d.Tags = slices.DeleteFunc(d.Tags, isSnapshotTag)
		for _, h := range d.Hits {
			d.Tags, d.Snapshots = append(d.Tags, h.Tags...), append(d.Snapshots, h.snapshots...)
			if !slices.Contains(d.Systems, h.System) {
				d.Systems = append(d.Systems, h.System)
			}
		}
		if n := len(d.Hits); n > 0 {
			d.hitList = d.Hits[n-1].hitList
		}
	}
}

// isSnapshotTag reports whether a tag names a snapshot or where it lies now.
func isSnapshotTag(name string) bool {
	t, err := repo.ParseTag(name)
	return err == nil && (t.Class == repo.ClassSnapshot || t.Class == repo.ClassRelocation)
}
