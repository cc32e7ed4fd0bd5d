package main

import (
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/zeebo/blake3"

	"lifeboat/internal/dr"
	"lifeboat/internal/repo"
)

// lossLimit bounds how many losses a JSON answer lists, so that memory is
// bounded; the rest is counted.
const lossLimit = 200_000

// listedBlobs bounds how many blobs at fault a loss lists.
const listedBlobs = 8

// hitSnapshot is a snapshot that loses something.
type hitSnapshot struct {
	System   dr.System     `json:"system"`
	Tag      string        `json:"tag"`
	Snapshot dr.SnapshotID `json:"snapshot"`
	Created  time.Time     `json:"created"`
	// Files and Bytes count all that is lost of files.
	Files int64 `json:"files"`
	Bytes int64 `json:"bytes"`
	// Losses are listed once: where SameAs is set, they are those of that tag, and
	// none are listed here.
	Losses  []lossRow `json:"losses"`
	SameAs  string    `json:"same_as,omitempty"`
	Further int64     `json:"further,omitempty"`
}

// lossRow is one thing that is lost. Path begins with a slash; of a catalog it is
// the first path of which nothing is known, and End the first of which something
// is again.
type lossRow struct {
	Kind   repo.LossKind   `json:"kind"`
	Object string          `json:"object,omitempty"`
	Path   string          `json:"path,omitempty"`
	End    string          `json:"end,omitempty"`
	Bytes  int64           `json:"bytes,omitempty"`
	Blobs  []digest.Digest `json:"blobs,omitempty"`
	// PathRaw and EndRaw are there where Path and End are not UTF-8.
	PathRaw []byte `json:"path_raw,omitempty"`
	EndRaw  []byte `json:"end_raw,omitempty"`
}

// lossBook turns losses, which come snapshot by snapshot, into what is answered:
// the first few for each damage, and with json all of each snapshot.
type lossBook struct {
	damaged []damage
	hits    *hitBook
	json    bool
	room    int

	out  []hitSnapshot
	sum  *blake3.Hasher
	seen map[[32]byte]string
}

func newLossBook(damaged []damage, json bool) *lossBook {
	return &lossBook{damaged: damaged, hits: newHitBook(damaged), json: json, room: lossLimit, seen: map[[32]byte]string{}}
}

func (b *lossBook) add(s *repo.Snapshot, l repo.Loss) error {
	if n := len(b.out); n == 0 || b.out[n-1].Tag != s.Tag {
		b.end()
		b.out = append(b.out, hitSnapshot{System: s.System, Tag: s.Tag, Snapshot: s.ID, Created: s.Created, Losses: []lossRow{}})
		b.sum = blake3.New()
	}
	h := &b.out[len(b.out)-1]
	row := lossRow{Kind: l.Kind, Object: l.Object, Bytes: l.Bytes, Blobs: l.Blobs[:min(len(l.Blobs), listedBlobs)]}
	if l.Kind == repo.LossFile || l.Kind == repo.LossCatalog && (l.Path != "" || l.End != "") {
		row.Path = "/" + l.Path
	}
	if l.End != "" {
		row.End = "/" + l.End
	}
	row.PathRaw, row.EndRaw = rawOf(row.Path), rawOf(row.End)
	if l.Kind == repo.LossFile {
		h.Files++
		h.Bytes += l.Bytes
	}
	// Strings that the hash cannot confuse: lengths go in, too.
	for _, part := range []string{string(row.Kind), row.Object, row.Path, row.End, fmt.Sprint(row.Bytes, row.Blobs)} {
		_, _ = fmt.Fprintf(b.sum, "%d %s\n", len(part), part) // a hash takes everything
	}
	b.hits.add(s, row, l.Blobs)
	b.onDamages(s, row)
	switch {
	case !b.json:
	case b.room > 0:
		h.Losses = append(h.Losses, row)
		b.room--
	default:
		h.Further++
	}
	return nil
}

// end finishes a snapshot: one that loses the same as an earlier one refers to
// that.
func (b *lossBook) end() {
	if len(b.out) == 0 {
		return
	}
	h := &b.out[len(b.out)-1]
	var sum [32]byte
	b.sum.Sum(sum[:0])
	if tag, ok := b.seen[sum]; ok {
		b.room += len(h.Losses)
		h.SameAs, h.Losses, h.Further = tag, []lossRow{}, 0
		return
	}
	b.seen[sum] = h.Tag
}

// close ends the book where everything was gone through.
func (b *lossBook) close() []hitSnapshot {
	b.hits.close(b.damaged)
	return b.list()
}

// list is what was found of snapshots.
func (b *lossBook) list() []hitSnapshot {
	b.end()
	if b.out == nil {
		return []hitSnapshot{}
	}
	return b.out
}

// onDamages puts a loss onto the damages that are no blob's, of the snapshot's own.
func (b *lossBook) onDamages(s *repo.Snapshot, row lossRow) {
	for i := range b.damaged {
		d := &b.damaged[i]
		if d.Blob != "" || d.newest == nil || d.newest.Tag != s.Tag {
			continue
		}
		d.hitList.add(row)
	}
}

// text says what is lost.
func (r lossRow) text() string {
	switch r.Kind {
	case repo.LossDescription:
		return "the description"
	case repo.LossCatalog:
		switch {
		case r.Path == "":
			return "the list of files of " + r.Object
		case r.End == "":
			return fmt.Sprintf("the list of files of %s from %s on", r.Object, r.Path)
		}
		return fmt.Sprintf("the list of files of %s from %s to before %s", r.Object, r.Path, r.End)
	case repo.LossImage:
		return "image " + r.Object
	case repo.LossConfig:
		return "project file " + r.Object
	}
	return r.Object + " " + r.Path
}
