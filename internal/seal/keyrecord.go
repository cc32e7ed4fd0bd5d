package seal

import (
	"bytes"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"filippo.io/age"

	"lifeboat/internal/dr"
)

// KeyRecordFormat is the version of key records that this code writes.
const KeyRecordFormat = 1

const (
	// MaxKeyRecord bounds the JSON of a key record, in bytes.
	MaxKeyRecord = 1 << 20
	// maxWraps bounds the wraps of one key record.
	maxWraps = 256
	// maxPassphraseWraps bounds how often scrypt is run for one record.
	maxPassphraseWraps = 4
	// passphraseMark stands for a public key in a wrap for a passphrase.
	passphraseMark = "passphrase"
	// DefaultWorkFactor is the scrypt work factor (2^17: 128 MiB, about 0.4 s)
	// of new passphrase wraps.
	DefaultWorkFactor = 17
	// maxWorkFactor is the largest one accepted when reading (256 MiB): a key
	// record comes from the registry, which is not trusted (invariant 10).
	maxWorkFactor = 18
)

// Recipient is somebody for whom the repository secret is wrapped.
type Recipient struct {
	// Name is for people, unique in a record: 1 to 64 printable characters.
	Name string
	// Public is the age public key ("age1…"), or "passphrase".
	Public string

	age age.Recipient
}

// ParseRecipient makes a recipient of an age public key, X25519 ("age1…") or
// hybrid post-quantum ("age1pq1…"). The error wraps dr.ErrUsage.
func ParseRecipient(name, public string) (Recipient, error) {
	rs, err := age.ParseRecipients(bytes.NewBufferString(public))
	if err != nil || len(rs) != 1 {
		return Recipient{}, fmt.Errorf("recipient %q: %q is not one age public key (age1…): %w", name, public, dr.ErrUsage)
	}
	s, ok := rs[0].(fmt.Stringer)
	if !ok {
		return Recipient{}, fmt.Errorf("recipient %q: unknown kind of age public key: %w", name, dr.ErrUsage)
	}
	r := Recipient{Name: name, Public: s.String(), age: rs[0]}
	return r, r.check()
}

// PassphraseRecipient makes a recipient of a passphrase. workFactor 0 means
// DefaultWorkFactor; tests use less. The error wraps dr.ErrUsage.
func PassphraseRecipient(name, passphrase string, workFactor int) (Recipient, error) {
	if workFactor == 0 {
		workFactor = DefaultWorkFactor
	}
	if workFactor < 1 || workFactor > maxWorkFactor {
		return Recipient{}, fmt.Errorf("recipient %q: scrypt work factor %d: want 1 to %d: %w", name, workFactor, maxWorkFactor, dr.ErrUsage)
	}
	s, err := age.NewScryptRecipient(passphrase)
	if err != nil {
		return Recipient{}, fmt.Errorf("recipient %q: empty passphrase: %w", name, dr.ErrUsage)
	}
	s.SetWorkFactor(workFactor)
	r := Recipient{Name: name, Public: passphraseMark, age: s}
	return r, r.check()
}

func (r Recipient) check() error {
	if !validName(r.Name) {
		return fmt.Errorf("recipient name %q: want 1 to 64 printable characters: %w", r.Name, dr.ErrUsage)
	}
	return nil
}

func validName(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for _, c := range s {
		if c < 0x20 || c == 0x7f || c == '�' {
			return false
		}
	}
	return true
}

// Wrap is the repository secret as an age file for one recipient.
type Wrap struct {
	Name      string `json:"name"`
	Recipient string `json:"recipient"`
	Age       []byte `json:"age"`
}

// IsPassphrase reports whether a passphrase opens the wrap.
func (w Wrap) IsPassphrase() bool { return w.Recipient == passphraseMark }

// WrapFor wraps s for r. "Verify what you just encoded" is the caller's: only
// the recipient can.
func WrapFor(s *Secret, r Recipient) (Wrap, error) {
	plain, err := s.encode()
	if err != nil {
		return Wrap{}, err
	}
	var out bytes.Buffer
	w, err := age.Encrypt(&out, r.age)
	if err == nil {
		if _, err = w.Write(plain); err == nil {
			err = w.Close()
		}
	}
	if err != nil {
		return Wrap{}, fmt.Errorf("wrap repository secret for %q: %w", r.Name, err)
	}
	return Wrap{Name: r.Name, Recipient: r.Public, Age: out.Bytes()}, nil
}

