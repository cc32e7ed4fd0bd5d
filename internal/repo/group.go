package repo

import (
	"context"
	"errors"
	"fmt"
	"io"

	"lifeboat/internal/pack"
	"lifeboat/internal/repo/idxcache"
	"lifeboat/internal/seal"
)

// wasRead reports whether the units of a group may be relied upon without
// reading them: this host wrote or read them.
func (ix *index) wasRead(group uint32) bool {
	if ix.own {
		return true
	}
	i := group / 64
	return int(i) < len(ix.read) && ix.read[i].Load()&(1<<(group%64)) != 0
}

// allRead reports whether every group may be relied upon.
func (ix *index) allRead() bool {
	for g := range uint32(ix.Groups()) {
		if !ix.wasRead(g) {
			return false
		}
	}
	return true
}

// markRead remembers that a group was read and is what the index says.
func (ix *index) markRead(group uint32) {
	if i := group / 64; int(i) < len(ix.read) {
		ix.read[i].Or(1 << (group % 64))
		ix.dirty.Store(true)
	}
}

// saveRead writes down what was marked.
func (r *Repo) saveRead(ix *index) error {
	if !ix.dirty.Swap(false) {
		return nil
	}
	bits := make([]uint64, len(ix.read))
	for i := range bits {
		bits[i] = ix.read[i].Load()
	}
	return r.state.mergeReadBits(ix.need.Digest, ix.Groups(), bits)
}

// opener returns the opener of a pack, reading the keys again when it was
// sealed with a newer generation.
func (r *Repo) opener(ctx context.Context, h pack.Header) (*pack.Opener, error) {
	o, err := pack.NewOpener(r.keyring(), r.codec, h)
	if !errors.Is(err, seal.ErrGeneration) {
		return o, err
	}
	if kerr := r.refreshKeys(ctx); kerr != nil {
		return nil, fmt.Errorf("a pack was sealed with a newer key: %w", kerr)
	}
	o, err = pack.NewOpener(r.keyring(), r.codec, h)
	return o, r.keyWithheld(err)
}

// readGroup fetches one group and opens it. The body is authentic, its units
// are not yet compared with their ids.
func (r *Repo) readGroup(ctx context.Context, ix *index, group uint32) ([]byte, idxcache.Group, error) {
	body, g, _, err := r.findGroup(ctx, ix, group)
	return body, g, err
}

// findGroup is readGroup, and reports whether the group came from another
// registry than the primary.
func (r *Repo) findGroup(ctx context.Context, ix *index, group uint32) (body []byte, g idxcache.Group, elsewhere bool, err error) {
	if g, err = ix.Group(group); err != nil {
		return nil, g, false, err
	}
	p, err := ix.Pack(g.Pack)
	if err != nil {
		return nil, g, false, err
	}
	o, err := r.opener(ctx, p.Header)
	if err != nil {
		return nil, g, false, err
	}
	elsewhere, err = r.readBlob(ctx, blob{digestOf(p.Digest), p.Size}, int64(g.Offset), int64(g.Sealed), func(src io.Reader) (err error) {
		sealed := make([]byte, g.Sealed)
		if _, err := io.ReadFull(src, sealed); err != nil {
			return err
		}
		body, err = o.Open(nil, int(g.Number), sealed, int(g.Plain))
		return err
	})
	if err != nil {
		return nil, g, false, fmt.Errorf("pack %s of manifest %s: %w", digestOf(p.Digest), ix.need.Digest, err)
	}
	return body, g, elsewhere, nil
}

// proveGroup compares every unit of an opened group with its id and remembers a
// foreign group that is what its index says. The error wraps dr.ErrTampered.
func (r *Repo) proveGroup(ix *index, group uint32, g idxcache.Group, body []byte) error {
	if err := r.compareGroup(ix, group, g, body); err != nil {
		return err
	}
	ix.markRead(group)
	return nil
}

// compareGroup is proveGroup without remembering.
func (r *Repo) compareGroup(ix *index, group uint32, g idxcache.Group, body []byte) error {
	units, err := ix.UnitsOf(g)
	if err != nil {
		return err
	}
	at := 0
	for _, u := range units {
		end := at + int(u.Len)
		if end > len(body) || r.UnitID(body[at:end]) != u.ID {
			return tampered("group %d of pack manifest %s: the unit at %d is not the one that the index promises", group, ix.need.Digest, at)
		}
		at = end
	}
	return nil
}
