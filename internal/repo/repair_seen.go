package repo

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"github.com/opencontainers/go-digest"

	"lifeboat/internal/store"
)

// fromHere finds what belongs under tags that name it no more, in the repository
// itself: a tag is a small file of its own, and where that is torn the manifest is
// stored still and can be had by its digest. What this host has seen under the tag
// says which; where it has seen nothing, what the registry says that the tag was
// given first. Nothing is believed: the manifest has to be what the tag must name.
//
// Of tags that are not listed, only what nobody takes away comes back (stays).
func (p *repairer) fromHere(ctx context.Context, c Class, here map[Tag]bool, bad map[Tag]store.Manifest, found map[Tag]copyOf) error {
	seen, err := p.repo.state.seenOf(c)
	if err != nil {
		return err
	}
	tags := slices.Collect(maps.Keys(bad))
	stays, err := p.stays(c)
	if err != nil {
		return err
	}
	for t := range seen {
		if _, listed := bad[t]; !listed && !here[t] && stays(t) {
			tags = append(tags, t)
		}
	}
	for _, t := range tags {
		if found[t].m.Body != nil {
			continue
		}
		d := seen[t]
		if d == "" {
			d, err = store.First(ctx, p.repo.st, t.String())
		}
		var m store.Manifest
		if err == nil && d != bad[t].Digest {
			if m, err = p.repo.st.GetManifest(ctx, d.String()); err == nil {
				err = p.repo.verifyAs(ctx, t, m)
			}
		}
		if err != nil && !about(err) {
			return err
		}
		if err == nil && m.Body != nil {
			found[t] = copyOf{tag: t, m: m}
		}
	}
	return nil
}

// stays tells of tags of a class that this host has seen and that are not listed
// whether nobody takes such a tag away: records of keys, hosts, epochs and moves, the
// highest number of a system, and what was found lost. Any other snapshot somebody
// may have forgotten, and it does not come back.
func (p *repairer) stays(c Class) (func(Tag) bool, error) {
	switch c {
	case ClassKey, ClassHost, ClassEpoch, ClassSwitch:
		return func(Tag) bool { return true }, nil
	case ClassSnapshot, ClassRelocation:
	default:
		return func(Tag) bool { return false }, nil
	}
	older, err := p.repo.state.setbacks()
	if err != nil {
		return nil, err
	}
	numbers := map[numberKey]bool{}
	for prefix, list := range older {
		for _, b := range list {
			if t, err := ParseTag(prefix + "1"); err == nil {
				numbers[numberKey{t.System, b.Seen}] = true
			}
		}
	}
	if p.result.After != nil {
		for _, pr := range p.result.After.Problems {
			if t, err := ParseTag(pr.Tag); err == nil && pr.lost {
				numbers[numberKey{t.System, t.Number}] = true
			}
		}
	}
	return func(t Tag) bool { return numbers[numberKey{t.System, t.Number}] }, nil
}

// seenOf returns what this host has seen under tags of a class, also what an older
// state lacks, and has not taken away itself.
func (s *state) seenOf(c Class) (out map[Tag]digest.Digest, err error) {
	out = map[Tag]digest.Digest{}
	err = s.locked(func() error {
		m, err := s.loadMarks()
		if err != nil {
			return err
		}
		// What an earlier process saw comes before what this one did.
		sources := []map[string]digest.Digest{s.firm, m.Seen, s.fresh}
		for _, list := range m.Setbacks {
			for _, b := range list {
				sources = append(sources, b.Tags)
			}
		}
		for _, seen := range sources {
			for name, d := range seen {
				if t, err := ParseTag(name); err == nil && t.Class == c && !s.tookAway(&m, name) {
					out[t] = cmp.Or(out[t], d)
				}
			}
		}
		return nil
	})
	return out, err
}
