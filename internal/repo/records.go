package repo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	godigest "github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"lifeboat/internal/dr"
	"lifeboat/internal/seal"
	"lifeboat/internal/store"
)

// listParallel is how many small manifests are read at a time.
const listParallel = 8

// maxProbes is for how many numbers in a row Latest asks one by one.
const maxProbes = 64

// ErrSquatted: the tag names, for good, something that is no record and counts
// for nobody; or its number was given out once and its tag deleted. The next
// number may be taken without asking again. It comes with dr.ErrHeld.
var ErrSquatted = errors.New("the tag holds no record")

// Record is a verified record of class e or w: sealed for this repository and
// tag, and signed by an enrolled host.
type Record struct {
	Tag    string
	Number dr.Number
	Host   dr.HostID
	// Body is the JSON object that was given to PutRecord.
	Body json.RawMessage

	digest string // of the manifest
}

// PutRecord signs, seals and stores v, a JSON object whose member "host" is
// this host's id and whose "system" and "epoch" (class e) are the tag's, under
// a tag of class e or w, and reads it back. The same record under the same tag
// succeeds again (invariant 8). Errors: dr.ErrHeld when the tag holds something
// else, together with ErrSquatted when that is no record and never will be;
// dr.ErrOutcomeUnknown when the answer was lost: look at the records before
// trying again.
func (r *Repo) PutRecord(ctx context.Context, tag string, v any) error {
	t, err := ParseTag(tag)
	if err != nil || (t.Class != ClassEpoch && t.Class != ClassSwitch) {
		return fmt.Errorf("put record %s: not a tag of class e or w: %w", tag, dr.ErrUsage)
	}
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("put record %s: %w", tag, err)
	}
	if err := fits(t, body); err != nil {
		return fmt.Errorf("put record %s: %w: %w", tag, err, dr.ErrUsage)
	}
	if err := r.enrolForWriting(ctx); err != nil {
		return fmt.Errorf("put record %s: %w", tag, err)
	}
	if err := r.refreshKeys(ctx); err != nil {
		return fmt.Errorf("put record %s: %w", tag, err)
	}
	if err := r.putSigned(ctx, t, body); err != nil {
		return err
	}
	return r.state.raise(map[string]dr.Number{t.prefix(): t.Number})
}

// putSigned signs, seals, stores and reads back a record.
func (r *Repo) putSigned(ctx context.Context, t Tag, body []byte) error {
	_, err := r.st.ResolveTag(ctx, t.String())
	if err == nil || errors.Is(err, store.ErrDigestMismatch) { // it is there, damaged
		return r.compareRecord(ctx, t, body)
	}
	if !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("put record %s: nothing was stored: %w", t, err)
	}
	sealed, err := r.signAndSeal(t, body)
	if err != nil {
		return err
	}
	_, err = r.putRecordManifest(ctx, t, sealed)
	switch {
	case errors.Is(err, store.ErrTagRetired):
		return fmt.Errorf("put record %s: %w: %w: %w", t, err, ErrSquatted, dr.ErrHeld)
	case err == nil || errors.Is(err, store.ErrTagTaken):
		return r.compareRecord(ctx, t, body)
	case errors.Is(err, dr.ErrOutcomeUnknown):
		// Reading may settle it; not finding the record does not, for the request
		// may still be on its way.
		if rerr := r.compareRecord(ctx, t, body); rerr == nil || errors.Is(rerr, dr.ErrHeld) {
			return rerr
		}
		return fmt.Errorf("put record %s: it may or may not have been stored: %w", t, err)
	default:
		return fmt.Errorf("put record %s: %w", t, err)
	}
}

func (r *Repo) signAndSeal(t Tag, body []byte) ([]byte, error) {
	signed, err := r.opts.Host.Sign(r.ID(), t.String(), body)
	if err != nil {
		return nil, err
	}
	return r.keyring().SealRecord(t.String(), signed)
}

// compareRecord reads a record and returns nil when it is body by this host,
// dr.ErrHeld when it is something else, with ErrSquatted when that is void.
func (r *Repo) compareRecord(ctx context.Context, t Tag, body []byte) error {
	host, have, digest, err := r.openRecord(ctx, t)
	if err == nil && host == r.HostID() && bytes.Equal(have, body) {
		return r.witness(t, godigest.Digest(digest))
	}
	if err == nil && t.Class != ClassHost {
		err = r.counts(ctx, t, host, have, digest)
	}
	switch {
	case err == nil:
		return fmt.Errorf("put record %s: the tag holds another record, by host %s: %w", t, host.Short(), dr.ErrHeld)
	case r.void(err):
		return fmt.Errorf("put record %s: %w: %w: %w", t, ErrSquatted, err, dr.ErrHeld)
	case errors.Is(err, dr.ErrTampered):
		return fmt.Errorf("put record %s: the tag holds something that cannot be read, which may be a record; restore the registry's data, or have an operator delete the tag if that cannot be done: %w: %w", t, err, dr.ErrHeld)
	default:
		return fmt.Errorf("put record %s: it was sent and could not be read back: %w: %w", t, err, dr.ErrOutcomeUnknown)
	}
}

