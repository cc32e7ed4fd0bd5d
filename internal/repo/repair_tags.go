package repo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"lifeboat/internal/dr"
	"lifeboat/internal/seal"
	"lifeboat/internal/store"
)

// verifyAs tells whether a manifest, wherever it comes from, is what a tag of this
// repository has to name. The error wraps dr.ErrTampered, or is the store's.
func (r *Repo) verifyAs(ctx context.Context, t Tag, m store.Manifest) error {
	switch t.Class {
	case ClassSnapshot:
		_, err := r.openSnapshot(ctx, t, m)
		return err
	case ClassRelocation:
		_, _, distrust, err := r.openRelocation(ctx, t, m)
		return errors.Join(err, distrust)
	}
	raw, err := decodeRecordManifest(m, t.Class)
	if err != nil {
		return err
	}
	if t.Class == ClassKey {
		k, err := parseKeyManifest(t, m)
		if err != nil {
			return err
		}
		return k.Verify(r.keyring().Secret())
	}
	signed, err := r.openSealed(ctx, t.String(), raw)
	if err != nil {
		return err
	}
	host, body, err := seal.VerifySigned(r.ID(), t.String(), signed)
	if err != nil {
		return err
	}
	if t.Class == ClassHost {
		var h hostRecord
		if err := json.Unmarshal(body, &h); err != nil || h.Format != 1 || h.Host != host {
			return tampered("not a host record of format 1")
		}
		return nil
	}
	if err := r.hosts.trusts(ctx, host, dr.SnapshotID{}, t.String(), m.Digest.String()); err != nil {
		return err
	}
	return fits(t, body)
}

// tags heals records: tags that are gone, or name what they must not. Keys and
// hosts come first, for they decide what counts of the rest.
func (p *repairer) tags(ctx context.Context) error {
	for _, classes := range [][]Class{{ClassKey}, {ClassHost}, {ClassEpoch, ClassSwitch}, {ClassSnapshot}, {ClassRelocation, ClassLock}} {
		for _, c := range classes {
			if err := p.class(ctx, c); err != nil {
				return err
			}
		}
		if classes[0] == ClassKey && !p.opts.DryRun {
			// What was put back may be newer than what opened the repository.
			if err := p.repo.refreshKeys(ctx); err != nil && !about(err) {
				return err
			}
		}
		if classes[0] == ClassHost {
			if err := p.repo.hosts.reload(ctx); err != nil && !errors.Is(err, dr.ErrTampered) {
				return err
			}
		}
	}
	return nil
}

// copyOf is a manifest that belongs under a tag, and where it is from.
type copyOf struct {
	tag  Tag
	m    store.Manifest
	from *RepairSource // nil for the repository itself
}

func (c copyOf) name() string {
	if c.from == nil {
		return ""
	}
	return c.from.Name
}

// class heals the tags of one class.
func (p *repairer) class(ctx context.Context, c Class) error {
	here, bad, err := p.state(ctx, c)
	if err != nil {
		return err
	}
	wanted := map[Tag]bool{}
	for t := range bad {
		wanted[t] = true
	}
	if err := p.missed(c, wanted); err != nil {
		return err
	}
	found, err := p.swapped(ctx, bad)
	if err != nil {
		return err
	}
	if err := p.fromAside(ctx, c, found); err != nil {
		return err
	}
	for t := range found {
		if !here[t] {
			continue // put back by a run that was cut off right after
		}
		delete(found, t)
		if err := p.dropAside(ctx, t); err != nil {
			return err
		}
	}
	if err := p.fromHere(ctx, c, here, bad, found); err != nil {
		return err
	}
	if c == ClassKey {
		if err := p.fromKept(ctx, here, found); err != nil {
			return err
		}
	}
	for i := range p.opts.From {
		src := &p.opts.From[i]
		if src.Exact == nil {
			continue
		}
		if err := p.fromTags(ctx, c, src, here, wanted, found); err != nil {
			if !notThere(ctx, err) {
				return err
			}
			p.did(RepairStep{Action: RepairCopied, Tag: string(c) + ".*", From: src.Name, Err: err})
		}
	}
	tags := make([]Tag, 0, len(found))
	for t := range found {
		tags = append(tags, t)
	}
	slices.SortFunc(tags, compareTags)
	for _, t := range tags {
		c := found[t]
		moved, err := p.putBack(ctx, c, found)
		if err == nil {
			delete(found, t)
			err = p.dropAside(ctx, t)
		}
		if err != nil && (ctx.Err() != nil || errors.Is(err, store.ErrUnreachable)) {
			return err
		}
		step := RepairStep{Action: RepairCopied, Tag: t.String(), Blob: c.m.Digest, From: c.name(), Err: err}
		if moved != nil {
			step.Action, step.As, step.Blob = RepairRelocated, moved.Place, moved.Digest
		}
		p.did(step)
	}
	return nil
}

