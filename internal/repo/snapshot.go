package repo

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"lifeboat/internal/dr"
	"lifeboat/internal/fence"
	"lifeboat/internal/seal"
	"lifeboat/internal/store"
)

// commitRecord is what stands sealed in the image index of a snapshot
// (docs/format.md, Snapshot).
type commitRecord struct {
	Format      int             `json:"format"`
	Snapshot    dr.SnapshotID   `json:"snapshot"`
	Root        dr.UnitRef      `json:"root"`
	System      dr.System       `json:"system"`
	Number      dr.Number       `json:"number"`
	Site        dr.Site         `json:"site"`
	Host        dr.HostID       `json:"host"`
	Epoch       dr.Epoch        `json:"epoch"`
	Kind        dr.Kind         `json:"kind"`
	Parent      *dr.SnapshotID  `json:"parent,omitempty"`
	Created     time.Time       `json:"created"`
	Consistency dr.Consistency  `json:"consistency"`
	Needs       []digest.Digest `json:"needs"`
	Containers  int             `json:"containers"`
	BytesTotal  int64           `json:"bytes_total"`
	BytesNew    int64           `json:"bytes_new"`
	BytesSent   int64           `json:"bytes_sent"`
	FreezeUS    int64           `json:"freeze_us"`
	Origin      *Origin         `json:"origin,omitempty"`
}

// Origin says of which snapshot of another repository this one is a copy. The
// host that copied it has verified that one and signs for it.
type Origin struct {
	Repo     dr.RepoID     `json:"repo"`
	Snapshot dr.SnapshotID `json:"snapshot"`
	Number   dr.Number     `json:"number"`
	Host     dr.HostID     `json:"host"`
	Epoch    dr.Epoch      `json:"epoch"`
}

// Snapshot is a verified commit record: sealed for this repository and tag,
// signed by an enrolled host, listing exactly what it says to need. Its units
// are verified when they are read.
type Snapshot struct {
	// Tag is s.<system>.<number>, under which it was committed. Place is the tag
	// under which its record lies now: Tag, or that of a relocation. Digest is what
	// Place names.
	Tag, Place string
	Digest     digest.Digest
	ID         dr.SnapshotID
	// Root is the unit of the root record.
	Root        dr.UnitRef
	System      dr.System
	Number      dr.Number
	Site        dr.Site
	Host        dr.HostID
	Epoch       dr.Epoch
	Kind        dr.Kind
	Parent      *dr.SnapshotID
	Created     time.Time
	Consistency dr.Consistency
	Containers  int
	// BytesTotal is the size of what was captured, BytesNew of the units that the
	// repository did not have, BytesSent what went over the wire for them.
	BytesTotal, BytesNew, BytesSent int64
	// Freeze is how long the system stood still.
	Freeze time.Duration
	// Needs are the pack manifests that hold its units, as Place says.
	Needs []digest.Digest
	// Origin is set for a copy out of another repository.
	Origin *Origin
	// Lacks is how many of its units were lost when it was repaired in part.
	Lacks int64

	needs []need
	at    Tag       // Place, taken apart
	place place     // all tags that speak of it, as last listed
	mover dr.HostID // who relocated it; zero where Place is Tag
	// replaced: a tag with a higher number carries the same snapshot.
	replaced bool
}

func (c *commitRecord) check(t Tag, host dr.HostID) error {
	switch {
	case c.Format != 1:
		return tampered("its format is %d; this version of Lifeboat knows 1, use a newer one", c.Format)
	case c.Host != host:
		return tampered("it names host %s and is signed by %s", c.Host.Short(), host.Short())
	case c.System != t.System || c.Number != t.Number:
		return tampered("it says to be number %d of system %s", c.Number, c.System)
	case dr.SnapshotID(c.Root.ID) != c.Snapshot || c.Root.Len == 0 || c.Root.Len > dr.MaxUnit:
		return tampered("its root record is not the unit that gives it its id")
	case c.Kind != dr.KindCurrent && c.Kind != dr.KindDivergent:
		return tampered("it is of unknown kind %q", c.Kind)
	}
	if _, err := dr.ParseSite(string(c.Site)); err != nil {
		return tampered("its site %q is not a site name", c.Site)
	}
	return nil
}

