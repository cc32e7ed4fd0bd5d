package repo

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/google/renameio/v2"
	"github.com/opencontainers/go-digest"
	"github.com/zeebo/blake3"

	"lifeboat/internal/dr"
	"lifeboat/internal/seal"
)

// pin is what a host remembers of a repository since it first used it
// (docs/adr/0003). A repository that shows another is not the same one.
type pin struct {
	Location    string           `json:"location"`
	Repo        dr.RepoID        `json:"repo"`
	Fingerprint seal.Fingerprint `json:"fingerprint"`
	// Witnesses recognise the data keys seen so far, by generation. Somebody
	// who was removed knows the fixed keys, but not those of later generations.
	Witnesses map[seal.Generation]string `json:"witnesses"`
}

// state is what a host remembers locally of a repository. Losing it loses no
// snapshot: it guards (pins, marks) and saves work (pending, read). Safe for
// concurrent use, also by several processes. Without a directory it is kept in
// memory.
type state struct {
	base string // "" means memory
	dir  string // of this repository, below base

	mu      sync.Mutex
	began   time.Time                // when this process did
	mem     marks                    // where there is no directory
	firm    map[string]digest.Digest // seen under a tag before this process began
	fresh   map[string]digest.Digest // and since
	kept    int                      // of fresh, when the older ones were last forgotten
	pending map[digest.Digest]dr.System
	read    map[digest.Digest][]byte
	lost    map[digest.Digest]bool
	unused  map[digest.Digest]unneeded
	small   map[string][]byte
}

func newState(base string) *state {
	return &state{base: base, began: time.Now(), mem: newMarks(), firm: map[string]digest.Digest{}, fresh: map[string]digest.Digest{}, pending: map[digest.Digest]dr.System{}, read: map[digest.Digest][]byte{}, lost: map[digest.Digest]bool{}, unused: map[digest.Digest]unneeded{}, small: map[string][]byte{}}
}

// use chooses the directory of a repository.
func (s *state) use(id dr.RepoID) error {
	if s.base == "" {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dir = filepath.Join(s.base, "repositories", id.String())
	for _, d := range []string{"pending", "read", "lost", "unneeded"} {
		if err := os.MkdirAll(filepath.Join(s.dir, d), 0o700); err != nil {
			return fmt.Errorf("local state: %w", err)
		}
	}
	return nil
}

// place is the directory of the repository, "" for memory.
func (s *state) place() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dir
}

func (s *state) pinFile(location string) string {
	sum := blake3.Sum256([]byte(location))
	return filepath.Join(s.base, "pins", hex.EncodeToString(sum[:16])+".json")
}

// loadPin returns the pin of a location, nil when it was never used.
func (s *state) loadPin(location string) (*pin, error) {
	if s.base == "" {
		return nil, nil
	}
	name := s.pinFile(location)
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("local state: %w", err)
	}
	var p pin
	if err := json.Unmarshal(b, &p); err != nil {
		return nil, fmt.Errorf("local state: %s is damaged (%w); compare the fingerprint in the recovery kit, then delete the file", name, err)
	}
	return &p, nil
}

// savePin remembers a repository, durably.
func (s *state) savePin(p pin) error {
	if s.base == "" {
		return nil
	}
	name := s.pinFile(p.Location)
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return fmt.Errorf("local state: %w", err)
	}
	b, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("local state: %w", err)
	}
	return writeFile(name, b)
}

// writeFile replaces a file, durably: whole or not at all.
func writeFile(name string, b []byte) error {
	dir := filepath.Dir(name)
	if err := renameio.WriteFile(name, b, 0o600, renameio.WithTempDir(dir)); err != nil {
		return fmt.Errorf("local state: %w", err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("local state: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("local state: %w", err)
	}
	return nil
}

// writeHint replaces a file, whole or not at all, unless the power fails: what it
// holds only saves work, and its readers notice when it is cut off.
func writeHint(name string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".hint-*") // mode 0600
	if err != nil {
		return fmt.Errorf("local state: %w", err)
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("local state: %w", err), os.Remove(f.Name()))
	}
	return nil
}

// locked runs fn while no other process changes this repository's state.
func (s *state) locked(fn func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dir == "" {
		return fn()
	}
	f, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("local state: %w", err)
	}
	defer func() { _ = f.Close() }() // which also unlocks
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("local state: lock %s: %w", f.Name(), err)
	}
	return fn()
}

// addPending notes a pack manifest of one's own that no snapshot of the system
// names yet.
func (s *state) addPending(d digest.Digest, system dr.System) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dir == "" {
		s.pending[d] = system
		return nil
	}
	return writeHint(filepath.Join(s.dir, "pending", d.Encoded()), []byte(system))
}

// dropPending forgets a pack manifest that a snapshot names or that is gone.
func (s *state) dropPending(d digest.Digest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pending, d)
	if s.dir == "" {
		return nil
	}
	if err := os.Remove(filepath.Join(s.dir, "pending", d.Encoded())); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("local state: %w", err)
	}
	return nil
}

// listPending returns the pack manifests of interrupted runs and the systems
// that they were for.
func (s *state) listPending() (map[digest.Digest]dr.System, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dir == "" {
		return maps.Clone(s.pending), nil
	}
	list, err := s.digestFiles("pending")
	if err != nil {
		return nil, err
	}
	out := map[digest.Digest]dr.System{}
	for _, d := range list {
		b, err := os.ReadFile(filepath.Join(s.dir, "pending", d.Encoded()))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("local state: %w", err)
		}
		out[d] = dr.System(b)
	}
	return out, nil
}

