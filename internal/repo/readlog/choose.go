package readlog

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"lifeboat/internal/dr"
	"lifeboat/internal/quantity"
)

// Pack is one pack to choose from.
type Pack struct {
	Digest Digest
	Size   int64
	Entry
}

// Subset says what part of the packs a run reads. The zero value is all.
type Subset struct {
	// Within: so much that everything is read once in this time, if runs take
	// place every so often in it.
	Within time.Duration
	// Part K of N equal parts, by digest: N runs with K of 1 to N read everything.
	K, N uint64
	// Percent of the bytes, or Bytes, read longest ago.
	Percent float64
	Bytes   int64
}

// ParseSubset reads "2/7", "10%" or "5GiB". The error wraps dr.ErrUsage.
func ParseSubset(s string) (Subset, error) {
	bad := fmt.Errorf("%q: want a part (2/7), a percentage (10%%) or a size (5GiB): %w", s, dr.ErrUsage)
	if k, n, ok := strings.Cut(s, "/"); ok {
		kn, err1 := strconv.ParseUint(k, 10, 32)
		nn, err2 := strconv.ParseUint(n, 10, 32)
		if err1 != nil || err2 != nil || kn < 1 || kn > nn {
			return Subset{}, bad
		}
		return Subset{K: kn, N: nn}, nil
	}
	if p, ok := strings.CutSuffix(s, "%"); ok {
		f, err := strconv.ParseFloat(p, 64)
		if err != nil || !(f > 0 && f <= 100) {
			return Subset{}, bad
		}
		return Subset{Percent: f}, nil
	}
	n, err := quantity.ParseSize(s)
	if err != nil || n < 1 {
		return Subset{}, bad
	}
	return Subset{Bytes: n}, nil
}

// All reports whether nothing is left out.
func (s Subset) All() bool { return s == Subset{} }

// firstShare is the time for which the very first run of a sampling reads.
const firstShare = 24 * time.Hour

// Choose returns the packs that a run reads, in the order in which it does:
// those read longest ago first. With Within it reads the share of the time that
// has passed since the last run that ended, less what was read since by other
// runs, and besides whatever would be overdue before the next run if that comes
// after as much time again. What was found damaged is always read, so that each
// run says so as long as it is.
func Choose(packs []Pack, s Subset, lastRun, now time.Time) []Pack {
	list := slices.Clone(packs)
	slices.SortFunc(list, func(a, b Pack) int {
		return cmp.Or(a.Since().Compare(b.Since()), bytes.Compare(a.Digest[:], b.Digest[:]))
	})
	if s.All() {
		return list
	}
	if s.N > 0 {
		return slices.DeleteFunc(list, func(p Pack) bool { return !p.Bad && part(p.Digest, s.N) != s.K-1 })
	}
	quota, due := share(list, s, lastRun, now)
	return slices.DeleteFunc(list, func(p Pack) bool {
		// A pack that is begun is read: the quota is passed by less than one.
		take := p.Bad || quota > 0 || p.Since().Before(due)
		if take {
			quota -= p.Size
		}
		return !take
	})
}

// share is how many bytes a run reads, and since when a pack must have been read
// not to be read in any case.
func share(list []Pack, s Subset, lastRun, now time.Time) (quota int64, due time.Time) {
	var total, since int64
	for _, p := range list {
		total += p.Size
		if p.Read.After(lastRun) {
			since += p.Size
		}
	}
	switch {
	case s.Percent > 0:
		return int64(float64(total) * s.Percent / 100), due
	case s.Within > 0:
		passed := firstShare
		if !lastRun.IsZero() {
			passed = now.Sub(lastRun)
		}
		passed = min(passed, s.Within)
		return int64(float64(total)*(float64(passed)/float64(s.Within))) - since, now.Add(passed - s.Within)
	}
	return s.Bytes, due
}

// part is in which of n parts a pack is.
func part(d Digest, n uint64) uint64 {
	var v uint64
	for _, b := range d[:8] {
		v = v<<8 | uint64(b)
	}
	return v % n
}
