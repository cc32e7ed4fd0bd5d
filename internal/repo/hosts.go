package repo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	godigest "github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"lifeboat/internal/dr"
	"lifeboat/internal/seal"
	"lifeboat/internal/store"
)

// ErrRevoked: the host's key was revoked; nothing that it writes counts. A new
// host key (delete the old one) starts over.
var ErrRevoked = errors.New("host key revoked")

// ErrNotEnrolled: no record enrols the host that signed something: somebody else's
// key, or its record is damaged or gone.
var ErrNotEnrolled = errors.New("not enrolled")

// What a host record does.
const (
	actionEnrol  = "enrol"
	actionRevoke = "revoke"
)

// hostRecord is what stands under host.<n> (docs/format.md, Hosts). Host is the
// signer: the subject itself when it enrols, an enrolled host otherwise.
type hostRecord struct {
	Format  int       `json:"format"`
	Host    dr.HostID `json:"host"`
	Action  string    `json:"action"`
	Subject dr.HostID `json:"subject"`
	Name    string    `json:"name,omitempty"`
	Created time.Time `json:"created"`
	// Revoked are the hosts that the signer knows to be revoked: a registry that
	// leaves a revocation out has to leave out every later record, too.
	Revoked []dr.HostID `json:"revoked,omitempty"`
	// Of a revocation: the snapshots of the subject that stay trusted, and its
	// records, by tag with the digest that the tag names.
	GoodSnapshots []dr.SnapshotID   `json:"good_snapshots,omitempty"`
	GoodRecords   map[string]string `json:"good_records,omitempty"`
}

// HostInfo is a host that may write, or may no longer.
type HostInfo struct {
	ID dr.HostID
	// Name is what the host called itself, for people.
	Name     string
	Enrolled time.Time
	// Revoked is zero for a host that is trusted.
	Revoked time.Time
}

// hostStatus is what the host records say of one host.
type hostStatus struct {
	HostInfo
	revoked       bool
	goodSnapshots map[dr.SnapshotID]bool
	goodRecords   map[string]string
}

// hostBook knows the enrolled hosts. Safe for concurrent use.
type hostBook struct {
	repo *Repo

	mu      sync.Mutex
	records map[dr.Number]*hostRecord // read and verified; nil for what does not
	status  map[dr.HostID]*hostStatus
	newest  dr.Number
	bad     map[string]Problem // tags that do not verify
	asked   map[dr.HostID]bool // unknown although read again
}

// load reads the host records that are new.
func (b *hostBook) load(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.loadLocked(ctx); err != nil {
		return fmt.Errorf("read host records: %w", err)
	}
	return nil
}

// reload reads all host records again, also those that did not verify.
func (b *hostBook) reload(ctx context.Context) error {
	b.mu.Lock()
	b.records, b.bad = nil, nil
	b.mu.Unlock()
	return b.load(ctx)
}

