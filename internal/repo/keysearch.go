package repo

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"lifeboat/internal/dr"
	"lifeboat/internal/seal"
	"lifeboat/internal/store"
)

// refreshKeys finds the newest valid key record. The first time it reads all of
// them; later one question tells that nothing changed.
func (r *Repo) refreshKeys(ctx context.Context) error {
	if k := r.keys.Load(); k != nil {
		if newer, err := r.newerKey(ctx, k.number); err != nil || !newer {
			return err
		}
		if len(r.opts.Identities) == 0 && r.opts.Passphrase == nil {
			return nil // made by Create: only a repository opened anew can follow
		}
	}
	p, err := r.state.loadPin(r.opts.Location)
	if err != nil {
		return err
	}
	s := keySearch{repo: r, pin: p}
	if p != nil {
		s.places = append(s.places, r.keptKeys(p.Repo))
	}
	err = s.begin(ctx)
	switch {
	case err == nil || !errors.Is(err, ErrKeysDamaged):
		return err
	case !r.opts.repairs():
		return s.tellKept(err)
	}
	// What is to be repaired is what opens it: all that this host keeps counts, and
	// other registries are asked, too.
	return s.elsewhere(ctx, err)
}

// newerKey asks whether there is a newer key record than number n: the next one, or
// the first after those that were given up.
func (r *Repo) newerKey(ctx context.Context, n dr.Number) (bool, error) {
	given, err := r.state.givenUp(Tag{Class: ClassKey}.prefix())
	if err != nil {
		return false, err
	}
	next := []dr.Number{n + 1}
	if given > n {
		next = append(next, given+1)
	}
	for _, n := range next {
		_, err := r.st.ResolveTag(ctx, Tag{Class: ClassKey, Number: n}.String())
		if err == nil || errors.Is(err, store.ErrDigestMismatch) { // it is there, damaged
			return true, nil
		}
		if !errors.Is(err, store.ErrNotFound) {
			return false, fmt.Errorf("look for a newer key record: %w", err)
		}
	}
	return false, nil
}

// maxKeyReads bounds how many key records are read, newest first: anybody with a
// login may have put others there. maxKeyTries bounds with how many of them a
// passphrase is tried, which costs a second each.
const (
	maxKeyReads = 256
	maxKeyTries = 16
)

// ErrKeysDamaged: a repository does not open, and key records of it are damaged or
// gone, or the newest that there was is not shown. Repair with a registry that has
// them, or at a host that keeps them, puts them back.
var ErrKeysDamaged = errors.New("key records are damaged or gone")

// keySearch chooses among the key records of a repository (docs/adr/0003).
type keySearch struct {
	repo *Repo
	pin  *pin
	// places have copies of key records that the registry's own cannot be read of;
	// all says that those count, too, that the registry does not list.
	places []keyPlace
	all    bool
	// strict: generations that are known have to be there, whatever is accepted.
	strict   bool
	listed   []Tag     // in the registry
	opened   dr.RepoID // of the record that was taken
	problems []Problem
	mismatch error // opened, but not the repository that is known
	wrong    error // does not open with the key at hand
	closed   []*seal.KeyRecord
	lacking  []*seal.KeyRecord // opened, without a key generation that is known
	unread   []Problem         // of problems, those whose record could not be read
	against  []Problem         // of problems, those that somebody else has to have made
	sound    []keyCopy         // verified against the one that was taken
	tries    int               // of a passphrase
}

// begin lists the key records and chooses among them.
func (s *keySearch) begin(ctx context.Context) error {
	names, err := s.repo.st.Tags(ctx, Tag{Class: ClassKey}.prefix())
	if err != nil {
		return fmt.Errorf("list key records: %w", err)
	}
	tags, _ := parseTags(names) // the others are ordinary tags (docs/adr/0001)
	s.listed = tags
	switch {
	case len(tags) == 0:
		if tags, err = s.withoutAny(ctx); err != nil {
			return err
		}
	case s.all:
		if tags, err = s.union(ctx, tags); err != nil {
			return err
		}
	}
	return s.run(ctx, tags)
}

func (s *keySearch) run(ctx context.Context, tags []Tag) error {
	for i := len(tags) - 1; i >= 0 && len(tags)-i <= maxKeyReads; i-- {
		rec, m, err := readKeyRecord(ctx, s.repo.st, tags[i])
		if err != nil && !about(err) {
			return fmt.Errorf("read key record %s: %w", tags[i], err)
		}
		if err != nil {
			s.note(tags[i], m, err)
			if !s.all && !harmed(err) {
				continue // somebody put something else there: for repair
			}
			found, secret, perr := s.standIn(ctx, tags[i])
			if perr != nil {
				return perr
			}
			if found == nil {
				continue
			}
			s.tell(tags[i], err, found)
			return s.take(ctx, secret, found, tags[:i])
		}
		secret, err := s.try(tags[i], rec)
		if err != nil {
			return err
		}
		if secret != nil {
			return s.take(ctx, secret, &keyCopy{tag: tags[i], record: rec, m: m}, tags[:i])
		}
	}
	s.report()
	var err error
	switch {
	case s.mismatch != nil:
		err = withProblems(s.mismatch, s.unread)
	case s.wrong != nil:
		err = s.wrong
		if len(s.unread) > 0 {
			err = fmt.Errorf("%w; %d of its key records cannot be read, and one of them may be that which it opens (the first, %s: %v)", err, len(s.unread), s.unread[0].Tag, s.unread[0].Err)
		}
	default:
		err = withProblems(tampered("none of its %d key records is valid", len(tags)), s.unread)
	}
	if s.mismatch == nil && s.wrong == nil || errors.Is(err, errLacksGeneration) || slices.ContainsFunc(s.unread, func(p Problem) bool { return harmed(p.Err) }) {
		err = fmt.Errorf("%w: %w", err, ErrKeysDamaged)
	}
	return err
}

// harmed reports whether what was stored is damaged or gone, rather than that
// something else was put there.
func harmed(err error) bool {
	return errors.Is(err, store.ErrDigestMismatch) || errors.Is(err, store.ErrNotFound)
}

// note keeps what is known of a record that cannot be read. What claims to be a key
// record and is none was made by somebody; what is damaged, or is something else
// altogether, contradicts nothing.
func (s *keySearch) note(t Tag, m store.Manifest, err error) {
	p := Problem{Tag: t.String(), Err: err}
	s.problems, s.unread = append(s.problems, p), append(s.unread, p)
	if !harmed(err) && claims(m, ClassKey) {
		s.against = append(s.against, p)
	}
}

// try opens a record; nil, nil when it is not the one.
func (s *keySearch) try(t Tag, rec *seal.KeyRecord) (*seal.Secret, error) {
	ask := s.repo.opts.Passphrase
	if ask != nil && slices.ContainsFunc(rec.Wraps, seal.Wrap.IsPassphrase) {
		if s.tries++; s.tries > maxKeyTries {
			ask = nil
		}
	}
	secret, err := rec.Open(s.repo.opts.Identities, ask)
	switch {
	case errors.Is(err, dr.ErrWrongKey):
		if s.wrong == nil {
			s.wrong = &ClosedError{Repo: rec.Repo, Recipients: keyInfos(rec), err: attempt(err)}
		}
		s.closed = append(s.closed, rec)
		return nil, nil
	case errors.Is(err, dr.ErrTampered):
		s.opposes(Problem{Tag: t.String(), Err: err})
		return nil, nil
	case err != nil:
		return nil, err
	}
	if err := s.known(secret); err != nil {
		if removed := s.removed(secret); removed != nil && errors.Is(err, errLacksGeneration) {
			return nil, removed
		}
		if errors.Is(err, errLacksGeneration) {
			s.lacking = append(s.lacking, rec)
		}
		s.mismatch = errors.Join(s.mismatch, fmt.Errorf("key record %s: %w", t, err))
		s.opposes(Problem{Tag: t.String(), Err: err})
		return nil, nil
	}
	return secret, nil
}

// opposes notes a key record that contradicts the others, or what is known.
func (s *keySearch) opposes(p Problem) {
	s.problems, s.against = append(s.problems, p), append(s.against, p)
}

var errLacksGeneration = errors.New("the registry shows an older state of the repository")

// removed looks among the newer records that did not open for those of the
// repository that an older one opened: then the key at hand was taken away by
// the first of them. The caller knows that it is the right repository.
func (s *keySearch) removed(secret *seal.Secret) error {
	var newest, first *seal.KeyRecord
	for _, k := range s.closed { // newest first
		if k.Verify(secret) != nil {
			continue
		}
		if newest == nil {
			newest = k
		}
		first = k
	}
	if first == nil {
		return nil
	}
	return &ClosedError{
		Repo: secret.Repo(), Recipients: keyInfos(newest), Removed: true,
		Number: first.Number, Generation: first.Generation, Since: first.Created,
	}
}

// attempt keeps of a failure to open what is more than that the key is wrong.
func attempt(err error) error {
	var x interface {
		error
		Explain() (state string, next []string)
	}
	if errors.As(err, &x) {
		return x
	}
	return nil
}