func (c *commitRecord) snapshot(t Tag, d digest.Digest, needs []need) *Snapshot {
	return &Snapshot{
		Tag: t.String(), Place: t.String(), Digest: d, ID: c.Snapshot, Root: c.Root, System: c.System, Number: c.Number,
		Site: c.Site, Host: c.Host, Epoch: c.Epoch, Kind: c.Kind, Parent: c.Parent, Created: c.Created,
		Consistency: c.Consistency, Containers: c.Containers, BytesTotal: c.BytesTotal, BytesNew: c.BytesNew,
		BytesSent: c.BytesSent, Freeze: time.Duration(c.FreezeUS) * time.Microsecond, Origin: c.Origin, Needs: c.Needs, needs: needs,
		at: t, place: place{system: c.System, number: c.Number, tags: []Tag{t}},
	}
}

// openSnapshot verifies the commit record under a tag of class s.
func (r *Repo) openSnapshot(ctx context.Context, t Tag, m store.Manifest) (*Snapshot, error) {
	sealed, listed, err := decodeSnapshotIndex(ClassSnapshot, m)
	if err != nil {
		return nil, err
	}
	c, err := r.openCommit(ctx, t, sealed)
	if err != nil {
		return nil, err
	}
	if err := sameNeeds(listed, c.Needs); err != nil {
		return nil, err
	}
	if err := r.witness(t, m.Digest); err != nil {
		return nil, err
	}
	return c.snapshot(t, m.Digest, listed), nil
}

// openCommit opens a commit record that was sealed under a tag of class s, and
// verifies it. The error wraps dr.ErrTampered.
func (r *Repo) openCommit(ctx context.Context, t Tag, sealed []byte) (*commitRecord, error) {
	signed, err := r.openSealed(ctx, t.String(), sealed)
	if err != nil {
		return nil, err
	}
	host, body, err := seal.VerifySigned(r.ID(), t.String(), signed)
	if err != nil {
		return nil, err
	}
	var c commitRecord
	if err := json.Unmarshal(body, &c); err != nil {
		return nil, tampered("not a commit record: %v", err)
	}
	if err := c.check(t, host); err != nil {
		return nil, err
	}
	return &c, r.hosts.trusts(ctx, host, c.Snapshot, "", "")
}

// Snapshots lists the snapshots of a system ("" for all) by system and number.
// A tag that does not verify is a Problem and does not keep the others from
// being listed; so is a registry that shows less than this host has seen. Of
// two tags with one snapshot id the higher number counts.
func (r *Repo) Snapshots(ctx context.Context, system dr.System) ([]Snapshot, []Problem, error) {
	found, problems, err := r.allSnapshots(ctx, system)
	if err != nil {
		return nil, nil, fmt.Errorf("list snapshots: %w", err)
	}
	var out []Snapshot
	for _, s := range found {
		if !s.replaced {
			out = append(out, *s)
		}
	}
	return out, problems, nil
}

// allSnapshots is Snapshots, with those that another tag of the same snapshot
// has replaced.
func (r *Repo) allSnapshots(ctx context.Context, system dr.System) ([]*Snapshot, []Problem, error) {
	v, err := r.survey(ctx, system)
	if err != nil {
		return nil, nil, err
	}
	return v.found, v.problems, nil
}

// survey lists the snapshots of a system ("" for all) and compares them with what
// this host remembers.
func (r *Repo) survey(ctx context.Context, system dr.System) (*survey, error) {
	before, err := r.state.allMarks()
	if err != nil {
		return nil, err
	}
	places, problems, err := r.listPlaces(ctx, system)
	if err != nil {
		return nil, err
	}
	if err := r.hosts.load(ctx); err != nil {
		return nil, err
	}
	found, bad, err := r.readPlaces(ctx, places)
	if err != nil {
		return nil, err
	}
	v := &survey{found: found, problems: append(problems, bad...), there: map[dr.System]map[dr.Number]*Snapshot{}}
	last := map[dr.SnapshotID]dr.Number{}
	newest := markedSystems(before, system)
	there := func(sys dr.System) map[dr.Number]*Snapshot {
		if v.there[sys] == nil {
			v.there[sys] = map[dr.Number]*Snapshot{}
		}
		return v.there[sys]
	}
	for _, t := range revokedTags(bad) {
		there(t.System)[t.Number] = nil
	}
	for _, s := range found {
		last[s.ID] = max(last[s.ID], s.Number)
		newest[s.System] = max(newest[s.System], s.Number)
		there(s.System)[s.Number] = s
	}
	if err := r.compare(ctx, v, before, newest); err != nil {
		return nil, err
	}
	for _, s := range found {
		s.replaced = last[s.ID] != s.Number
	}
	return v, nil
}

