package repo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"lifeboat/internal/dr"
	"lifeboat/internal/seal"
	"lifeboat/internal/store"
)

// marks are what a host remembers of the newest state of a repository that it
// has seen, so that it notices when it is shown an older one or another
// (docs/threat-model.md).
type marks struct {
	// Numbers are the highest verified ones, by tag prefix ("e.shop.").
	Numbers map[string]dr.Number `json:"numbers"`
	// Seen are the manifests that verified under the newest tags of each prefix.
	Seen map[string]digest.Digest `json:"seen"`
	// Forgotten are the newest tags that this host took away itself, with when (unix
	// seconds): another process of it that has seen them does not remember them anew.
	Forgotten map[string]int64 `json:"forgotten,omitempty"`
	// Own are the highest numbers that this host itself has given to snapshots.
	Own map[string]dr.Number `json:"own,omitempty"`
	// Given are the highest numbers that snapshots and key records had when an older
	// state was accepted: nothing else gets one of them.
	Given map[string]dr.Number `json:"given,omitempty"`
	// Generation is the highest key generation that there was then: no other key gets
	// one of those numbers.
	Generation seal.Generation `json:"generation,omitempty"`
	// Setbacks are the older states that were shown and that nobody has accepted.
	Setbacks map[string][]setback `json:"setbacks,omitempty"`
	// Ended are records that cannot be read and that the operator has given up here.
	Ended map[string]bool `json:"ended,omitempty"`
}

func newMarks() marks {
	return marks{
		Numbers: map[string]dr.Number{}, Seen: map[string]digest.Digest{}, Forgotten: map[string]int64{},
		Own: map[string]dr.Number{}, Given: map[string]dr.Number{}, Setbacks: map[string][]setback{},
		Ended: map[string]bool{},
	}
}

// seenPerPrefix is how many of the newest tags of one class and system are
// remembered with what they name.
const seenPerPrefix = 64

// forgottenPerPrefix is the same of what this host took away itself.
const forgottenPerPrefix = 512

// takingAway is how long after it was noted that a tag is taken away it may still be
// there. What is there later was put back.
const takingAway = time.Hour

// maxFresh is at how many tags of one process the older ones are forgotten.
const maxFresh = 4096

// loadMarks reads the marks; the caller holds the lock.
func (s *state) loadMarks() (marks, error) {
	if s.dir == "" {
		return s.mem, nil
	}
	name := filepath.Join(s.dir, "marks.json")
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return newMarks(), nil
	}
	if err != nil {
		return newMarks(), fmt.Errorf("local state: %w", err)
	}
	m := newMarks()
	if err := json.Unmarshal(b, &m); err != nil || m.Numbers == nil || m.Seen == nil || m.Forgotten == nil || m.Own == nil || m.Given == nil || m.Setbacks == nil || m.Ended == nil {
		return newMarks(), fmt.Errorf("%w: %s; compare with another host what the repository's newest snapshots are, then delete it to trust what the repository shows now", errMarksDamaged, name)
	}
	return m, nil
}

var errMarksDamaged = errors.New("local state: what this host remembers of the repository is damaged")

// recall loads what was seen before this process began.
func (s *state) recall() error {
	return s.locked(func() error {
		m, err := s.loadMarks()
		if err == nil && s.dir != "" {
			s.firm = m.Seen
		}
		return err
	})
}

// mark returns the highest number ever known to have been given under a tag
// prefix, 0 for none; accepted older states do not lower it.
func (s *state) mark(prefix string) (n dr.Number, err error) {
	err = s.locked(func() error {
		m, err := s.loadMarks()
		n = max(m.Numbers[prefix], m.Given[prefix])
		return err
	})
	return n, err
}

// changeMarks changes what is remembered, durably; fn reports whether it did.
func (s *state) changeMarks(fn func(m *marks) bool) error {
	return s.locked(func() error {
		m, err := s.loadMarks()
		if err != nil || !fn(&m) {
			return err
		}
		return s.saveMarks(m)
	})
}

// saveMarks writes the marks, durably; the caller holds the lock.
func (s *state) saveMarks(m marks) error {
	if s.dir == "" {
		s.mem = m
		return nil
	}
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("local state: %w", err)
	}
	return writeFile(filepath.Join(s.dir, "marks.json"), b)
}

// raise remembers that numbers were seen under tag prefixes, and what verified
// under which tag since the last time.
func (s *state) raise(numbers map[string]dr.Number) error {
	return s.changeMarks(func(m *marks) bool {
		if !raiseAll(m.Numbers, numbers) {
			return false
		}
		s.addFresh(m)
		return true
	})
}

