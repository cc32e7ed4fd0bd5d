package repo

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"lifeboat/internal/store"
)

// asidePrefix begins the tags under which repair keeps what belongs under a tag
// that it has to take away first: aside.s.shop.2. Readers do not know them.
const asidePrefix = "aside."

// keepAside puts what belongs under a tag aside before the tag is taken away, and
// with it all of this repository whose only tag may be that one: killed between
// taking away and putting back, the next run finds it there (invariant 8).
func (p *repairer) keepAside(ctx context.Context, c copyOf, all map[Tag]copyOf) error {
	for t, o := range all {
		if t != c.tag && o.from != nil {
			continue // it is not only here
		}
		if p.aside[t] {
			continue
		}
		if _, err := p.repo.st.PutManifest(ctx, asidePrefix+t.String(), o.m.MediaType, o.m.Body); err != nil && !errors.Is(err, store.ErrTagTaken) {
			return fmt.Errorf("keep %s aside: %w", t, err)
		}
		p.aside[t] = true
	}
	return nil
}

// fromAside looks for what an earlier run has put aside and not put back.
func (p *repairer) fromAside(ctx context.Context, c Class, found map[Tag]copyOf) error {
	names, err := p.repo.st.Tags(ctx, asidePrefix+string(c)+".")
	if err != nil {
		return err
	}
	for _, name := range names {
		t, err := ParseTag(strings.TrimPrefix(name, asidePrefix))
		if err != nil || t.Class != c {
			continue
		}
		m, err := p.repo.st.GetManifest(ctx, name)
		if err == nil {
			err = p.repo.verifyAs(ctx, t, m)
		}
		if err != nil && !about(err) {
			return err
		}
		if err != nil {
			continue // nobody's
		}
		p.aside[t] = true
		if found[t].m.Body == nil {
			found[t] = copyOf{tag: t, m: m}
		}
	}
	return nil
}

// dropAside takes away what was put aside and is under its own tag now, or lies
// where a relocation says.
func (p *repairer) dropAside(ctx context.Context, t Tag) error {
	if !p.aside[t] {
		return nil
	}
	if err := p.repo.st.DeleteTag(ctx, asidePrefix+t.String()); err != nil && !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("take away what was kept aside: %w", err)
	}
	delete(p.aside, t)
	return nil
}
