package repo

import (
	"context"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"lifeboat/internal/dr"
	"lifeboat/internal/repo/readlog"
)

// Completeness is remembered in the log of packs, under the digest of the record
// that says where a snapshot lies: a relocated snapshot is a new one to look at.

// newest are the newest snapshots of each system: what a failover begins with.
func (inv *inventory) newest() map[digest.Digest]bool {
	of := map[dr.System]*Snapshot{}
	for i := range inv.snaps {
		if s := &inv.snaps[i]; of[s.System] == nil || of[s.System].Number < s.Number {
			of[s.System] = s
		}
	}
	out := map[digest.Digest]bool{}
	for _, s := range of {
		out[s.Digest] = true
	}
	return out
}

// check looks at the descriptions of all snapshots, and whether the newest of each
// system is complete, and those that this host found not to be before; with proven,
// whether all are that are not in it.
func (c *completeness) check(ctx context.Context, proven map[digest.Digest]bool) error {
	if err := c.repo.checkRoots(ctx, c.inv, c.f); err != nil {
		return err
	}
	newest, bad := c.inv.newest(), c.repo.packLog().BadOnes()
	var list []*Snapshot
	for i := range c.inv.snaps {
		s := &c.inv.snaps[i]
		raw, err := rawDigest(s.Digest)
		if err != nil {
			return err
		}
		if slices.Contains(bad, raw) || (newest[s.Digest] || proven != nil) && !proven[s.Digest] {
			list = append(list, s)
		}
	}
	return c.look(ctx, list, func(s *Snapshot, v verdict) error {
		raw, err := rawDigest(s.Digest)
		if err != nil {
			return err
		}
		switch {
		case v == lacking, v == complete && slices.Contains(bad, raw):
			c.repo.notePack(raw, v == complete)
		}
		if v == complete && proven != nil {
			proven[s.Digest] = true
		}
		return nil
	})
}

// snapshots looks at the descriptions of all snapshots, and whether they are
// complete, at the share of them that the run is for, those looked at longest ago,
// and at what check looks at. It returns all that there are, as
// the log names them.
func (v *reading) snapshots(ctx context.Context, resumed, now time.Time) (map[readlog.Digest]bool, error) {
	if err := v.repo.checkRoots(ctx, v.inv, v.f); err != nil {
		return nil, err
	}
	log, all, newest := v.repo.packLog(), map[readlog.Digest]bool{}, v.inv.newest()
	subset, size := v.share()
	var packs []readlog.Pack
	for i := range v.inv.snaps {
		raw, err := rawDigest(v.inv.snaps[i].Digest)
		if err != nil {
			return nil, err
		}
		e, err := log.Get(raw, now)
		if err != nil {
			return nil, err
		}
		all[raw] = true
		packs = append(packs, readlog.Pack{Digest: raw, Size: size, Entry: e})
	}
	chosen := map[readlog.Digest]bool{}
	for _, p := range readlog.Choose(packs, subset, log.LastRun(now), now) {
		chosen[p.Digest] = resumed.IsZero() || p.Bad || !p.Read.After(resumed)
	}
	var list []*Snapshot
	for i := range v.inv.snaps {
		s := &v.inv.snaps[i]
		raw, err := rawDigest(s.Digest)
		if err != nil {
			return nil, err
		}
		if chosen[raw] || newest[s.Digest] && !subset.All() {
			list = append(list, s)
		}
	}
	c := newCompleteness(v.repo, v.inv, v.f, v.harm)
	c.read = v.catalogs()
	return all, c.look(ctx, list, func(s *Snapshot, is verdict) error {
		raw, err := rawDigest(s.Digest)
		if err != nil || is == unknown {
			return err
		}
		if is == complete {
			if v.opts.proven != nil {
				v.opts.proven[s.Digest] = true
			}
			return log.Read(raw, v.opts.Now())
		}
		return log.Bad(raw, v.opts.Now())
	})
}

// share is the part of the snapshots that goes with that of the packs, and what one
// of them counts.
func (v *reading) share() (readlog.Subset, int64) {
	s := *v.opts.Read
	if s.Bytes > 0 {
		var total int64
		for _, job := range v.jobs {
			total += job.size
		}
		s = readlog.Subset{Percent: min(100*float64(s.Bytes)/float64(max(total, 1)), 100)}
	}
	if s.Percent > 0 {
		return s, 1 << 20 // a percentage of a few is one of them, not none
	}
	return s, 1
}

// catalogs returns what tells of catalogs being read, in bytes beside those of the
// packs.
func (v *reading) catalogs() func(done, more int64) {
	var at VerifyProgress
	return func(done, more int64) {
		v.mu.Lock()
		defer v.mu.Unlock()
		at.Bytes += done
		at.BytesTotal += more
		if v.opts.Progress == nil {
			return
		}
		told := v.done
		told.Bytes += at.Bytes
		told.BytesTotal += at.BytesTotal
		v.opts.Progress(told)
	}
}
