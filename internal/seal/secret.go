package seal

import (
	"bytes"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strconv"

	"github.com/zeebo/blake3"

	"lifeboat/internal/dr"
)

// SecretFormat is the version of the repository secret that this code writes.
const SecretFormat = 1

const (
	// maxGenerations bounds the data keys of one secret.
	maxGenerations = 4096
	// maxSecret bounds the JSON of a secret, in bytes.
	maxSecret = 1 << 20
)

// Generation is the number of a data key; rotation starts the next. The first
// is 1.
type Generation uint32

// Fingerprint identifies a repository's fixed keys to people and to pins: 16
// bytes derived from the id key, from which nothing can be computed back.
type Fingerprint [16]byte

func (f Fingerprint) String() string { return fmt.Sprintf("%x", f[:]) }

// MarshalText gives the hexadecimal form.
func (f Fingerprint) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%x", f[:]), nil }

// UnmarshalText reads the hexadecimal form.
func (f *Fingerprint) UnmarshalText(b []byte) error {
	var id dr.RepoID // the same 16 bytes in hexadecimal
	if err := id.UnmarshalText(b); err != nil {
		return fmt.Errorf("fingerprint: %w", err)
	}
	*f = Fingerprint(id)
	return nil
}

// Secret is the repository secret: all keys of one repository. It is immutable
// and safe for concurrent use.
type Secret struct {
	repo       dr.RepoID
	idKey      [32]byte
	cutKey     [32]byte
	generation Generation
	dataKeys   map[Generation][32]byte
}

// NewSecret draws a secret for a new repository, of generation 1.
func NewSecret() *Secret {
	s := &Secret{generation: 1, dataKeys: map[Generation][32]byte{1: randomKey()}}
	fill(s.repo[:])
	s.idKey, s.cutKey = randomKey(), randomKey()
	return s
}

// Rotated returns a secret with one more data key, which seals what is new from
// then on. All older keys are kept: what they sealed stays readable.
func (s *Secret) Rotated() (*Secret, error) { return s.RotatedAfter(0) }

// RotatedAfter is Rotated with a generation above given: one whose key was given up
// is not used for another key (docs/format.md, Keys).
func (s *Secret) RotatedAfter(given Generation) (*Secret, error) {
	if len(s.dataKeys) >= maxGenerations {
		return nil, fmt.Errorf("start a key generation: the repository has %d already, the most it can have", len(s.dataKeys))
	}
	n := *s
	n.generation = max(n.generation, given) + 1
	if n.generation == 0 {
		return nil, errors.New("start a key generation: no number is left for it")
	}
	n.dataKeys = maps.Clone(s.dataKeys)
	n.dataKeys[n.generation] = randomKey()
	return &n, nil
}

// Repo is the repository's id.
func (s *Secret) Repo() dr.RepoID { return s.repo }

// Generation is the number of the newest data key.
func (s *Secret) Generation() Generation { return s.generation }

// Generations are the numbers of its data keys, which need not be dense.
func (s *Secret) Generations() []Generation { return slices.Sorted(maps.Keys(s.dataKeys)) }

// CutKey is the key of content-defined cutting and of path hashes. It is secret.
func (s *Secret) CutKey() [32]byte { return s.cutKey }

// Fingerprint identifies the fixed keys of the repository.
func (s *Secret) Fingerprint() (f Fingerprint) {
	k := Derive("lifeboat v1 fingerprint", s.idKey[:])
	copy(f[:], k[:])
	return f
}

// Witness is 8 bytes by which a host that saw generation g before recognises
// its data key without keeping it. ok is false when the secret lacks g.
func (s *Secret) Witness(g Generation) (w [8]byte, ok bool) {
	k, ok := s.dataKeys[g]
	if !ok {
		return w, false
	}
	d := Derive("lifeboat v1 generation witness", k[:])
	copy(w[:], d[:])
	return w, true
}

// String hides the keys.
func (s *Secret) String() string {
	return fmt.Sprintf("[secret of repository %s, generation %d]", s.repo, s.generation)
}

// Format hides the keys from every verb of package fmt.
func (s *Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) } // fmt.State does not fail