// KeyRecord is what stands under key.<number> (docs/format.md, Keys).
type KeyRecord struct {
	Format int       `json:"format"`
	Repo   dr.RepoID `json:"repo"`
	// Number is that of the tag, so that an old record cannot be passed off as
	// a new one.
	Number     dr.Number  `json:"number"`
	Generation Generation `json:"generation"`
	// After is the number of the record that this one follows, where that is not the
	// one before: the numbers between were squatted, or given up when an older state
	// was accepted. Zero where it needs no saying.
	After dr.Number `json:"after,omitempty"`
	// Created is when the record was made, by the clock of who made it: for
	// people. Zero in records of earlier versions.
	Created time.Time `json:"created,omitzero"`
	Wraps   []Wrap    `json:"wraps"`

	body, mac []byte
}

// EncodeKeyRecord returns the JSON of a record that carries s in the given
// wraps, with its MAC as the last member.
func EncodeKeyRecord(s *Secret, number dr.Number, wraps []Wrap) ([]byte, error) {
	return EncodeKeyRecordAfter(s, number, 0, wraps)
}

// EncodeKeyRecordAfter is EncodeKeyRecord of a record that follows number after
// (KeyRecord.After).
func EncodeKeyRecordAfter(s *Secret, number, after dr.Number, wraps []Wrap) ([]byte, error) {
	k := KeyRecord{Format: KeyRecordFormat, Repo: s.repo, Number: number, After: after, Generation: s.generation, Created: time.Now().UTC().Truncate(time.Second), Wraps: wraps}
	if err := k.check(); err != nil {
		return nil, fmt.Errorf("key record: %w: %w", err, dr.ErrUsage)
	}
	body, err := json.Marshal(k)
	if err != nil {
		return nil, fmt.Errorf("encode key record: %w", err)
	}
	mac := keyRecordMAC(s, body)
	out := appendLast(body, "mac", mac[:])
	if len(out) > MaxKeyRecord {
		return nil, fmt.Errorf("key record: %d bytes, the most is %d: %w", len(out), MaxKeyRecord, dr.ErrUsage)
	}
	return out, nil
}

// ParseKeyRecord reads and bounds a key record. Nothing in it is authentic
// before Open or Verify. The error wraps dr.ErrTampered.
func ParseKeyRecord(raw []byte) (*KeyRecord, error) {
	bad := func(err error) (*KeyRecord, error) {
		return nil, fmt.Errorf("key record: %w: %w", err, dr.ErrTampered)
	}
	if len(raw) > MaxKeyRecord {
		return bad(fmt.Errorf("%d bytes, the most is %d", len(raw), MaxKeyRecord))
	}
	body, mac, err := splitLast(raw, "mac", 32)
	if err != nil {
		return bad(err)
	}
	var k KeyRecord
	if err := json.Unmarshal(raw, &k); err != nil {
		return bad(err)
	}
	if k.Format != KeyRecordFormat {
		return nil, fmt.Errorf("key record: format %d; this version of Lifeboat knows %d, use a newer one: %w", k.Format, KeyRecordFormat, dr.ErrTampered)
	}
	if err := k.check(); err != nil {
		return bad(err)
	}
	k.body, k.mac = body, mac
	return &k, nil
}

func (k *KeyRecord) check() error {
	if k.Generation == 0 || k.Number == 0 {
		return errors.New("number or generation is zero")
	}
	if k.After != 0 && k.After >= k.Number {
		return errors.New("it says to follow a later record")
	}
	if len(k.Wraps) == 0 || len(k.Wraps) > maxWraps {
		return fmt.Errorf("%d wraps, want 1 to %d", len(k.Wraps), maxWraps)
	}
	seen := map[string]bool{}
	passphrases := 0
	for _, w := range k.Wraps {
		if !validName(w.Name) || len(w.Recipient) > 4096 || len(w.Age) > maxSecret {
			return errors.New("a wrap is out of bounds")
		}
		if seen[w.Name] {
			return fmt.Errorf("two wraps are named %q", w.Name)
		}
		seen[w.Name] = true
		if w.IsPassphrase() {
			passphrases++
		}
	}
	if passphrases > maxPassphraseWraps {
		return fmt.Errorf("%d passphrases, the most is %d", passphrases, maxPassphraseWraps)
	}
	return nil
}

