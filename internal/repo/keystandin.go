package repo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"lifeboat/internal/dr"
	"lifeboat/internal/seal"
	"lifeboat/internal/store"
)

// KeySource is another registry whose key records may open a repository of which the
// own ones are damaged or gone.
type KeySource struct {
	// Location names it to people, and to this host what it has pinned there.
	Location string
	Store    store.Store
}

// keyPlace is where copies of key records are: what this host keeps, or another
// registry.
type keyPlace struct {
	name string
	// pin is what this host has pinned there, nil for nothing.
	pin *pin
	// own is what this host has seen to verify itself.
	own  bool
	tags func(context.Context) ([]Tag, error)
	read func(context.Context, Tag) (*seal.KeyRecord, store.Manifest, error)
}

// keyCopy is a key record that was found, and where: from is empty for the
// repository's own registry.
type keyCopy struct {
	tag    Tag
	record *seal.KeyRecord
	m      store.Manifest
	from   string
}

// place is a registry as a place of key records.
func (k KeySource) place(p *pin) keyPlace {
	return keyPlace{
		name: k.Location, pin: p,
		tags: func(ctx context.Context) ([]Tag, error) {
			names, err := k.Store.Tags(ctx, Tag{Class: ClassKey}.prefix())
			tags, _ := parseTags(names)
			return tags, err
		},
		read: func(ctx context.Context, t Tag) (*seal.KeyRecord, store.Manifest, error) {
			return readKeyRecord(ctx, k.Store, t)
		},
	}
}

// elsewhere opens the repository with the key records of other registries, and with
// all that this host keeps, after it did not open with its own: err says why.
func (s *keySearch) elsewhere(ctx context.Context, err error) error {
	r := s.repo
	again := keySearch{repo: r, pin: s.pin, places: s.places, all: true, strict: true}
	if s.pin == nil && s.opened != (dr.RepoID{}) {
		again.places = append(again.places, r.keptKeys(s.opened)) // known from another address
	}
	for _, k := range r.opts.KeysFrom {
		p, perr := r.state.loadPin(k.Location)
		if perr != nil {
			return perr
		}
		again.places = append(again.places, k.place(p))
	}
	loose := again
	aerr := again.begin(ctx)
	if errors.Is(aerr, ErrKeysDamaged) && r.opts.AcceptOlder {
		loose.strict = false // nothing has what was seen: that is what is accepted
		aerr = loose.begin(ctx)
	}
	if aerr != nil && ctx.Err() == nil && errors.Is(aerr, ErrKeysDamaged) {
		return fmt.Errorf("%w; nor with those of the other registries that were named", err)
	}
	return aerr
}

// withoutAny is what is tried where the registry lists no key record at all: those
// of the other places, if the repository is still there.
func (s *keySearch) withoutAny(ctx context.Context) ([]Tag, error) {
	tags, err := s.union(ctx, nil)
	if err != nil {
		return nil, err
	}
	names, err := s.repo.st.Tags(ctx, "")
	if err != nil {
		return nil, fmt.Errorf("list tags: %w", err)
	}
	left := slices.ContainsFunc(names, func(name string) bool {
		_, err := ParseTag(name)
		return err == nil
	})
	switch {
	case !left:
		return nil, ErrNoRepository
	case len(tags) == 0:
		return nil, fmt.Errorf("%w: its tags are there, and no key record is: %w: %w", ErrKeysDamaged, store.ErrNotFound, dr.ErrTampered)
	}
	return tags, nil
}

// union adds the tags that other places have.
func (s *keySearch) union(ctx context.Context, tags []Tag) ([]Tag, error) {
	for _, p := range s.places {
		more, err := p.tags(ctx)
		if err != nil && !notThere(ctx, err) {
			return nil, fmt.Errorf("%s: list key records: %w", p.name, err)
		}
		if err != nil {
			s.repo.log.Warn("a place of key records cannot be asked", "place", p.name, "error", err)
		}
		tags = append(slices.Clip(tags), more...)
	}
	slices.SortFunc(tags, compareTags)
	return slices.Compact(tags), nil
}

