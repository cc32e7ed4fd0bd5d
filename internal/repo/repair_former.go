package repo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/opencontainers/go-digest"

	"lifeboat/internal/dr"
	"lifeboat/internal/seal"
	"lifeboat/internal/store"
)

// places brings the pack manifests that other places of damaged snapshots list from
// exact copies: those that they needed before they were repaired in part, for what
// they lack since may be had from a source that could not be read then or is a new
// one; and those that a source lists for the same snapshot, which lies elsewhere in a
// mirror that was written before or after a relocation. What is lost is found in them
// by what comes next.
func (p *repairer) places(ctx context.Context, x *Examination) error {
	seen := map[digest.Digest]bool{}
	for _, n := range x.inv.needs {
		seen[n.Digest] = true
	}
	bring := func(needs []need, look func(need) (*harm, error)) error {
		for _, n := range needs {
			if seen[n.Digest] || p.former[n.Digest] {
				continue
			}
			p.former[n.Digest] = true
			h, err := look(n)
			if err == nil {
				err = p.manifest(ctx, n, h)
			}
			if err != nil && !errors.Is(err, errNowhere) {
				return err
			}
		}
		return nil
	}
	for _, src := range p.opts.From {
		if src.Exact == nil {
			continue
		}
		there, err := p.placesThere(ctx, x, src)
		if err != nil {
			return err
		}
		for i := range x.inv.snaps {
			s := &x.inv.snaps[i]
			if s.Lacks > 0 {
				needs, err := p.olderNeeds(ctx, s)
				if err == nil {
					err = bring(needs, func(n need) (*harm, error) { return p.reread(ctx, n) })
				}
				if err != nil {
					return err
				}
			}
			if err := bring(there[s], func(need) (*harm, error) { return x.harm, nil }); err != nil {
				return err
			}
		}
	}
	return nil
}

// olderNeeds are the pack manifests that the tags of a snapshot list here.
func (p *repairer) olderNeeds(ctx context.Context, s *Snapshot) (out []need, err error) {
	for _, t := range s.place.tags {
		m, err := p.repo.st.GetManifest(ctx, t.String())
		var needs []need
		if err == nil {
			_, needs, err = decodeSnapshotIndex(t.Class, m)
		}
		if err != nil && !about(err) {
			return nil, err
		}
		out = append(out, needs...)
	}
	return out, nil
}

// placesThere are the pack manifests that a source lists for the snapshots that are
// damaged here.
func (p *repairer) placesThere(ctx context.Context, x *Examination, src RepairSource) (map[*Snapshot][]need, error) {
	var hit []*Snapshot
	for i := range x.inv.snaps {
		if s := &x.inv.snaps[i]; x.concerned(s) {
			hit = append(hit, s)
		}
	}
	if len(hit) == 0 {
		return nil, nil
	}
	failed := func(err error) error {
		if !notThere(ctx, err) {
			return fmt.Errorf("read %s: %w", src.Name, err)
		}
		p.did(RepairStep{Action: RepairCopied, Tag: string(ClassSnapshot) + ".*", From: src.Name, Err: err})
		return nil
	}
	names, err := src.Exact.Tags(ctx, "")
	if err != nil {
		return nil, failed(err)
	}
	all, _ := placesOf(names, "")
	out := map[*Snapshot][]need{}
	for _, s := range hit {
		i := slices.IndexFunc(all, func(q place) bool { return q.system == s.System && q.number == s.Number })
		if i < 0 {
			continue
		}
		for _, t := range all[i].tags {
			m, err := src.Exact.GetManifest(ctx, t.String())
			var needs []need
			if err == nil {
				needs, err = p.repo.needsAt(ctx, s, t, m)
			}
			if err != nil && !about(err) {
				return out, failed(err)
			}
			out[s] = append(out[s], needs...)
		}
	}
	return out, nil
}

// needsAt returns what a tag of another registry says of where a snapshot lies. It is
// signed by somebody with the repository's key; whether that host counts does not
// matter, for each unit found there is compared with its id. Nothing of it is
// remembered. The error wraps dr.ErrTampered.
func (r *Repo) needsAt(ctx context.Context, s *Snapshot, t Tag, m store.Manifest) ([]need, error) {
	sealed, listed, err := decodeSnapshotIndex(t.Class, m)
	if err != nil {
		return nil, err
	}
	signed, err := r.openSealed(ctx, t.String(), sealed)
	if err != nil {
		return nil, err
	}
	_, body, err := seal.VerifySigned(r.ID(), t.String(), signed)
	if err != nil {
		return nil, err
	}
	var rec struct { // of a commit record and of a relocation
		Snapshot dr.SnapshotID   `json:"snapshot"`
		Needs    []digest.Digest `json:"needs"`
	}
	if err := json.Unmarshal(body, &rec); err != nil || rec.Snapshot != s.ID {
		return nil, tampered("tag %s does not speak of snapshot %s", t, s.ID.Short())
	}
	return listed, sameNeeds(listed, rec.Needs)
}

// reread reads what a pack manifest names, and tells what of it is damaged.
func (p *repairer) reread(ctx context.Context, n need) (*harm, error) {
	pm, _, err := p.packManifest(ctx, n)
	if err != nil {
		return nil, err
	}
	h := newHarm()
	for _, b := range append([]blob{pm.index}, pm.packs...) {
		err := sameBlob(ctx, b, p.repo.st, io.Discard)
		if err != nil && !notThere(ctx, err) {
			return nil, err
		}
		if err != nil {
			h.pack(n, b.Digest, nil)
		}
	}
	return h, nil
}