// markedSystems returns the systems whose snapshots this host has seen, or the
// one given, with number 0.
func markedSystems(marks map[string]dr.Number, system dr.System) map[dr.System]dr.Number {
	if system != "" {
		return map[dr.System]dr.Number{system: 0}
	}
	out := map[dr.System]dr.Number{}
	for prefix := range marks {
		if t, err := ParseTag(prefix + "1"); err == nil && t.Class == ClassSnapshot {
			out[t.System] = 0
		}
	}
	return out
}

// minPrefix is the shortest prefix of a snapshot id that Find takes.
const minPrefix = 4

// Find returns one snapshot: "" or "latest" is the newest on the system's line
// (fence.Head), "#7" is by number, anything else a prefix of an id, of at least
// four digits. system may be "" for the last form. Errors: dr.ErrNotFound,
// dr.ErrUsage for a prefix that fits several, dr.ErrTampered for a number that
// does not verify and where the registry shows less than this host has seen.
func (r *Repo) Find(ctx context.Context, system dr.System, ref string) (*Snapshot, error) {
	switch {
	case ref == "" || ref == "latest":
		return r.findLatest(ctx, system)
	case strings.HasPrefix(ref, "#"):
		n, err := strconv.ParseUint(ref[1:], 10, 63)
		if err != nil || n == 0 || system == "" {
			return nil, fmt.Errorf("find snapshot %q: want #NUMBER of a system: %w", ref, dr.ErrUsage)
		}
		return r.findNumber(ctx, system, dr.Number(n))
	default:
		return r.findPrefix(ctx, system, ref)
	}
}

func (r *Repo) findNumber(ctx context.Context, system dr.System, n dr.Number) (*Snapshot, error) {
	p, err := r.relist(ctx, place{system: system, number: n})
	var s *Snapshot
	var problems []Problem
	if err == nil {
		s, problems, err = r.readPlace(ctx, p)
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("snapshot %s: %w", p.tag(), err)
	case s != nil:
		return s, nil
	case len(problems) > 0:
		return nil, fmt.Errorf("snapshot %s: %w", p.tag(), problems[0].Err)
	}
	return nil, fmt.Errorf("system %s has no snapshot number %d: %w", system, n, dr.ErrNotFound)
}

func (r *Repo) findLatest(ctx context.Context, system dr.System) (*Snapshot, error) {
	if system == "" {
		return nil, fmt.Errorf("find the latest snapshot: of which system?: %w", dr.ErrUsage)
	}
	claims, err := r.claims(ctx, system)
	if err != nil {
		return nil, err
	}
	if err := r.tellOlder(ctx, system); err != nil {
		return nil, fmt.Errorf("find the latest snapshot of system %s: %w", system, err)
	}
	prefix := Tag{Class: ClassSnapshot, System: system}.prefix()
	before, err := r.state.allMarks()
	if err != nil {
		return nil, err
	}
	places, problems, err := r.listPlaces(ctx, system)
	if err != nil {
		return nil, fmt.Errorf("find the latest snapshot of system %s: %w", system, err)
	}
	if err := r.hosts.load(ctx); err != nil {
		return nil, fmt.Errorf("find the latest snapshot of system %s: %w", system, err)
	}
	// The highest numbers come first: the one looked for is nearly always there.
	slices.Reverse(places)
	var seen []*Snapshot
	var newest dr.Number
	for batch := range slices.Chunk(places, listParallel) {
		found, bad, err := r.readPlaces(ctx, batch)
		if err != nil {
			return nil, fmt.Errorf("find the latest snapshot of system %s: %w", system, err)
		}
		problems = append(problems, bad...)
		if newest == 0 {
			var valid dr.Number
			for _, t := range revokedTags(bad) {
				newest = max(newest, t.Number)
			}
			if len(found) > 0 {
				valid = found[0].Number
				newest = max(newest, valid)
			}
			if newest > 0 {
				if err := r.checkMark(before, prefix, valid, newest); err != nil {
					return nil, fmt.Errorf("find the latest snapshot of system %s: %w", system, err)
				}
			}
		}
		seen = append(seen, found...)
		if s := head(withoutBase(claims), found); s != nil {
			return s, nil
		}
	}
	if s := head(claims, seen); s != nil {
		return s, nil
	}
	if newest == 0 {
		if err := r.checkMark(before, prefix, 0, 0); err != nil {
			return nil, fmt.Errorf("find the latest snapshot of system %s: %w", system, err)
		}
	}
	err = fmt.Errorf("system %s has no snapshot: %w", system, dr.ErrNotFound)
	if n := len(claims); n > 0 && claims[n-1].Base != nil {
		err = fmt.Errorf("the newest epoch of system %s builds on snapshot %s, which is not there: %w", system, claims[n-1].Base.Short(), dr.ErrNotFound)
	}
	return nil, withProblems(err, problems)
}