// raiseOwn is raise for what this host has written itself.
func (s *state) raiseOwn(numbers map[string]dr.Number) error {
	return s.changeMarks(func(m *marks) bool {
		changed := raiseAll(m.Numbers, numbers)
		if !raiseAll(m.Own, numbers) && !changed {
			return false
		}
		s.addFresh(m)
		return true
	})
}

// addFresh adds what this process has seen to verify; the caller holds the lock.
func (s *state) addFresh(m *marks) {
	for name, d := range s.fresh {
		if !s.tookAway(m, name) {
			m.Seen[name] = d
		}
	}
	m.forgetOld()
}

// tookAway reports whether this host took a tag away itself and this process cannot
// have seen it put back; the caller holds the lock.
func (s *state) tookAway(m *marks, name string) bool {
	at, ok := m.Forgotten[name]
	return ok && time.Unix(at, 0).After(s.began.Add(-takingAway))
}

func raiseAll(have, numbers map[string]dr.Number) (changed bool) {
	for prefix, n := range numbers {
		if n > have[prefix] {
			have[prefix], changed = n, true
		}
	}
	return changed
}

// unsee forgets what was seen under tags: this host takes them away itself.
func (s *state) unsee(tags []Tag) error {
	return s.changeMarks(func(m *marks) bool {
		now := time.Now().Unix()
		for _, t := range tags {
			name := t.String()
			delete(m.Seen, name)
			delete(s.firm, name)
			delete(s.fresh, name)
			m.Forgotten[name] = now
		}
		m.forgetOld()
		return len(tags) > 0
	})
}

// forgetOld keeps the newest tags of each prefix.
func (m marks) forgetOld() {
	keepNewest(m.Seen, seenPerPrefix)
	keepNewest(m.Forgotten, forgottenPerPrefix)
}

// keepNewest keeps the n newest tags of each prefix.
func keepNewest[V any](tagged map[string]V, n int) {
	byPrefix := map[string][]Tag{}
	for name := range tagged {
		t, err := ParseTag(name)
		if err != nil {
			delete(tagged, name)
			continue
		}
		byPrefix[t.prefix()] = append(byPrefix[t.prefix()], t)
	}
	for _, tags := range byPrefix {
		slices.SortFunc(tags, compareTags)
		for _, t := range tags[:max(0, len(tags)-n)] {
			delete(tagged, t.String())
		}
	}
}

// allMarks returns a copy of all numbers.
func (s *state) allMarks() (all map[string]dr.Number, err error) {
	err = s.locked(func() error {
		m, err := s.loadMarks()
		all = maps.Clone(m.Numbers)
		return err
	})
	return all, err
}

// givenUp returns the highest number that there was under a tag prefix when an older
// state was accepted, 0 for none.
func (s *state) givenUp(prefix string) (n dr.Number, err error) {
	err = s.locked(func() error {
		m, err := s.loadMarks()
		n = m.Given[prefix]
		return err
	})
	return n, err
}

// givenGeneration returns the highest key generation that there was when an older
// state was accepted, 0 for none.
func (s *state) givenGeneration() (g seal.Generation, err error) {
	err = s.locked(func() error {
		m, err := s.loadMarks()
		g = m.Generation
		return err
	})
	return g, err
}

// resetMarks forgets all marks. The numbers that snapshots and key records had, here
// and as far as a kit knows, and key generations up to g are not given to others all
// the same, unless there would be none left (TestNumbersAreUsedUp).
func (s *state) resetMarks(kit map[string]dr.Number, g seal.Generation) error {
	return s.locked(func() error {
		old, err := s.loadMarks()
		if err != nil && !errors.Is(err, errMarksDamaged) {
			return err
		}
		m := newMarks()
		m.Generation, m.Ended = max(old.Generation, g), old.Ended
		for _, numbers := range []map[string]dr.Number{old.Given, old.Numbers, kit} {
			for prefix, n := range numbers {
				if t, err := ParseTag(prefix + "1"); err == nil && (t.Class == ClassSnapshot || t.Class == ClassKey) && n < maxNumber {
					m.Given[prefix] = max(m.Given[prefix], n)
				}
			}
		}
		clear(s.firm)
		clear(s.fresh)
		return s.saveMarks(m)
	})
}

// witness notes what verified under a tag and returns what was seen there
// before, "" for the same or nothing. firm says that an earlier process saw it:
// then it was no race that was being decided.
func (s *state) witness(t Tag, d digest.Digest) (before digest.Digest, firm bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := t.String()
	if was, ok := s.firm[name]; ok && was != d {
		return was, true
	}
	was := s.fresh[name]
	s.fresh[name] = d
	if len(s.fresh) > max(maxFresh, 2*s.kept) { // thousands of snapshots: the newest are those that count
		keepNewest(s.fresh, seenPerPrefix)
		s.kept = len(s.fresh)
	}
	if was == "" || was == d {
		return "", false
	}
	return was, false
}

