package retain

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"lifeboat/internal/dr"
)

// Ahead is how far a snapshot's time may lie in the future of whoever decides,
// for clocks differ.
const Ahead = 10 * time.Minute

// Snap is what the decision needs to know of a snapshot.
type Snap struct {
	ID     dr.SnapshotID
	Number dr.Number
	// Created is the time that the snapshot's host signed.
	Created time.Time
	// Group is what the policy is applied to by itself: "" is the system's line,
	// anything else names a host whose snapshots are on no line. No group uses up
	// what is kept of another.
	Group string
	// Protected are reasons for which the snapshot stays, whatever the policy.
	Protected []string
}

// Verdict is what becomes of a snapshot.
type Verdict struct {
	Snap
	Keep bool
	// Reasons say why it is kept; none where it is forgotten.
	Reasons []string
}

// Decide applies a policy to the snapshots of one system and returns a verdict
// for each, by number.
//
// Within a group the order is that of the numbers, which only grow and which
// nobody can choose, and never that of the times. A time counts only if it is
// not before that of a snapshot with a lower number which counts, and not in
// the future (Ahead). A snapshot whose time does not count is kept, uses up
// nothing of the policy, and is not what Within is measured from. So a burst of
// new snapshots with false times leaves every verdict on the others as it was:
// what is added later can only take the places of its own present.
func Decide(now time.Time, p Policy, snaps []Snap) []Verdict {
	out := make([]Verdict, len(snaps))
	groups := map[string][]*Verdict{}
	for i, s := range snaps {
		out[i] = Verdict{Snap: s, Reasons: slices.Clone(s.Protected)}
	}
	slices.SortFunc(out, func(a, b Verdict) int { return cmp.Compare(a.Number, b.Number) })
	for i := range out {
		groups[out[i].Group] = append(groups[out[i].Group], &out[i])
	}
	for _, g := range groups {
		p.apply(plausible(now, g))
	}
	for i := range out {
		out[i].Keep = len(out[i].Reasons) > 0
	}
	return out
}

// plausible returns those whose time counts, newest first; the others get their
// reason to stay.
func plausible(now time.Time, group []*Verdict) []*Verdict {
	var counts []*Verdict
	var last time.Time
	for _, v := range group {
		switch {
		case v.Created.After(now.Add(Ahead)):
			v.Reasons = append(v.Reasons, "its time lies in the future")
		case v.Created.Before(last):
			v.Reasons = append(v.Reasons, "its time is before that of an earlier number")
		default:
			last = v.Created
			counts = append(counts, v)
		}
	}
	slices.Reverse(counts)
	return counts
}

// bucket is one part of a policy at work.
type bucket struct {
	name  string
	left  int
	of    func(t time.Time, nth int) int
	last  int
	begun bool
}

func (p Policy) buckets() []*bucket {
	hour := func(t time.Time, _ int) int {
		return ((t.Year()*100+int(t.Month()))*100+t.Day())*100 + t.Hour()
	}
	day := func(t time.Time, _ int) int { return (t.Year()*100+int(t.Month()))*100 + t.Day() }
	week := func(t time.Time, _ int) int {
		y, w := t.ISOWeek()
		return y*100 + w
	}
	month := func(t time.Time, _ int) int { return t.Year()*100 + int(t.Month()) }
	year := func(t time.Time, _ int) int { return t.Year() }
	return []*bucket{
		{name: "last", left: p.Last, of: func(_ time.Time, nth int) int { return nth }},
		{name: "hourly", left: p.Hourly, of: hour},
		{name: "daily", left: p.Daily, of: day},
		{name: "weekly", left: p.Weekly, of: week},
		{name: "monthly", left: p.Monthly, of: month},
		{name: "yearly", left: p.Yearly, of: year},
	}
}

// apply gives reasons to what the policy keeps; list is newest first.
func (p Policy) apply(list []*Verdict) {
	if len(list) == 0 {
		return
	}
	var since time.Time
	if p.Within != (Span{}) {
		since = p.Within.before(list[0].Created)
	}
	buckets := p.buckets()
	for i, v := range list {
		if p.Within != (Span{}) && !v.Created.Before(since) {
			v.Reasons = append(v.Reasons, fmt.Sprintf("within %s", p.Within))
		}
		for _, b := range buckets {
			if b.left == 0 {
				continue
			}
			at := b.of(v.Created.UTC(), i)
			reason := b.name
			if b.begun && at == b.last {
				if i != len(list)-1 {
					continue
				}
				reason = "oldest " + b.name
			}
			v.Reasons = append(v.Reasons, reason)
			b.last, b.begun = at, true
			if b.left > 0 {
				b.left--
			}
		}
	}
}