// Open unwraps the secret with one of the identities, or else with the
// passphrase; passphrase may be nil and is called at most once, and only when a
// wrap for a passphrase exists. The record's MAC and its statements about the
// secret are verified. Errors: dr.ErrWrongKey when nothing at hand opens it,
// dr.ErrTampered when it opens but does not fit.
func (k *KeyRecord) Open(ids []age.Identity, passphrase func() (string, error)) (*Secret, error) {
	var damaged error
	for _, w := range k.Wraps {
		if w.IsPassphrase() || len(ids) == 0 {
			continue
		}
		s, err := k.unwrap(w, ids)
		if s != nil {
			return s, nil
		}
		damaged = errors.Join(damaged, err)
	}
	if passphrase != nil && k.HasPassphrase() {
		s, err := k.openPassphrase(passphrase)
		if s != nil || (err != nil && !errors.Is(err, dr.ErrTampered)) {
			return s, err
		}
		damaged = errors.Join(damaged, err)
	}
	if damaged != nil {
		return nil, damaged
	}
	names := make([]string, 0, len(k.Wraps))
	for _, w := range k.Wraps {
		names = append(names, fmt.Sprintf("%s (%s)", w.Name, w.Recipient))
	}
	return nil, fmt.Errorf("no key at hand opens repository %s; its recipients are %q: %w", k.Repo, names, dr.ErrWrongKey)
}

// HasPassphrase reports whether a passphrase can open the record.
func (k *KeyRecord) HasPassphrase() bool {
	for _, w := range k.Wraps {
		if w.IsPassphrase() {
			return true
		}
	}
	return false
}

func (k *KeyRecord) openPassphrase(passphrase func() (string, error)) (*Secret, error) {
	p, err := passphrase()
	if err != nil {
		return nil, fmt.Errorf("read passphrase: %w", err)
	}
	id, err := age.NewScryptIdentity(p)
	if err != nil {
		return nil, fmt.Errorf("empty passphrase: %w", dr.ErrWrongKey)
	}
	id.SetMaxWorkFactor(maxWorkFactor)
	var damaged error
	for _, w := range k.Wraps {
		if !w.IsPassphrase() {
			continue
		}
		s, err := k.unwrap(w, []age.Identity{id})
		if s != nil {
			return s, nil
		}
		damaged = errors.Join(damaged, err)
	}
	return nil, damaged
}

// unwrap opens one wrap. It returns nil, nil when it is for somebody else.
func (k *KeyRecord) unwrap(w Wrap, ids []age.Identity) (*Secret, error) {
	bad := func(err error) (*Secret, error) {
		return nil, fmt.Errorf("key record of repository %s: wrap for %q: %w: %w", k.Repo, w.Name, err, dr.ErrTampered)
	}
	r, err := age.Decrypt(bytes.NewReader(w.Age), ids...)
	var none *age.NoIdentityMatchError
	if errors.As(err, &none) {
		return nil, nil
	}
	if err != nil {
		return bad(err)
	}
	plain, err := io.ReadAll(io.LimitReader(r, maxSecret+1))
	if err != nil {
		return bad(err)
	}
	if len(plain) > maxSecret {
		return bad(fmt.Errorf("the secret is larger than %d bytes", maxSecret))
	}
	s, err := decodeSecret(plain)
	if err != nil {
		return nil, fmt.Errorf("key record of repository %s: wrap for %q: %w", k.Repo, w.Name, err)
	}
	if s.repo != k.Repo || s.generation != k.Generation {
		return bad(errors.New("it holds the secret of another repository or generation"))
	}
	if err := k.Verify(s); err != nil {
		return nil, err
	}
	return s, nil
}

// Verify checks that the record was made by somebody who knows the repository
// of s. The error wraps dr.ErrTampered.
func (k *KeyRecord) Verify(s *Secret) error {
	mac := keyRecordMAC(s, k.body)
	if k.Repo != s.repo || subtle.ConstantTimeCompare(mac[:], k.mac) != 1 {
		return fmt.Errorf("key record %d was not made by a holder of the key of repository %s: %w", k.Number, s.repo, dr.ErrTampered)
	}
	return nil
}

func keyRecordMAC(s *Secret, body []byte) [32]byte {
	return keyed(Derive("lifeboat v1 key record", s.idKey[:]), body)
}
