package repo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"lifeboat/internal/dr"
	"lifeboat/internal/seal"
	"lifeboat/internal/store"
)

// keyState is the key record in force.
type keyState struct {
	number dr.Number
	record *seal.KeyRecord
}

// KeyInfo is one recipient of the repository's key.
type KeyInfo struct {
	Name string
	// Recipient is the age public key, or "passphrase".
	Recipient string
}

// ErrNoRepository: the name holds no repository. It wraps dr.ErrNotFound.
var ErrNoRepository = fmt.Errorf("there is no repository: %w", dr.ErrNotFound)

// ClosedError: there is a repository, and no key at hand opens it. It wraps
// dr.ErrWrongKey.
type ClosedError struct {
	Repo dr.RepoID
	// Recipients are those who can open it, as its newest key record says, which
	// nobody has authenticated unless Removed is set.
	Recipients []KeyInfo
	// Removed: the key at hand opened the repository before the key record Number
	// of the key generation Generation took it away, at the time Since (zero
	// where the record does not tell).
	Removed    bool
	Number     dr.Number
	Generation seal.Generation
	Since      time.Time

	err error // of the attempt, such as a passphrase that could not be asked for
}

func (e *ClosedError) Error() string {
	var names []string
	for _, k := range e.Recipients {
		names = append(names, fmt.Sprintf("%s (%s)", k.Name, k.Recipient))
	}
	has := "it has the recipients " + strings.Join(names, ", ")
	if !e.Removed {
		return fmt.Sprintf("no key at hand opens repository %s; %s", e.Repo, has)
	}
	when := ""
	if !e.Since.IsZero() {
		when = " on " + e.Since.UTC().Format("2006-01-02 15:04 UTC")
	}
	return fmt.Sprintf("the key at hand was removed from the repository%s (key record %d, generation %d); %s", when, e.Number, e.Generation, has)
}

// Unwrap gives dr.ErrWrongKey and the error of the attempt.
func (e *ClosedError) Unwrap() []error {
	if e.err == nil {
		return []error{dr.ErrWrongKey}
	}
	return []error{dr.ErrWrongKey, e.err}
}

// Passphrase reports whether a passphrase is among the recipients.
func (e *ClosedError) Passphrase() bool {
	return slices.ContainsFunc(e.Recipients, KeyInfo.IsPassphrase)
}

// IsPassphrase reports whether the recipient is a passphrase.
func (k KeyInfo) IsPassphrase() bool { return seal.Wrap{Recipient: k.Recipient}.IsPassphrase() }

// Exists reports whether the name of a store holds a repository, whoever can
// open it.
func Exists(ctx context.Context, st store.Store) (bool, error) {
	names, err := st.Tags(ctx, Tag{Class: ClassKey}.prefix())
	if err != nil {
		return false, fmt.Errorf("look for a repository: %w", err)
	}
	tags, _ := parseTags(names)
	return len(tags) > 0, nil
}

func keyInfos(k *seal.KeyRecord) []KeyInfo {
	var out []KeyInfo
	for _, w := range k.Wraps {
		out = append(out, KeyInfo{Name: w.Name, Recipient: w.Recipient})
	}
	return out
}

// Keys lists the recipients of the repository's key and the key generation in
// force.
func (r *Repo) Keys(ctx context.Context) ([]KeyInfo, seal.Generation, error) {
	if err := r.refreshKeys(ctx); err != nil {
		return nil, 0, fmt.Errorf("list keys: %w", err)
	}
	k := r.keys.Load()
	return keyInfos(k.record), k.record.Generation, nil
}

// Rewrap gives the recipient of a passphrase again when its wrap has to be
// renewed: a passphrase cannot be wrapped for without knowing it. A
// Rewrap that does not know it returns an error.
type Rewrap func(name string) (seal.Recipient, error)

// ErrSameKey: the key opens the repository already, under another name. It wraps
// dr.ErrHeld.
var ErrSameKey = fmt.Errorf("this key opens the repository already: %w", dr.ErrHeld)

// AddKey lets one more recipient open the repository. dr.ErrHeld when the name
// is taken, when the same key is there under another name (ErrSameKey), or when
// somebody else changed the keys at the same time. Whether two passphrases are the same is not
// looked at.
func (r *Repo) AddKey(ctx context.Context, to seal.Recipient) error {
	return r.changeKeys(ctx, "add key "+to.Name, func(k *seal.KeyRecord, s *seal.Secret) (*seal.Secret, []seal.Wrap, error) {
		for _, w := range k.Wraps {
			if w.Name == to.Name {
				return nil, nil, fmt.Errorf("a recipient of that name exists: %w", dr.ErrHeld)
			}
			if !w.IsPassphrase() && w.Recipient == to.Public {
				return nil, nil, fmt.Errorf("%s is there under the name %q: %w", w.Recipient, w.Name, ErrSameKey)
			}
		}
		w, err := seal.WrapFor(s, to)
		return s, append(k.Wraps[:len(k.Wraps):len(k.Wraps)], w), err
	})
}

// RemoveKey takes a recipient away, under every name that its key has (SameKey),
// and starts a key generation: what is written from now on cannot be opened by
// whoever kept the removed key. What was written before can. Passphrases that stay
// are asked of rewrap.
func (r *Repo) RemoveKey(ctx context.Context, name string, rewrap Rewrap) error {
	return r.changeKeys(ctx, "remove key "+name, func(k *seal.KeyRecord, s *seal.Secret) (*seal.Secret, []seal.Wrap, error) {
		var rest []seal.Wrap
		gone := SameKey(keyInfos(k), name)
		for _, w := range k.Wraps {
			if !slices.Contains(gone, w.Name) {
				rest = append(rest, w)
			}
		}
		if len(rest) == len(k.Wraps) {
			return nil, nil, fmt.Errorf("no recipient of that name: %w", dr.ErrNotFound)
		}
		if len(rest) == 0 {
			return nil, nil, fmt.Errorf("it is the last one; nobody could open the repository: %w", dr.ErrUsage)
		}
		return rotated(s, rest, rewrap)
	})
}

// SameKey returns the names under which the key of a recipient is there: name, and
// others where somebody has added it twice; nil where there is no such name. Each
// passphrase counts as a key of its own.
func SameKey(keys []KeyInfo, name string) (names []string) {
	i := slices.IndexFunc(keys, func(k KeyInfo) bool { return k.Name == name })
	if i < 0 {
		return nil
	}
	for _, k := range keys {
		if k.Name == name || !k.IsPassphrase() && k.Recipient == keys[i].Recipient {
			names = append(names, k.Name)
		}
	}
	return names
}

// RotateKey starts a key generation for the same recipients.
func (r *Repo) RotateKey(ctx context.Context, rewrap Rewrap) error {
	return r.changeKeys(ctx, "rotate key", func(k *seal.KeyRecord, s *seal.Secret) (*seal.Secret, []seal.Wrap, error) {
		return rotated(s, k.Wraps, rewrap)
	})
}

// rotated starts a generation and wraps it for the recipients of old wraps.
func rotated(s *seal.Secret, old []seal.Wrap, rewrap Rewrap) (*seal.Secret, []seal.Wrap, error) {
	next, err := s.Rotated()
	if err != nil {
		return nil, nil, err
	}
	var to []seal.Recipient
	for _, w := range old {
		var rc seal.Recipient
		switch {
		case !w.IsPassphrase():
			rc, err = seal.ParseRecipient(w.Name, w.Recipient)
		case rewrap == nil:
			err = fmt.Errorf("the passphrase %q is needed again, or remove it first: %w", w.Name, dr.ErrUsage)
		default:
			rc, err = rewrap(w.Name)
			rc.Name = w.Name
		}
		if err != nil {
			return nil, nil, err
		}
		to = append(to, rc)
	}
	wraps, err := wrapAll(next, to)
	return next, wraps, err
}

func wrapAll(s *seal.Secret, to []seal.Recipient) ([]seal.Wrap, error) {
	var wraps []seal.Wrap
	for _, rc := range to {
		w, err := seal.WrapFor(s, rc)
		if err != nil {
			return nil, err
		}
		wraps = append(wraps, w)
	}
	return wraps, nil
}

// changeKeys writes the key record that follows the newest one.
func (r *Repo) changeKeys(ctx context.Context, what string, change func(*seal.KeyRecord, *seal.Secret) (*seal.Secret, []seal.Wrap, error)) error {
	if err := r.refreshKeys(ctx); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	k := r.keys.Load()
	secret, wraps, err := change(k.record, r.keyring().Secret())
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	number := k.number
	for range maxLost {
		number++
		rec, err := r.putKeyRecord(ctx, secret, number, wraps)
		if err == nil {
			return r.adopt(secret, rec)
		}
		if !errors.Is(err, store.ErrTagTaken) {
			return fmt.Errorf("%s: %w", what, err)
		}
		// Either somebody else changed the keys, or the tag holds nonsense,
		// which must not keep the operator from changing keys.
		if theirs, gerr := r.keyRecord(ctx, Tag{Class: ClassKey, Number: number}); gerr == nil && theirs.Verify(secret) == nil {
			return fmt.Errorf("%s: somebody else changed the keys at the same time; look at them and try again: %w", what, dr.ErrHeld)
		} else if gerr != nil && !about(gerr) {
			return fmt.Errorf("%s: %w", what, gerr)
		}
	}
	return fmt.Errorf("%s: %d numbers in a row hold something that is no key record of this repository; have an operator delete those tags: %w", what, maxLost, dr.ErrHeld)
}

// putKeyRecord writes and reads back a key record.
func (r *Repo) putKeyRecord(ctx context.Context, s *seal.Secret, n dr.Number, wraps []seal.Wrap) (*seal.KeyRecord, error) {
	t := Tag{Class: ClassKey, Number: n}
	raw, err := seal.EncodeKeyRecord(s, n, wraps)
	if err != nil {
		return nil, err
	}
	if _, err := r.putRecordManifest(ctx, t, raw); err != nil {
		return nil, fmt.Errorf("store %s: %w", t, err)
	}
	rec, err := r.keyRecord(ctx, t)
	if err != nil {
		return nil, fmt.Errorf("read back %s: %w", t, err)
	}
	if err := rec.Verify(s); err != nil {
		return nil, fmt.Errorf("read back %s: %w", t, err)
	}
	return rec, nil
}

// keyRecord reads a key record; it is not yet known to be authentic.
func (r *Repo) keyRecord(ctx context.Context, t Tag) (*seal.KeyRecord, error) {
	m, err := r.st.GetManifest(ctx, t.String())
	if err != nil {
		return nil, err
	}
	raw, err := decodeRecordManifest(m, ClassKey)
	if err != nil {
		return nil, err
	}
	k, err := seal.ParseKeyRecord(raw)
	if err != nil {
		return nil, err
	}
	if k.Number != t.Number {
		return nil, tampered("it says to be key record %d", k.Number)
	}
	return k, nil
}

// refreshKeys finds the newest valid key record. The first time it reads all of
// them; later one question tells that nothing changed.
func (r *Repo) refreshKeys(ctx context.Context) error {
	if k := r.keys.Load(); k != nil {
		next := Tag{Class: ClassKey, Number: k.number + 1}
		if _, err := r.st.ResolveTag(ctx, next.String()); errors.Is(err, store.ErrNotFound) {
			return nil
		} else if err != nil {
			return fmt.Errorf("look for a newer key record: %w", err)
		}
		if len(r.opts.Identities) == 0 && r.opts.Passphrase == nil {
			return nil // made by Create: only a repository opened anew can follow
		}
	}
	names, err := r.st.Tags(ctx, Tag{Class: ClassKey}.prefix())
	if err != nil {
		return fmt.Errorf("list key records: %w", err)
	}
	tags, problems := parseTags(names)
	if len(tags) == 0 {
		return ErrNoRepository
	}
	s := keySearch{repo: r, problems: problems}
	if s.pin, err = r.state.loadPin(r.opts.Location); err != nil {
		return err
	}
	return s.run(ctx, tags)
}

// maxKeyReads bounds how many key records are read, newest first: anybody with a
// login may have put others there. maxKeyTries bounds with how many of them a
// passphrase is tried, which costs a second each.
const (
	maxKeyReads = 256
	maxKeyTries = 16
)

// keySearch chooses among the key records of a repository (docs/adr/0003).
type keySearch struct {
	repo     *Repo
	pin      *pin
	problems []Problem
	mismatch error // opened, but not the repository that is known
	wrong    error // does not open with the key at hand
	closed   []*seal.KeyRecord
	unread   []Problem // of problems, those whose record could not be read
	tries    int       // of a passphrase
}

func (s *keySearch) run(ctx context.Context, tags []Tag) error {
	for i := len(tags) - 1; i >= 0 && len(tags)-i <= maxKeyReads; i-- {
		rec, err := s.repo.keyRecord(ctx, tags[i])
		if err != nil {
			if !about(err) {
				return fmt.Errorf("read key record %s: %w", tags[i], err)
			}
			p := Problem{Tag: tags[i].String(), Err: err}
			s.problems, s.unread = append(s.problems, p), append(s.unread, p)
			continue
		}
		secret, err := s.try(tags[i], rec)
		if err != nil {
			return err
		}
		if secret != nil {
			return s.take(ctx, secret, rec, tags[:i])
		}
	}
	s.report()
	switch {
	case s.mismatch != nil:
		return withProblems(s.mismatch, s.unread)
	case s.wrong != nil:
		return s.wrong
	default:
		return tampered("none of its %d key records is valid", len(tags))
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
		s.problems = append(s.problems, Problem{Tag: t.String(), Err: err})
		return nil, nil
	case err != nil:
		return nil, err
	}
	if err := s.known(secret); err != nil {
		if removed := s.removed(secret); removed != nil && errors.Is(err, errLacksGeneration) {
			return nil, removed
		}
		s.mismatch = errors.Join(s.mismatch, fmt.Errorf("key record %s: %w", t, err))
		s.problems = append(s.problems, Problem{Tag: t.String(), Err: err})
		return nil, nil
	}
	return secret, nil
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
		if !ok && s.repo.opts.AcceptOlder {
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
func (s *keySearch) take(ctx context.Context, secret *seal.Secret, rec *seal.KeyRecord, older []Tag) error {
	if removed := s.removed(secret); removed != nil {
		return removed
	}
	for _, k := range s.closed { // newer ones that did not open
		s.problems = append(s.problems, Problem{Tag: Tag{Class: ClassKey, Number: k.Number}.String(), Err: k.Verify(secret)})
	}
	if s.pin == nil && s.repo.opts.Expect == nil {
		// First use, nothing to compare with: then everything must fit together.
		if err := s.unanimous(ctx, secret, older); err != nil {
			return err
		}
	}
	s.report()
	return s.repo.adopt(secret, rec)
}

func (s *keySearch) unanimous(ctx context.Context, secret *seal.Secret, older []Tag) error {
	for i := len(older) - 1; i >= 0 && len(older)-i <= maxKeyReads; i-- {
		k, err := s.repo.keyRecord(ctx, older[i])
		if err == nil {
			err = k.Verify(secret)
		}
		if err != nil && !about(err) {
			return fmt.Errorf("read key record %s: %w", older[i], err)
		}
		if err != nil {
			s.problems = append(s.problems, Problem{Tag: older[i].String(), Err: err})
		}
	}
	if len(s.problems) > 0 {
		return fmt.Errorf("its key records contradict each other and this host has not used it before; give the fingerprint from the recovery kit: %w", s.problems[0].Err)
	}
	return nil
}

func (s *keySearch) report() {
	for _, p := range s.problems {
		s.repo.log.Warn("a key record does not verify", "problem", p.String())
	}
}