// counts decides, by what the host records say now, whether what openRecord has
// opened is a record. The error wraps dr.ErrTampered, or is the store's.
func (r *Repo) counts(ctx context.Context, t Tag, host dr.HostID, body []byte, digest string) error {
	// A host enrols before it writes: whoever is not in the book after the record
	// was read had not enrolled when it was written.
	if err := r.hosts.load(ctx); err != nil {
		return err
	}
	if err := r.hosts.trusts(ctx, host, dr.SnapshotID{}, t.String(), digest); err != nil {
		return err
	}
	return fits(t, body)
}

// void reports whether what a tag names counts for nobody, now and later: the
// bytes are those that the tag names, every key that the repository has was
// tried, and they are no record of this repository, this tag and an enrolled
// host. Bytes that do not fit their digest may have been one: they are damaged,
// not void.
func (r *Repo) void(err error) bool {
	if errors.Is(err, store.ErrDigestMismatch) {
		return false
	}
	if errors.Is(err, seal.ErrGeneration) && len(r.opts.Identities) == 0 && r.opts.Passphrase == nil {
		return false // made by Create: it does not see newer keys
	}
	return errors.Is(err, dr.ErrTampered) || errors.Is(err, store.ErrTooLarge)
}

// fits checks that what a record of class e or w says agrees with its tag. It
// does not look at the format: a claim made by a later version fences too. The
// error wraps dr.ErrTampered.
func fits(t Tag, body []byte) error {
	var says struct {
		System dr.System `json:"system"`
		Epoch  dr.Epoch  `json:"epoch"`
	}
	if err := json.Unmarshal(body, &says); err != nil {
		return tampered("not a record: %v", err)
	}
	if says.System != t.System || (t.Class == ClassEpoch && dr.Number(says.Epoch) != t.Number) {
		return tampered("it says to be of system %q, epoch %d", says.System, says.Epoch)
	}
	return nil
}

// openRecord reads a record, opens it and checks its signature. Whether the
// signer counts is the caller's question. The error wraps dr.ErrTampered, or is
// the store's.
func (r *Repo) openRecord(ctx context.Context, t Tag) (host dr.HostID, body []byte, digest string, err error) {
	m, err := r.getListed(ctx, t.String())
	if err != nil {
		return host, nil, "", err
	}
	sealed, err := decodeRecordManifest(m, t.Class)
	if err != nil {
		return host, nil, "", err
	}
	signed, err := r.openSealed(ctx, t.String(), sealed)
	if err != nil {
		return host, nil, "", err
	}
	host, body, err = seal.VerifySigned(r.ID(), t.String(), signed)
	return host, body, m.Digest.String(), err
}

// openSealed opens a sealed record, reading the keys again when it was sealed
// with a newer generation.
func (r *Repo) openSealed(ctx context.Context, tag string, sealed []byte) ([]byte, error) {
	plain, err := r.keyring().OpenRecord(tag, sealed)
	if !errors.Is(err, seal.ErrGeneration) {
		return plain, err
	}
	if kerr := r.refreshKeys(ctx); kerr != nil {
		return nil, fmt.Errorf("%s was sealed with a newer key: %w", tag, kerr)
	}
	plain, err = r.keyring().OpenRecord(tag, sealed)
	return plain, r.keyWithheld(err)
}

// record reads a record that counts.
func (r *Repo) record(ctx context.Context, t Tag) (*Record, error) {
	host, body, digest, err := r.openRecord(ctx, t)
	if err != nil {
		return nil, err
	}
	if err := r.hosts.trusts(ctx, host, dr.SnapshotID{}, t.String(), digest); err != nil {
		return nil, err
	}
	if err := fits(t, body); err != nil {
		return nil, err
	}
	if err := r.witness(t, godigest.Digest(digest)); err != nil {
		return nil, err
	}
	return &Record{Tag: t.String(), Number: t.Number, Host: host, Body: body, digest: digest}, nil
}

// ListRecords returns the verified records of class e or w whose tags are
// prefix ("e.shop.") followed by a number, in the order of the numbers. What
// does not verify is left out and logged. dr.ErrTampered when this host has
// seen a newer one than there is.
func (r *Repo) ListRecords(ctx context.Context, prefix string) ([]Record, error) {
	if t, err := ParseTag(prefix + "1"); err != nil || (t.Class != ClassEpoch && t.Class != ClassSwitch) {
		return nil, fmt.Errorf("list records %q*: not a prefix of class e or w and a system: %w", prefix, dr.ErrUsage)
	}
	before, err := r.state.allMarks()
	if err != nil {
		return nil, err
	}
	recs, problems, err := r.records(ctx, prefix)
	if err != nil {
		return nil, fmt.Errorf("list records %s*: %w", prefix, err)
	}
	for _, p := range problems {
		r.log.Warn("a record does not verify", "problem", p.String())
	}
	var newest dr.Number
	if len(recs) > 0 {
		newest = recs[len(recs)-1].Number
	}
	var shown dr.Number
	for _, t := range revokedTags(problems) {
		shown = max(shown, t.Number)
	}
	if err := r.checkMark(before, prefix, newest, shown); err != nil {
		return nil, fmt.Errorf("list records %s*: %w", prefix, err)
	}
	return recs, nil
}