// missed adds the tags of a class that this host has seen and that nobody has
// forgotten: what an older state lacks, and what was found lost.
func (p *repairer) missed(c Class, wanted map[Tag]bool) error {
	older, err := p.repo.state.setbacks()
	if err != nil {
		return err
	}
	var names []string
	for _, list := range older {
		for _, b := range list {
			names = slices.AppendSeq(names, maps.Keys(b.Tags))
		}
	}
	if p.result.Before != nil {
		for _, pr := range p.result.Before.Problems {
			if pr.lost {
				names = append(names, pr.Tag)
			}
		}
	}
	for _, name := range names {
		if t, err := ParseTag(name); err == nil && t.Class == c {
			wanted[t] = true
		}
	}
	return nil
}

// state reads all tags of a class here: those that verify, and those that do not
// with what they name (no manifest where that cannot be read).
func (p *repairer) state(ctx context.Context, c Class) (sound map[Tag]bool, bad map[Tag]store.Manifest, err error) {
	names, err := p.repo.st.Tags(ctx, string(c)+".")
	if err != nil {
		return nil, nil, err
	}
	tags, _ := parseTags(names)
	type result struct {
		m         store.Manifest
		bad, gone bool
	}
	all := make([]result, len(tags))
	at := map[Tag]int{}
	for i, t := range tags {
		at[t] = i
	}
	err = inParallel(ctx, tags, func(ctx context.Context, t Tag) error {
		m, err := p.repo.getListed(ctx, t.String())
		gone := errors.Is(err, store.ErrNotFound) // forgotten meanwhile
		if err == nil {
			err = p.repo.verifyAs(ctx, t, m)
		}
		if errors.Is(err, ErrRevoked) {
			err = nil // it is what it should be
		}
		if err != nil && !about(err) {
			return err
		}
		all[at[t]] = result{m, err != nil, gone}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	sound, bad = map[Tag]bool{}, map[Tag]store.Manifest{}
	for i, t := range tags {
		switch {
		case all[i].gone:
		case all[i].bad:
			bad[t] = all[i].m
		default:
			sound[t] = true
		}
	}
	return sound, bad, nil
}

// swapped finds among what tags name wrongly what belongs under another of them.
func (p *repairer) swapped(ctx context.Context, bad map[Tag]store.Manifest) (map[Tag]copyOf, error) {
	found := map[Tag]copyOf{}
	belongs, err := p.repo.misplaced(ctx, bad)
	for t, other := range belongs {
		found[t] = copyOf{tag: t, m: bad[other]}
	}
	return found, err
}

// maxSwapped bounds how many tags that do not verify are tried under each other's
// names.
const maxSwapped = 64

// misplaced finds for tags that name what they must not the other one of them that
// names what belongs there.
func (r *Repo) misplaced(ctx context.Context, bad map[Tag]store.Manifest) (map[Tag]Tag, error) {
	found := map[Tag]Tag{}
	if len(bad) > maxSwapped {
		return found, nil
	}
	for t := range bad {
		for other, m := range bad {
			if m.Body == nil || other == t || other.Class != t.Class {
				continue
			}
			err := r.verifyAs(ctx, t, m)
			if err == nil {
				found[t] = other
				break
			}
			if !about(err) {
				return nil, err
			}
		}
	}
	return found, nil
}

// tellMisplaced makes problems of tags that look like somebody's into damage where
// what belongs there is under another of them: somebody has moved them.
func (r *Repo) tellMisplaced(ctx context.Context, f *findings) error {
	bad := map[Tag]store.Manifest{}
	for _, p := range f.list {
		t, err := ParseTag(p.Tag)
		if err != nil || !p.Foreign() && !p.lost {
			continue
		}
		m, err := r.st.GetManifest(ctx, p.Tag)
		if err == nil {
			bad[t] = m
		} else if !about(err) {
			return err
		}
	}
	belongs, err := r.misplaced(ctx, bad)
	for i := range f.list {
		p := &f.list[i]
		t, perr := ParseTag(p.Tag)
		if other, ok := belongs[t]; perr == nil && ok && (p.Foreign() || p.lost) {
			p.Blob = bad[t].Digest.String()
			p.Err = fmt.Errorf("what belongs here is under tag %s: %w", other, p.Err)
		}
	}
	return err
}

// fromTags looks at a source for tags that are wanted, and for those that must
// not be missing: records of keys, hosts, epochs and moves are never removed, and
// neither is the highest number of a system.
func (p *repairer) fromTags(ctx context.Context, c Class, src *RepairSource, here, wanted map[Tag]bool, found map[Tag]copyOf) error {
	names, err := src.Exact.Tags(ctx, string(c)+".")
	if err != nil {
		return err
	}
	highest := map[dr.System]dr.Number{}
	if c == ClassSnapshot {
		// A snapshot may also lie where a relocation says.
		snaps, _, err := p.repo.allSnapshots(ctx, "")
		if err != nil {
			return err
		}
		for _, s := range snaps {
			here[s.at.commitTag()] = true
			highest[s.System] = max(highest[s.System], s.Number)
		}
	}
	tags, _ := parseTags(names)
	for _, t := range tags {
		if here[t] || found[t].m.Body != nil {
			continue
		}
		mayBeForgotten := c == ClassSnapshot && t.Number < highest[t.System] || c == ClassRelocation || c == ClassLock
		if mayBeForgotten && !wanted[t] {
			continue
		}
		m, err := src.Exact.GetManifest(ctx, t.String())
		if err == nil {
			err = p.repo.verifyAs(ctx, t, m)
		}
		if err != nil && !notThere(ctx, err) {
			return err
		}
		if err == nil {
			found[t] = copyOf{tag: t, m: m, from: src}
		}
	}
	return nil
}

// putBack stores a manifest under the tag where it belongs. What a snapshot lists
// is brought here first.
func (p *repairer) putBack(ctx context.Context, c copyOf, all map[Tag]copyOf) (moved *Snapshot, err error) {
	r := p.repo
	if c.tag.Class == ClassSnapshot || c.tag.Class == ClassRelocation {
		_, needs, err := decodeSnapshotIndex(c.tag.Class, c.m)
		if err != nil {
			return nil, err
		}
		for _, n := range needs {
			if err := p.manifest(ctx, n, nil); err != nil {
				return nil, fmt.Errorf("it needs pack manifest %s: %w", n.Digest, err)
			}
		}
	} else if err := r.putEmpty(ctx); err != nil {
		return nil, err
	}
	put := func() error {
		if err := r.putTag(store.Rewriting(ctx), c.tag.String(), c.m.MediaType, c.m.Body); err != nil {
			return err
		}
		m, err := r.st.GetManifest(ctx, c.tag.String())
		if err == nil && m.Digest != c.m.Digest {
			err = tampered("the tag names %s all the same", m.Digest)
		}
		return err
	}
	caps, err := r.st.Capabilities(ctx)
	if err != nil {
		return nil, err
	}
	if caps.RetiredTags {
		// It may let the tag name at once what belongs there, instead of what it names.
		others := maps.Clone(all)
		delete(others, c.tag)
		if err := p.keepAside(ctx, c, others); err != nil {
			return nil, err
		}
	}
	err = put()
	if !errors.Is(err, store.ErrTagTaken) {
		return nil, err
	}
	// It names something that counts for nobody there; what does is at hand. Where no
	// number is given out twice, taking it away would not help: then the tag stays.
	if !caps.RetiredTags {
		if err = p.takeAway(ctx, c, all); err == nil {
			err = put()
		}
		if err == nil {
			return nil, nil
		}
	}
	if c.tag.Class != ClassSnapshot || ctx.Err() != nil {
		return nil, err
	}
	// Of a snapshot a relocation carries the same record.
	moved, rerr := p.relocateAs(ctx, c)
	if rerr != nil {
		return nil, errors.Join(err, rerr)
	}
	if caps.RetiredTags {
		return moved, p.takeAway(ctx, c, all)
	}
	return moved, nil
}

// takeAway removes a tag that names what it must not.
func (p *repairer) takeAway(ctx context.Context, c copyOf, all map[Tag]copyOf) error {
	if err := p.keepAside(ctx, c, all); err != nil {
		return err
	}
	if err := p.repo.st.DeleteTag(ctx, c.tag.String()); err != nil && !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("the tag names something else and could not be taken away: %w", err)
	}
	return nil
}

// relocateAs gives a snapshot whose own tag cannot be had a tag of class r.
func (p *repairer) relocateAs(ctx context.Context, c copyOf) (*Snapshot, error) {
	r := p.repo
	s, err := r.openSnapshot(ctx, c.tag, c.m)
	if err != nil {
		return nil, err
	}
	commit, needs, err := decodeSnapshotIndex(ClassSnapshot, c.m)
	if err != nil {
		return nil, err
	}
	if s.place, err = r.relist(ctx, place{system: s.System, number: s.Number}); err != nil {
		return nil, err
	}
	return r.relocateRecord(ctx, s, commit, needs, 0)
}