// digestFiles lists the files of a directory that are named by a digest.
func (s *state) digestFiles(dir string) ([]digest.Digest, error) {
	list, err := os.ReadDir(filepath.Join(s.dir, dir))
	if err != nil {
		return nil, fmt.Errorf("local state: %w", err)
	}
	var out []digest.Digest
	for _, e := range list {
		// Leftovers of a write that was cut off are not digests.
		if d := digest.NewDigestFromEncoded(digest.SHA256, e.Name()); d.Validate() == nil {
			out = append(out, d)
		}
	}
	return out, nil
}

// setLost remembers whether a pack manifest was found not to be whole: then
// nothing new relies upon it, and what it held is sent again.
func (s *state) setLost(d digest.Digest, lost bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dir == "" {
		s.lost[d] = lost
		return nil
	}
	name := filepath.Join(s.dir, "lost", d.Encoded())
	if lost {
		return writeHint(name, nil)
	}
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("local state: %w", err)
	}
	return nil
}

// listLost returns the pack manifests that were found not to be whole.
func (s *state) listLost() (map[digest.Digest]bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dir == "" {
		return maps.Clone(s.lost), nil
	}
	list, err := s.digestFiles("lost")
	out := map[digest.Digest]bool{}
	for _, d := range list {
		out[d] = true
	}
	return out, err
}

// unneeded is what a host that collects remembers of a pack manifest that no tag
// listed when it last looked.
type unneeded struct {
	// Since is when it was first seen so, by this host's clock.
	Since time.Time `json:"since"`
	// Untagged is when its tag was removed; zero while it has one.
	Untagged time.Time `json:"untagged,omitzero"`
}

// setUnneeded remembers it, durably: it is the only trace of a manifest whose
// tag is gone.
func (s *state) setUnneeded(d digest.Digest, u unneeded) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dir == "" {
		s.unused[d] = u
		return nil
	}
	b, err := json.Marshal(u)
	if err != nil {
		return fmt.Errorf("local state: %w", err)
	}
	return writeFile(filepath.Join(s.dir, "unneeded", d.Encoded()), b)
}

// dropUnneeded forgets a manifest that is needed again, or gone.
func (s *state) dropUnneeded(d digest.Digest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.unused, d)
	if s.dir == "" {
		return nil
	}
	if err := os.Remove(filepath.Join(s.dir, "unneeded", d.Encoded())); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("local state: %w", err)
	}
	return nil
}

// listUnneeded returns what is remembered. What cannot be read counts as seen
// for the first time at zero time; the caller begins anew with it.
func (s *state) listUnneeded() (map[digest.Digest]unneeded, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dir == "" {
		return maps.Clone(s.unused), nil
	}
	list, err := s.digestFiles("unneeded")
	if err != nil {
		return nil, err
	}
	out := map[digest.Digest]unneeded{}
	for _, d := range list {
		b, err := os.ReadFile(filepath.Join(s.dir, "unneeded", d.Encoded()))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("local state: %w", err)
		}
		var u unneeded
		if json.Unmarshal(b, &u) != nil {
			u = unneeded{}
		}
		out[d] = u
	}
	return out, nil
}

// readBits loads which groups of a foreign pack manifest this host has read and
// found to be what the index says: bit i for group i.
func (s *state) readBits(d digest.Digest, groups int) (bits []uint64, err error) {
	bits = make([]uint64, (groups+63)/64)
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.read[d]
	if s.dir != "" {
		b, err = os.ReadFile(filepath.Join(s.dir, "read", d.Encoded()))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("local state: %w", err)
		}
	}
	b, ok := checkSum(b)
	if !ok || len(b) != 8*len(bits) {
		return bits, nil // nothing known: it costs reading again
	}
	for i := range bits {
		bits[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	return bits, nil
}

// mergeReadBits adds to what is remembered.
func (s *state) mergeReadBits(d digest.Digest, groups int, bits []uint64) error {
	have, err := s.readBits(d, groups)
	if err != nil {
		return err
	}
	var b []byte
	for i := range have {
		b = binary.LittleEndian.AppendUint64(b, have[i]|bits[i])
	}
	b = addSum(b)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dir == "" {
		s.read[d] = b
		return nil
	}
	return writeHint(filepath.Join(s.dir, "read", d.Encoded()), b)
}

// addSum and checkSum guard the bits against a damaged disk: a bit that flips
// would count a group as read that was not.
func addSum(b []byte) []byte {
	sum := blake3.Sum256(b)
	return append(b, sum[:8]...)
}

func checkSum(b []byte) ([]byte, bool) {
	if len(b) < 8 {
		return nil, false
	}
	body := b[:len(b)-8]
	sum := blake3.Sum256(body)
	return body, string(sum[:8]) == string(b[len(b)-8:])
}

// readSmall returns a file of this repository's state, nil where there is none.
func (s *state) readSmall(name string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dir == "" {
		return s.small[name], nil
	}
	b, err := os.ReadFile(filepath.Join(s.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("local state: %w", err)
	}
	return b, nil
}

// writeSmall replaces a file, durably; nil removes it.
func (s *state) writeSmall(name string, b []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.dir == "" && b == nil:
		delete(s.small, name)
		return nil
	case s.dir == "":
		s.small[name] = b
		return nil
	case b != nil:
		return writeFile(filepath.Join(s.dir, name), b)
	}
	if err := os.Remove(filepath.Join(s.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("local state: %w", err)
	}
	return nil
}