// seenUnder returns the tags of a prefix that this host has seen to verify.
func (s *state) seenUnder(prefix string) (tags []Tag) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range []map[string]digest.Digest{s.firm, s.fresh} {
		for name := range m {
			if t, err := ParseTag(name); err == nil && t.prefix() == prefix {
				tags = append(tags, t)
			}
		}
	}
	slices.SortFunc(tags, compareTags)
	return slices.Compact(tags)
}

// acceptOlder ends each error that a host's memory causes.
const acceptOlder = "mend it (lifeboat repair); if the registry was restored from a backup of its own, or is a mirror that was behind when the other was lost, and its newest snapshots are lost, accept the older state (--accept-older), else find out who deleted them"

// checkMark compares the newest numbers under a prefix with the mark that was
// there before the tags were listed, and raises the mark: another process of this
// host may have seen more since. valid is the highest that counts; shown the highest that somebody who
// was enrolled once has signed: what a host wrote that was revoked since shows
// that the registry was not set back, and raises nothing. The error wraps
// dr.ErrTampered.
func (r *Repo) checkMark(before map[string]dr.Number, prefix string, valid, shown dr.Number) error {
	mark := before[prefix]
	if newest := max(valid, shown); newest < mark {
		if store.Lagging(r.st) {
			r.mirrorBehind(fmt.Sprintf("the newest record under %s* is number %d there, this host has seen number %d", prefix, newest, mark))
			return nil
		}
		err := tampered("the registry shows an older state of the repository: the newest valid record under %s* is number %d, this host has seen number %d; %s", prefix, newest, mark, acceptOlder)
		// The next snapshot takes a higher number: it must not hide this.
		if serr := r.state.noteSetback(prefix, newest, mark, time.Now()); serr != nil {
			err = errors.Join(err, fmt.Errorf("this is not remembered: %w", serr))
		}
		return err
	}
	if valid > mark {
		return r.state.raise(map[string]dr.Number{prefix: valid})
	}
	return nil
}

// checkShown looks whether a listing still has every tag of a class whose tags
// are never deleted that this host has seen to verify. The error wraps
// dr.ErrTampered.
func (r *Repo) checkShown(prefix string, names []string) error {
	for _, t := range r.state.seenUnder(prefix) {
		if !slices.Contains(names, t.String()) && store.Lagging(r.st) {
			r.mirrorBehind(fmt.Sprintf("%s is not listed there, and this host has seen it", t))
			return nil
		}
		if !slices.Contains(names, t.String()) {
			return tampered("the registry shows an older state of the repository, or leaves something out: %s is not listed, and this host has seen it; %s", t, acceptOlder)
		}
	}
	return nil
}

// witness compares what verified under a tag with what this host has seen there
// before: no tag ever moves (invariant 11). Two records can verify under one
// tag where a registry shows different hosts different states, or let two
// writers win. What changes while this process runs is told and goes on, for
// it may be such a race that is being decided (docs/adr/0001); what an earlier
// process saw is an error that wraps dr.ErrTampered.
func (r *Repo) witness(t Tag, d digest.Digest) error {
	before, firm := r.state.witness(t, d)
	if before == "" {
		return nil
	}
	if firm {
		return tampered("tag %s names %s, and this host has seen %s there: the tag was moved, or the registry shows different hosts different states; %s", t, d, before, acceptOlder)
	}
	r.notice(fmt.Sprintf("tag %s named %s a moment ago and names %s now: two writers used one number, or the registry shows different hosts different states; look at who writes", t, before, d))
	return nil
}

// trustKit remembers the numbers of a recovery kit.
func (r *Repo) trustKit() error {
	out := map[string]dr.Number{}
	for prefix, n := range r.opts.Marks {
		if t, err := ParseTag(prefix + "1"); err != nil || !strings.HasSuffix(prefix, ".") || t.prefix() != prefix {
			return fmt.Errorf("the recovery kit speaks of numbers under %q, which is no class of tags: %w", prefix, dr.ErrUsage)
		}
		out[prefix] = n
	}
	return r.state.raise(out)
}

// checkMarks looks whether the records of any system show less than this host
// has seen.
func (r *Repo) checkMarks(ctx context.Context, f *findings) error {
	marks, err := r.state.allMarks()
	if err != nil {
		return err
	}
	for _, prefix := range slices.Sorted(maps.Keys(marks)) {
		t, err := ParseTag(prefix + "1")
		if err != nil || (t.Class != ClassEpoch && t.Class != ClassSwitch) {
			continue
		}
		if _, err := r.ListRecords(ctx, prefix); errors.Is(err, dr.ErrTampered) {
			f.add(Problem{Tag: prefix + "*", Err: err})
		} else if err != nil {
			return err
		}
	}
	return nil
}