// standIn looks for a copy of a key record that cannot be read. What opens and
// contradicts what is known is passed over; nil where there is none.
func (s *keySearch) standIn(ctx context.Context, t Tag) (*keyCopy, *seal.Secret, error) {
	for _, p := range s.places {
		rec, m, err := p.read(ctx, t)
		if err != nil {
			if !notThere(ctx, err) {
				return nil, nil, fmt.Errorf("%s: read key record %s: %w", p.name, t, err)
			}
			continue
		}
		found := keyCopy{tag: t, record: rec, m: m, from: p.name}
		secret, err := s.tryCopy(ctx, p, &found)
		if err != nil {
			return nil, nil, err
		}
		if secret != nil {
			return &found, secret, nil
		}
	}
	return nil, nil, nil
}

// tryCopy opens a copy of a key record; nil where it does not open, or is not of
// this repository as far as is known.
func (s *keySearch) tryCopy(ctx context.Context, p keyPlace, c *keyCopy) (*seal.Secret, error) {
	was := s.mismatch
	secret, err := s.try(c.tag, c.record)
	s.mismatch = was // of what is in another registry nothing follows for this one
	if err != nil || secret == nil {
		return nil, err
	}
	if p.pin != nil {
		other := keySearch{repo: s.repo, pin: p.pin}
		if err := other.known(secret); err != nil {
			s.opposes(Problem{Tag: c.tag.String(), Err: fmt.Errorf("the copy at %s: %w", p.name, err)})
			return nil, nil
		}
	}
	if p.own || s.pin != nil || s.repo.opts.Expect != nil {
		return secret, nil
	}
	// Nobody has told this host what it opens here: then something that is here has
	// to be sealed with it.
	opens, err := opensSomething(ctx, s.repo.st, seal.NewRing(secret))
	if err != nil || !opens {
		return nil, err
	}
	return secret, nil
}

// opensSomething reports whether a host record in a registry is sealed with one of
// the keys of a ring.
func opensSomething(ctx context.Context, st store.Store, ring *seal.Ring) (bool, error) {
	names, err := st.Tags(ctx, Tag{Class: ClassHost}.prefix())
	if err != nil {
		return false, fmt.Errorf("list host records: %w", err)
	}
	tags, _ := parseTags(names)
	for _, t := range tags[:min(len(tags), maxKeyReads)] {
		ok, err := sealedWith(ctx, st, ring, t)
		if ok || err != nil {
			return ok, err
		}
	}
	return false, nil
}

// sealedWith reports whether the record under a tag opens with the keys of a ring.
func sealedWith(ctx context.Context, st store.Store, ring *seal.Ring, t Tag) (bool, error) {
	m, err := st.GetManifest(ctx, t.String())
	if err != nil && !about(err) {
		return false, fmt.Errorf("read %s: %w", t, err)
	}
	if err != nil {
		return false, nil
	}
	sealed, err := decodeRecordManifest(m, t.Class)
	if err != nil {
		return false, nil
	}
	_, err = ring.OpenRecord(t.String(), sealed)
	return err == nil, nil
}

// tell says once that the repository was opened with a copy of a key record.
func (s *keySearch) tell(t Tag, err error, c *keyCopy) {
	where := "the copy that this host keeps"
	if c.from != local {
		where = "that of " + c.from
	}
	what := "is damaged in the registry"
	if errors.Is(err, store.ErrNotFound) {
		what = "is gone from the registry"
	}
	text := fmt.Sprintf("key record %s %s; the repository was opened with %s, and another host may not be able to; put it back: lifeboat repair", t, what, where)
	s.repo.keysOnce.Do(func() { s.repo.notice(strings.TrimSpace(text)) })
}