// known compares a secret with what this host and the recovery kit know.
func (s *keySearch) known(secret *seal.Secret) error {
	if e := s.repo.opts.Expect; e != nil && (e.Repo != secret.Repo() || e.Fingerprint != secret.Fingerprint()) {
		return tampered("this is repository %s (fingerprint %s), the recovery kit speaks of %s (%s): the address is wrong, or somebody put another repository in its place",
			secret.Repo(), secret.Fingerprint(), e.Repo, e.Fingerprint)
	}
	if e := s.repo.opts.Expect; e != nil {
		if err := s.hasKeys(secret, e.Witnesses, "the recovery kit speaks of"); err != nil {
			return err
		}
	}
	if s.pin == nil {
		return nil
	}
	if s.pin.Repo != secret.Repo() || s.pin.Fingerprint != secret.Fingerprint() {
		return tampered("this is repository %s (fingerprint %s), this host has used %s (%s) at this address: somebody put another repository in its place; "+
			"if that was you, delete %s", secret.Repo(), secret.Fingerprint(), s.pin.Repo, s.pin.Fingerprint, s.repo.state.pinFile(s.pin.Location))
	}
	return s.hasKeys(secret, s.pin.Witnesses, "this host has seen")
}

// hasKeys compares the data keys of a secret with the witnesses of those that
// are known.
func (s *keySearch) hasKeys(secret *seal.Secret, known map[seal.Generation]string, who string) error {
	for g, want := range known {
		w, ok := secret.Witness(g)
		if !ok && s.repo.opts.AcceptOlder && !s.strict {
			continue
		}
		if !ok && store.Lagging(s.repo.st) {
			s.repo.mirrorBehind(fmt.Sprintf("it lacks key generation %d", g))
			continue
		}
		if !ok {
			return tampered("it lacks key generation %d, which %s: %w", g, who, errLacksGeneration)
		}
		if fmt.Sprintf("%x", w) != want {
			return tampered("its key of generation %d is not the one that %s", g, who)
		}
	}
	return nil
}

// take checks the other records against the secret that was found and adopts it.
func (s *keySearch) take(ctx context.Context, secret *seal.Secret, found *keyCopy, older []Tag) error {
	if removed := s.removed(secret); removed != nil {
		return removed
	}
	for _, k := range s.closed { // newer ones that did not open
		s.opposes(Problem{Tag: Tag{Class: ClassKey, Number: k.Number}.String(), Err: k.Verify(secret)})
	}
	if s.pin == nil && s.repo.opts.Expect == nil {
		// First use, nothing to compare with: then everything must fit together.
		if err := s.unanimous(ctx, secret, older); err != nil {
			return err
		}
	}
	s.report()
	s.tellPassedOver(secret, found.tag)
	s.opened = secret.Repo()
	return s.repo.adoptCopy(secret, found, s.sound...)
}

// adoptCopy adopts a secret and its record, and keeps the record and others that
// verify.
func (r *Repo) adoptCopy(secret *seal.Secret, c *keyCopy, others ...keyCopy) error {
	if err := r.adopt(secret, c.record); err != nil {
		return err
	}
	for _, k := range append(others, *c) {
		r.keepKey(k.tag, k.m)
	}
	return nil
}

// ErrContradicting: key records of a repository contradict each other, and the host
// that opens it has never used it and has no kit, so it cannot tell which are true.
// It comes with dr.ErrTampered.
var ErrContradicting = errors.New("its key records contradict each other, and this host has not used it before: it cannot tell which are true")

func (s *keySearch) unanimous(ctx context.Context, secret *seal.Secret, older []Tag) error {
	for i := len(older) - 1; i >= 0 && len(older)-i <= maxKeyReads; i-- {
		k, m, err := readKeyRecord(ctx, s.repo.st, older[i])
		if err != nil && !about(err) {
			return fmt.Errorf("read key record %s: %w", older[i], err)
		}
		if err != nil {
			s.note(older[i], m, err)
			continue
		}
		if err := k.Verify(secret); err != nil {
			s.opposes(Problem{Tag: older[i].String(), Err: err})
			continue
		}
		s.sound = append(s.sound, keyCopy{tag: older[i], record: k, m: m})
	}
	if len(s.against) > 0 {
		return fmt.Errorf("%w; the first that does not fit is %s: %w", ErrContradicting, s.against[0].Tag, s.against[0].Err)
	}
	return nil
}

func (s *keySearch) report() {
	for _, p := range s.problems {
		s.repo.log.Warn("a key record does not verify", "problem", p.String())
	}
}