// records reads all records whose tags begin with prefix.
func (r *Repo) records(ctx context.Context, prefix string) ([]Record, []Problem, error) {
	names, err := r.st.Tags(ctx, prefix)
	if err != nil {
		return nil, nil, err
	}
	tags, problems := parseTags(names)
	if _, err := ParseTag(prefix + "1"); err == nil { // of one system
		if err := r.checkShown(prefix, names); err != nil {
			return nil, nil, err
		}
	}
	if len(tags) == 0 {
		return nil, problems, nil
	}
	if err := r.hosts.load(ctx); err != nil {
		return nil, nil, err
	}
	found, bad, err := readAll(ctx, tags, r.record)
	if err != nil {
		return nil, nil, err
	}
	var out []Record
	for _, f := range found {
		out = append(out, *f)
	}
	return out, append(problems, bad...), nil
}

// readAll reads what tags name, in parallel, in the order of the tags. What
// does not verify is a problem; what was deleted meanwhile is left out; other
// errors end the reading.
func readAll[T any](ctx context.Context, tags []Tag, read func(context.Context, Tag) (*T, error)) (found []*T, problems []Problem, err error) {
	all := make([]*T, len(tags))
	failed := make([]error, len(tags))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(listParallel)
	for i, t := range tags {
		g.Go(func() error {
			all[i], failed[i] = read(gctx, t)
			if failed[i] != nil && !about(failed[i]) {
				return fmt.Errorf("read %s: %w", t, failed[i])
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	for i, t := range tags {
		switch {
		case failed[i] == nil:
			found = append(found, all[i])
		case !errors.Is(failed[i], store.ErrNotFound):
			problems = append(problems, Problem{Tag: t.String(), Err: failed[i]})
		}
	}
	return found, problems, nil
}

// Latest returns the newest verified record of class e or w of a system. It
// asks for the numbers that follow the highest one seen before and lists tags
// only when it knows none. Errors: dr.ErrNotFound when there is none,
// dr.ErrTampered when this host has seen a newer one than there is.
func (r *Repo) Latest(ctx context.Context, c Class, system dr.System) (*Record, error) {
	t := Tag{Class: c, System: system}
	if c != ClassEpoch && c != ClassSwitch {
		return nil, fmt.Errorf("latest record of class %s: want e or w: %w", c, dr.ErrUsage)
	}
	before, err := r.state.allMarks()
	if err != nil {
		return nil, err
	}
	mark := before[t.prefix()]
	if mark == 0 {
		return r.latestListed(ctx, t)
	}
	high, authentic := mark, dr.Number(0)
	for {
		if high-mark == maxProbes {
			return r.latestListed(ctx, t) // a registry that shows any tag that it is asked for
		}
		_, err := r.st.ResolveTag(ctx, Tag{Class: c, System: system, Number: high + 1}.String())
		if errors.Is(err, store.ErrNotFound) {
			break
		}
		if err != nil && !about(err) {
			return nil, fmt.Errorf("latest record %s*: %w", t.prefix(), err)
		}
		high++
	}
	for n := high; n >= mark; n-- {
		rec, err := r.record(ctx, Tag{Class: c, System: system, Number: n})
		if err == nil {
			return rec, r.checkMark(before, t.prefix(), n, authentic)
		}
		if !about(err) {
			return nil, fmt.Errorf("latest record %s*: %w", t.prefix(), err)
		}
		if errors.Is(err, ErrRevoked) {
			authentic = max(authentic, n)
		}
		r.log.Warn("a record does not verify", "tag", t.prefix(), "number", n, "error", err)
	}
	if authentic == 0 {
		return nil, r.checkMark(before, t.prefix(), 0, 0)
	}
	return r.latestListed(ctx, t)
}

// latestListed returns the newest record, listing the tags.
func (r *Repo) latestListed(ctx context.Context, t Tag) (*Record, error) {
	recs, err := r.ListRecords(ctx, t.prefix())
	if err != nil {
		return nil, err
	}
	if len(recs) == 0 {
		return nil, fmt.Errorf("latest record %s*: %w", t.prefix(), dr.ErrNotFound)
	}
	return &recs[len(recs)-1], nil
}

// revokedTags returns the tags that were written by a host before or after it
// was revoked. They do not count, but they exist: a registry that shows them is
// not set back.
func revokedTags(problems []Problem) (tags []Tag) {
	for _, p := range problems {
		if t, err := ParseTag(p.Tag); err == nil && errors.Is(p.Err, ErrRevoked) {
			tags = append(tags, t)
		}
	}
	return tags
}
