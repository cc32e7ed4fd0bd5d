package copying

import (
	"cmp"
	"fmt"
	"slices"

	"lifeboat/internal/dr"
	"lifeboat/internal/fence"
	"lifeboat/internal/repo"
)

// OlderError says that a snapshot that was named is older than what was copied
// before: it would become the newest of the copy. It wraps dr.ErrUsage.
type OlderError struct {
	Snapshot repo.Snapshot
	Cause    error
}

func (e *OlderError) Error() string {
	return fmt.Sprintf("snapshot %s would become the newest of the copy: %v", e.Snapshot.Tag, e.Cause)
}

// Unwrap is dr.ErrUsage.
func (e *OlderError) Unwrap() error { return dr.ErrUsage }

// copies is what the other repository has of a system out of this one. Only what
// a holder of the system's epoch there wrote counts: who else writes there can
// pretend to have copied anything, and nothing would be copied any more.
type copies struct {
	// of are the copies by what they are copies of.
	of map[dr.SnapshotID]*repo.Snapshot
	// line is the origin of the newest on the line there, number the highest that was
	// copied, on the line or not, both by the order here. As forgetting spares the newest of the
	// line and of each host, what is below and has no copy was forgotten there, or
	// left out on purpose.
	line   *repo.Origin
	number dr.Number
	// unread are problems there that hide what may be newer than every copy that can
	// be read.
	unread []repo.Problem
}

// copiesIn picks the copies out of what a repository shows.
func copiesIn(claims []fence.Claim, snaps []repo.Snapshot, problems []repo.Problem, from dr.RepoID) copies {
	c := copies{of: map[dr.SnapshotID]*repo.Snapshot{}}
	facts := factsOf(snaps)
	var newest dr.Number
	for i := range snaps {
		s := &snaps[i]
		if s.Origin == nil || s.Origin.Repo != from || !written(claims, facts, s) {
			continue
		}
		newest = max(newest, s.Number)
		c.of[s.Origin.Snapshot] = s
		c.number = max(c.number, s.Origin.Number)
		if s.Kind == dr.KindCurrent && (c.line == nil || compare(s.Origin.Epoch, s.Origin.Number, c.line) > 0) {
			c.line = s.Origin
		}
	}
	for _, p := range problems {
		t, err := repo.ParseTag(p.Tag)
		if p.SetBack() || err == nil && t.Number > newest && !p.Foreign() {
			c.unread = append(c.unread, p)
		}
	}
	return c
}

// written reports whether a snapshot counts: on the line, or off it by a holder of
// the epoch that it names.
func written(claims []fence.Claim, facts []fence.Snap, s *repo.Snapshot) bool {
	if s.Kind == dr.KindCurrent {
		return fence.OnLine(claims, facts, s.ID)
	}
	return slices.ContainsFunc(claims, func(c fence.Claim) bool { return c.Epoch == s.Epoch && c.Host == s.Host })
}

// compare is the order of a line: by epoch, then by number.
func compare(epoch dr.Epoch, number dr.Number, with *repo.Origin) int {
	return cmp.Or(cmp.Compare(epoch, with.Epoch), cmp.Compare(number, with.Number))
}

func factsOf(snaps []repo.Snapshot) []fence.Snap {
	facts := make([]fence.Snap, len(snaps))
	for i, s := range snaps {
		facts[i] = fence.Snap{ID: s.ID, Number: s.Number, Epoch: s.Epoch, Host: s.Host, Kind: s.Kind}
	}
	return facts
}

// older says why a snapshot that has no copy gets none; nil where it gets one. The
// copy takes the next number there, whatever its number here, and so would be newer
// than all that is there. While something there cannot be read only the newest of
// the line here is surely not older than that, and that only where this repository
// shows all that it has shown.
func (j *job) older(s *repo.Snapshot) error {
	switch c := &j.copies; {
	case len(c.unread) > 0 && (s.ID != j.head || slices.ContainsFunc(j.res.Problems, repo.Problem.SetBack)):
		return fmt.Errorf("what is there cannot be read and may be newer (%s)", c.unread[0].String())
	case fence.OnLine(j.claims, j.facts, s.ID):
		if c.line != nil && compare(s.Epoch, s.Number, c.line) < 0 {
			return fmt.Errorf("#%d, which is newer, was copied before", c.line.Number)
		}
	case s.Number < c.number:
		return fmt.Errorf("#%d, which is newer, was copied before", c.number)
	}
	return nil
}

// ahead returns the newest copy where it is newer than the newest that this
// repository shows.
func (j *job) ahead(from []repo.Snapshot) *repo.Origin {
	i := slices.IndexFunc(from, func(s repo.Snapshot) bool { return s.ID == j.head })
	if c := &j.copies; i >= 0 && c.of[j.head] == nil && c.line != nil && compare(from[i].Epoch, from[i].Number, c.line) < 0 {
		return c.line
	}
	return nil
}