// LogValue hides the keys from every handler of log/slog.
func (s *Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// secretJSON is the stored form (docs/format.md, Keys).
type secretJSON struct {
	Format     int               `json:"format"`
	Repo       dr.RepoID         `json:"repo"`
	IDKey      []byte            `json:"id_key"`
	CutKey     []byte            `json:"cut_key"`
	Generation Generation        `json:"generation"`
	DataKeys   map[string][]byte `json:"data_keys"`
}

// encode returns the stored form, which only age files may hold.
func (s *Secret) encode() ([]byte, error) {
	j := secretJSON{
		Format: SecretFormat, Repo: s.repo, IDKey: s.idKey[:], CutKey: s.cutKey[:],
		Generation: s.generation, DataKeys: map[string][]byte{},
	}
	for g, k := range s.dataKeys {
		j.DataKeys[strconv.FormatUint(uint64(g), 10)] = k[:]
	}
	b, err := json.Marshal(j)
	if err != nil {
		return nil, fmt.Errorf("encode repository secret: %w", err)
	}
	return b, nil
}

// decodeSecret reads the stored form. Its errors do not quote the input.
func decodeSecret(b []byte) (*Secret, error) {
	bad := func(what string) (*Secret, error) {
		return nil, fmt.Errorf("repository secret: %s: %w", what, dr.ErrTampered)
	}
	var j secretJSON
	d := json.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(&j); err != nil {
		return bad("not valid JSON")
	}
	if j.Format != SecretFormat {
		return nil, fmt.Errorf("repository secret: format %d; this version of Lifeboat knows %d, use a newer one", j.Format, SecretFormat)
	}
	if len(j.DataKeys) == 0 || len(j.DataKeys) > maxGenerations {
		return bad("number of data keys out of bounds")
	}
	s := &Secret{repo: j.Repo, generation: j.Generation, dataKeys: map[Generation][32]byte{}}
	if !setKey(&s.idKey, j.IDKey) || !setKey(&s.cutKey, j.CutKey) {
		return bad("a key has the wrong length")
	}
	for name, k := range j.DataKeys {
		g, err := strconv.ParseUint(name, 10, 32)
		if err != nil || g == 0 || strconv.FormatUint(g, 10) != name {
			return bad("a key generation is not a number")
		}
		var key [32]byte
		if !setKey(&key, k) {
			return bad("a data key has the wrong length")
		}
		s.dataKeys[Generation(g)] = key
		if Generation(g) > s.generation {
			return bad("a data key is newer than the generation")
		}
	}
	if _, ok := s.dataKeys[s.generation]; !ok {
		return bad("the newest data key is missing")
	}
	return s, nil
}

// Extends reports whether s has every key that o has: the secret of a later
// generation of the same repository, or the same one.
func (s *Secret) Extends(o *Secret) bool {
	same := subtle.ConstantTimeCompare(s.idKey[:], o.idKey[:]) & subtle.ConstantTimeCompare(s.cutKey[:], o.cutKey[:])
	if s.repo != o.repo || same != 1 {
		return false
	}
	for g, k := range o.dataKeys {
		if s.dataKeys[g] != k {
			return false
		}
	}
	return true
}

// Derive is BLAKE3's derive-key mode. context is a constant of docs/format.md;
// the materials are concatenated and must be of fixed length.
func Derive(context string, materials ...[]byte) (key [32]byte) {
	h := blake3.NewDeriveKey(context)
	for _, m := range materials {
		_, _ = h.Write(m) // never fails
	}
	h.Sum(key[:0])
	return key
}

// errKeyLength is returned by no valid call; it keeps keyed total.
var errKeyLength = errors.New("key is not 32 bytes")

// keyed is BLAKE3 keyed with key over the parts.
func keyed(key [32]byte, parts ...[]byte) (sum [32]byte) {
	h, err := blake3.NewKeyed(key[:])
	if err != nil {
		panic(errKeyLength) // the type makes it impossible
	}
	for _, p := range parts {
		_, _ = h.Write(p) // never fails
	}
	h.Sum(sum[:0])
	return sum
}

func setKey(dst *[32]byte, src []byte) bool {
	if len(src) != 32 {
		return false
	}
	copy(dst[:], src)
	return true
}

func randomKey() (k [32]byte) {
	fill(k[:])
	return k
}

// fill draws random bytes. crypto/rand.Read never fails: it ends the program
// when the system has no randomness.
func fill(b []byte) { _, _ = rand.Read(b) }

func b64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }
