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
		return r.rotated(s, rest, rewrap)
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
		return r.rotated(s, k.Wraps, rewrap)
	})
}

// rotated starts a generation and wraps it for the recipients of old wraps. It has a
// number that no key had that was given up: who has seen that one takes no other for
// it.
func (r *Repo) rotated(s *seal.Secret, old []seal.Wrap, rewrap Rewrap) (*seal.Secret, []seal.Wrap, error) {
	given, err := r.state.givenGeneration()
	if err != nil {
		return nil, nil, err
	}
	next, err := s.RotatedAfter(given)
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
	number, err := r.state.givenUp(Tag{Class: ClassKey}.prefix())
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	number = max(number, k.number)
	for range maxLost {
		number++
		rec, err := r.putKeyRecord(ctx, secret, number, k.number, wraps)
		if err == nil {
			return r.adoptCopy(secret, rec)
		}
		if !errors.Is(err, store.ErrTagTaken) {
			return fmt.Errorf("%s: %w", what, err)
		}
		// Either somebody else changed the keys, or the tag holds nonsense,
		// which must not keep the operator from changing keys.
		if theirs, gerr := r.keyRecord(ctx, Tag{Class: ClassKey, Number: number}); gerr == nil && theirs.Verify(secret) == nil {
			return fmt.Errorf("%s: somebody else changed the keys at the same time; look at them and try again: %w", what, dr.ErrHeld)
		} else if errors.Is(gerr, store.ErrDigestMismatch) {
			return fmt.Errorf("%s: key record %d is damaged and may be newer than what this host knows; put it back first (lifeboat repair), or if nothing has a copy of it have an operator delete its tag: %w: %w", what, number, gerr, dr.ErrHeld)
		} else if gerr != nil && !about(gerr) {
			return fmt.Errorf("%s: %w", what, gerr)
		}
	}
	return fmt.Errorf("%s: %d numbers in a row hold something that is no key record of this repository; have an operator delete those tags: %w", what, maxLost, dr.ErrHeld)
}

// putKeyRecord writes and reads back a key record, which follows number after.
func (r *Repo) putKeyRecord(ctx context.Context, s *seal.Secret, n, after dr.Number, wraps []seal.Wrap) (*keyCopy, error) {
	t := Tag{Class: ClassKey, Number: n}
	if after+1 == n {
		after = 0 // needs no saying
	}
	raw, err := seal.EncodeKeyRecordAfter(s, n, after, wraps)
	if err != nil {
		return nil, err
	}
	if _, err := r.putRecordManifest(ctx, t, raw); err != nil {
		return nil, fmt.Errorf("store %s: %w", t, err)
	}
	rec, m, err := readKeyRecord(ctx, r.st, t)
	if err != nil {
		return nil, fmt.Errorf("read back %s: %w", t, err)
	}
	if err := rec.Verify(s); err != nil {
		return nil, fmt.Errorf("read back %s: %w", t, err)
	}
	return &keyCopy{tag: t, record: rec, m: m}, nil
}

// keyRecord reads a key record; it is not yet known to be authentic.
func (r *Repo) keyRecord(ctx context.Context, t Tag) (*seal.KeyRecord, error) {
	k, _, err := readKeyRecord(ctx, r.st, t)
	return k, err
}

// readKeyRecord reads a key record of any registry, with its manifest.
func readKeyRecord(ctx context.Context, st store.Store, t Tag) (*seal.KeyRecord, store.Manifest, error) {
	m, err := st.GetManifest(ctx, t.String())
	if err != nil {
		return nil, m, err
	}
	k, err := parseKeyManifest(t, m)
	return k, m, err
}

// parseKeyManifest takes a key record out of its manifest. The error wraps
// dr.ErrTampered.
func parseKeyManifest(t Tag, m store.Manifest) (*seal.KeyRecord, error) {
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