// head picks the snapshot that fence.Head names, nil for none.
func head(claims []fence.Claim, snaps []*Snapshot) *Snapshot {
	var short []fence.Snap
	for _, s := range snaps {
		short = append(short, fence.Snap{ID: s.ID, Number: s.Number, Epoch: s.Epoch, Host: s.Host, Kind: s.Kind})
	}
	id, ok := fence.Head(claims, short)
	var best *Snapshot
	for _, s := range snaps {
		if ok && s.ID == id && (best == nil || s.Number > best.Number) {
			best = s
		}
	}
	return best
}

// withoutBase leaves the base of the newest claim out: it counts only once
// every snapshot was looked at.
func withoutBase(claims []fence.Claim) []fence.Claim {
	out := slices.Clone(claims)
	if n := len(out); n > 0 {
		out[n-1].Base = nil
	}
	return out
}

// withProblems adds to an error what did not verify on the way.
func withProblems(err error, problems []Problem) error {
	if len(problems) == 0 {
		return err
	}
	return fmt.Errorf("%w (%d tags do not verify; the first: %w)", err, len(problems), problems[0].Err)
}

// claims reads the epoch records of a system, oldest first.
func (r *Repo) claims(ctx context.Context, system dr.System) ([]fence.Claim, error) {
	recs, err := r.ListRecords(ctx, Tag{Class: ClassEpoch, System: system}.prefix())
	if err != nil {
		return nil, err
	}
	var out []fence.Claim
	for _, rec := range recs {
		var c fence.Claim
		if err := json.Unmarshal(rec.Body, &c); err != nil || c.System != system || dr.Number(c.Epoch) != rec.Number || c.Host != rec.Host {
			return nil, fmt.Errorf("epoch record %s does not fit its place: %w", rec.Tag, dr.ErrTampered)
		}
		out = append(out, c)
	}
	return out, nil
}

func (r *Repo) findPrefix(ctx context.Context, system dr.System, ref string) (*Snapshot, error) {
	if strings.Trim(ref, "0123456789abcdef") != "" || len(ref) < minPrefix || len(ref) > 64 {
		return nil, fmt.Errorf("find snapshot %q: want latest, #NUMBER, or at least %d hexadecimal digits of an id: %w", ref, minPrefix, dr.ErrUsage)
	}
	snaps, problems, err := r.Snapshots(ctx, system)
	if err != nil {
		return nil, err
	}
	var found []*Snapshot
	for i := range snaps {
		if strings.HasPrefix(snaps[i].ID.String(), ref) {
			found = append(found, &snaps[i])
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return nil, withProblems(fmt.Errorf("no snapshot begins with %s: %w", ref, dr.ErrNotFound), problems)
	default:
		var names []string
		for _, s := range found {
			names = append(names, fmt.Sprintf("%s (%s)", s.ID.Short(), s.Tag))
		}
		return nil, fmt.Errorf("%s fits %d snapshots: %s; give more digits: %w", ref, len(found), strings.Join(names, ", "), dr.ErrUsage)
	}
}