func (b *hostBook) loadLocked(ctx context.Context) error {
	prefix := Tag{Class: ClassHost}.prefix()
	before, err := b.repo.state.allMarks()
	if err != nil {
		return err
	}
	names, err := b.repo.st.Tags(ctx, prefix)
	if err != nil {
		return err
	}
	if err := b.repo.checkShown(prefix, names); err != nil {
		return err
	}
	tags, problems := parseTags(names)
	if b.records == nil {
		b.records, b.bad = map[dr.Number]*hostRecord{}, map[string]Problem{}
	}
	found := make([]*hostRecord, len(tags))
	failed := make([]error, len(tags))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(listParallel)
	for i, t := range tags {
		if _, ok := b.records[t.Number]; ok {
			continue
		}
		g.Go(func() error {
			found[i], failed[i] = b.read(gctx, t)
			if failed[i] != nil && !about(failed[i]) {
				return failed[i]
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for i, t := range tags {
		if failed[i] != nil {
			problems = append(problems, Problem{Tag: t.String(), Err: failed[i]})
		}
		// What is not there may be there when it is looked again.
		if _, ok := b.records[t.Number]; !ok && !errors.Is(failed[i], store.ErrNotFound) && !errors.Is(failed[i], errLostManifest) {
			b.records[t.Number] = found[i]
		}
		if found[i] != nil {
			delete(b.bad, t.String()) // it was listed before it could be read
		}
	}
	for _, p := range problems {
		if _, known := b.bad[p.Tag]; !known {
			b.repo.log.Warn("a host record does not verify", "problem", p.String())
		}
		b.bad[p.Tag] = p
	}
	b.asked = map[dr.HostID]bool{}
	for _, p := range b.replay() {
		if _, known := b.bad[p.Tag]; !known {
			b.repo.log.Warn("a host record is missing", "problem", p.String())
		}
		b.bad[p.Tag] = p
	}
	return b.repo.checkMark(before, prefix, b.newest, 0)
}

// read opens a host record and checks its signature; whether the signer may do
// what it says is replay's question.
func (b *hostBook) read(ctx context.Context, t Tag) (*hostRecord, error) {
	host, body, digest, err := b.repo.openRecord(ctx, t)
	if err != nil {
		return nil, err
	}
	var h hostRecord
	if err := json.Unmarshal(body, &h); err != nil {
		return nil, tampered("not a host record: %v", err)
	}
	if h.Format != 1 || h.Host != host || (h.Action != actionEnrol && h.Action != actionRevoke) {
		return nil, tampered("not a host record of format 1")
	}
	if err := b.repo.witness(t, godigest.Digest(digest)); err != nil {
		return nil, err
	}
	return &h, nil
}

// replay goes through the records in the order of their numbers. A host enrols
// itself or is enrolled by one that is trusted at that number; a trusted one
// revokes. Who was revoked once stays revoked, also where the revocation itself
// is not shown and a later record tells of it: then nothing of that host is
// known to be good, and the problem is returned.
func (b *hostBook) replay() (problems []Problem) {
	b.status = map[dr.HostID]*hostStatus{}
	b.newest = 0
	trusted := func(id dr.HostID) bool { s := b.status[id]; return s != nil && !s.revoked }
	for _, n := range slices.Sorted(maps.Keys(b.records)) {
		h := b.records[n]
		if h == nil {
			continue
		}
		s := b.status[h.Subject]
		switch {
		case h.Action == actionEnrol && s == nil && (h.Host == h.Subject || trusted(h.Host)):
			b.status[h.Subject] = &hostStatus{HostInfo: HostInfo{ID: h.Subject, Name: h.Name, Enrolled: h.Created}}
		case h.Action == actionRevoke && s != nil && !s.revoked && trusted(h.Host):
			s.revoked, s.Revoked = true, h.Created
			s.goodRecords, s.goodSnapshots = h.GoodRecords, map[dr.SnapshotID]bool{}
			for _, id := range h.GoodSnapshots {
				s.goodSnapshots[id] = true
			}
		}
		b.newest = n
		if !trusted(h.Host) {
			continue
		}
		for _, id := range h.Revoked {
			if s := b.status[id]; s != nil && !s.revoked {
				s.revoked, s.Revoked = true, h.Created
				problems = append(problems, Problem{Tag: Tag{Class: ClassHost, Number: n}.String(), Err: tampered(
					"it says that host %s (%s) was revoked, and the record of that is not there: the registry has lost it or hides it; nothing that this host wrote counts until it is back", id.Short(), s.Name)})
			}
		}
	}
	return problems
}

// problems returns the host records that do not verify.
func (b *hostBook) problems() []Problem {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.SortedFunc(maps.Values(b.bad), func(p, q Problem) int { return strings.Compare(p.Tag, q.Tag) })
}

// lookup returns what is known of a host, reading the records again once when
// it is unknown. nil for a host that was never enrolled.
func (b *hostBook) lookup(ctx context.Context, id dr.HostID) (*hostStatus, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := b.status[id]; s != nil || b.asked[id] {
		return s, nil
	}
	if err := b.loadLocked(ctx); err != nil {
		return nil, fmt.Errorf("read host records: %w", err)
	}
	b.asked[id] = b.status[id] == nil
	return b.status[id], nil
}

// trusts decides whether a signed thing counts: a snapshot (id set) or a record
// (tag and digest). The error wraps dr.ErrTampered.
func (b *hostBook) trusts(ctx context.Context, host dr.HostID, id dr.SnapshotID, tag, digest string) error {
	s, err := b.lookup(ctx, host)
	switch {
	case err != nil:
		return err
	case s == nil:
		return fmt.Errorf("signed by host %s, which is %w: %w", host.Short(), ErrNotEnrolled, dr.ErrTampered)
	case !s.revoked:
		return nil
	case !id.IsZero() && s.goodSnapshots[id]:
		return nil
	case id.IsZero() && digest != "" && s.goodRecords[tag] == digest:
		return nil
	}
	return fmt.Errorf("signed by host %s (%s), which was revoked on %s, and not among what was found good then: %w: %w",
		host.Short(), s.Name, s.Revoked.UTC().Format(time.RFC3339), ErrRevoked, dr.ErrTampered)
}

// Hosts lists the hosts that were ever enrolled, by name.
func (r *Repo) Hosts(ctx context.Context) ([]HostInfo, error) {
	if err := r.hosts.load(ctx); err != nil {
		return nil, fmt.Errorf("list hosts: %w", err)
	}
	r.hosts.mu.Lock()
	defer r.hosts.mu.Unlock()
	var out []HostInfo
	for _, s := range r.hosts.status {
		out = append(out, s.HostInfo)
	}
	slices.SortFunc(out, func(a, b HostInfo) int {
		return strings.Compare(a.Name+a.ID.String(), b.Name+b.ID.String())
	})
	return out, nil
}

// Enrol makes this host known to the repository, unless it is. It returns a
// line for the operator when it did something. Writing enrols by itself.
// Errors: ErrRevoked.
func (r *Repo) Enrol(ctx context.Context) (notice string, err error) {
	if r.opts.Host == nil {
		return "", fmt.Errorf("write to the repository: no host key was given: %w", dr.ErrUsage)
	}
	id := r.HostID()
	for range 2 {
		s, err := r.hosts.lookup(ctx, id)
		switch {
		case err != nil:
			return "", fmt.Errorf("enrol host %s: %w", id.Short(), err)
		case s != nil && s.revoked:
			return "", fmt.Errorf("host %s was revoked on %s; if it is to write again, as a new host, move %s out of its engine's directory below the state directory, and run the command again: %w", id.Short(), s.Revoked.UTC().Format(time.RFC3339), seal.HostKeyFile, ErrRevoked)
		case s != nil:
			return notice, nil
		}
		h := hostRecord{Format: 1, Host: id, Action: actionEnrol, Subject: id, Name: r.opts.HostName, Created: time.Now().UTC()}
		err = r.putHostRecord(ctx, h)
		if errors.Is(err, store.ErrForbidden) {
			return "", fmt.Errorf("this login may not enrol hosts; have an operator run: lifeboat host enroll %s: %w", id, err)
		}
		if err != nil {
			return "", fmt.Errorf("enrol host %s: %w", id.Short(), err)
		}
		notice = fmt.Sprintf("host %s was enrolled in repository %s; it may write from now on", id.Short(), r.ID())
	}
	return "", fmt.Errorf("enrol host %s: the record was stored but is not listed: %w", id.Short(), dr.ErrOutcomeUnknown)
}

// EnrolHost makes another host known, which then may write: for registries
// where only an operator may. dr.ErrHeld when it was revoked before: then it
// needs a new key.
func (r *Repo) EnrolHost(ctx context.Context, id dr.HostID, name string) error {
	what := "enrol host " + id.Short()
	if err := r.enrolForWriting(ctx); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	s, err := r.hosts.lookup(ctx, id)
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", what, err)
	case s != nil && s.revoked:
		return fmt.Errorf("%s: %w: %w", what, ErrRevoked, dr.ErrHeld)
	case s != nil:
		return nil
	}
	h := hostRecord{Format: 1, Host: r.HostID(), Action: actionEnrol, Subject: id, Name: name, Created: time.Now().UTC()}
	if err := r.putHostRecord(ctx, h); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// enrolForWriting enrols this host and tells the operator. It looks whether the
// host was revoked meanwhile.
func (r *Repo) enrolForWriting(ctx context.Context) error {
	if err := r.hosts.load(ctx); err != nil {
		return err
	}
	notice, err := r.Enrol(ctx)
	if err == nil && notice != "" {
		r.notice(notice)
	}
	return err
}

// putHostRecord stores a host record under the next free number.
func (r *Repo) putHostRecord(ctx context.Context, h hostRecord) error {
	r.hosts.mu.Lock()
	t := Tag{Class: ClassHost, Number: r.hosts.newest}
	for id, s := range r.hosts.status {
		if s.revoked {
			h.Revoked = append(h.Revoked, id)
		}
	}
	r.hosts.mu.Unlock()
	slices.SortFunc(h.Revoked, func(a, b dr.HostID) int { return bytes.Compare(a[:], b[:]) })
	body, err := json.Marshal(h)
	if err != nil {
		return fmt.Errorf("encode host record: %w", err)
	}
	for range maxLost {
		t = t.next()
		if err = r.putSigned(ctx, t, body); !errors.Is(err, dr.ErrHeld) {
			break
		}
	}
	if err != nil {
		return err
	}
	return r.hosts.load(ctx)
}

// Revoke takes a host's right to write back. Its snapshots stay trusted if keep
// says so (nil: all that verify now); its epoch and switch records and what it
// relocated stay, as they are now. The host still holds the repository's key if it kept it:
// rotate that too.
func (r *Repo) Revoke(ctx context.Context, subject dr.HostID, keep func(*Snapshot) bool) error {
	what := "revoke host " + subject.Short()
	if err := r.enrolForWriting(ctx); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	s, err := r.hosts.lookup(ctx, subject)
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", what, err)
	case s == nil:
		return fmt.Errorf("%s: it is not enrolled: %w", what, dr.ErrNotFound)
	case s.revoked:
		return nil
	case subject == r.HostID():
		return fmt.Errorf("%s: a host cannot revoke itself; do it from another one: %w", what, dr.ErrUsage)
	}
	h := hostRecord{Format: 1, Host: r.HostID(), Action: actionRevoke, Subject: subject, Name: s.Name, Created: time.Now().UTC(), GoodRecords: map[string]string{}}
	snaps, _, err := r.Snapshots(ctx, "")
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	for i := range snaps {
		if snaps[i].Host == subject && (keep == nil || keep(&snaps[i])) {
			h.GoodSnapshots = append(h.GoodSnapshots, snaps[i].ID)
		}
		if snaps[i].mover == subject {
			h.GoodRecords[snaps[i].Place] = snaps[i].Digest.String()
		}
	}
	for _, c := range []Class{ClassEpoch, ClassSwitch, ClassLock} {
		recs, _, err := r.records(ctx, string(c)+".")
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		for _, rec := range recs {
			if rec.Host == subject {
				h.GoodRecords[rec.Tag] = rec.digest
			}
		}
	}
	if err := r.putHostRecord(ctx, h); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}
