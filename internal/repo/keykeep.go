package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"lifeboat/internal/dr"
	"lifeboat/internal/seal"
	"lifeboat/internal/store"
)

// Key records that this host has seen to verify are kept byte for byte, for there
// is nothing without them and they are small. They are sealed to their recipients,
// so they are no secret; and losing them loses nothing that the registry has. What
// is kept stands in only where the registry's own record under the same number
// cannot be read, and for repair where it is not listed: a newer record in the
// registry always comes first.

// keptDir is the directory of kept key records, below a repository's state.
const keptDir = "keys"

// maxKeptKeys bounds how many are kept: the newest.
const maxKeptKeys = 64

func (s *state) keptFile(id dr.RepoID, t Tag) string {
	return filepath.Join(s.base, "repositories", id.String(), keptDir, t.String())
}

// keepKey keeps a key record that was verified. That it cannot be kept is no reason
// to fail: it only helps where something else fails.
func (r *Repo) keepKey(t Tag, m store.Manifest) {
	s := r.state
	if s.base == "" {
		return
	}
	name, raw := s.keptFile(r.ID(), t), addSum(slices.Clone(m.Body))
	s.mu.Lock()
	defer s.mu.Unlock()
	if have, err := os.ReadFile(name); err == nil && bytes.Equal(have, raw) {
		return
	}
	err := os.MkdirAll(filepath.Dir(name), 0o700)
	if err == nil {
		err = writeHint(name, raw)
	}
	if err == nil {
		err = s.dropKept(r.ID(), func(kept []Tag, i int) bool { return i < len(kept)-maxKeptKeys })
	}
	if err != nil {
		r.log.Warn("a key record could not be kept", "tag", t.String(), "error", err)
	}
}

// dropKept removes kept records; the caller holds mu. kept are in the order of
// their numbers.
func (s *state) dropKept(id dr.RepoID, drop func(kept []Tag, i int) bool) error {
	kept, err := s.listKept(id)
	if err != nil {
		return err
	}
	for i, t := range kept {
		if !drop(kept, i) {
			continue
		}
		if err := os.Remove(s.keptFile(id, t)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("local state: %w", err)
		}
	}
	return nil
}

// forgetKeptAbove removes what is kept of key records above a number: the operator
// takes for the newest state one that does not have them, so they must not come
// back.
func (s *state) forgetKeptAbove(id dr.RepoID, n dr.Number) error {
	if s.base == "" {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dropKept(id, func(kept []Tag, i int) bool { return kept[i].Number > n })
}

// listKept lists what is kept of a repository, by number.
func (s *state) listKept(id dr.RepoID) ([]Tag, error) {
	if s.base == "" {
		return nil, nil
	}
	list, err := os.ReadDir(filepath.Join(s.base, "repositories", id.String(), keptDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("local state: %w", err)
	}
	var names []string
	for _, e := range list {
		if strings.HasPrefix(e.Name(), Tag{Class: ClassKey}.prefix()) {
			names = append(names, e.Name())
		}
	}
	tags, _ := parseTags(names)
	return tags, nil
}

// readKept reads a kept record. What is damaged counts as not there: the error
// wraps store.ErrNotFound.
func (s *state) readKept(id dr.RepoID, t Tag) (*seal.KeyRecord, store.Manifest, error) {
	raw, err := os.ReadFile(s.keptFile(id, t))
	body, ok := checkSum(raw)
	if err != nil || !ok {
		return nil, store.Manifest{}, fmt.Errorf("local state: no copy of %s that can be read: %w", t, store.ErrNotFound)
	}
	m := store.Manifest{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(body), Body: body}
	k, err := parseKeyManifest(t, m)
	return k, m, err
}

// keptKeys is what this host keeps as a place of key records.
func (r *Repo) keptKeys(id dr.RepoID) keyPlace {
	return keyPlace{
		name: local, own: true,
		tags: func(context.Context) ([]Tag, error) { return r.state.listKept(id) },
		read: func(_ context.Context, t Tag) (*seal.KeyRecord, store.Manifest, error) {
			return r.state.readKept(id, t)
		},
	}
}

// fromKept finds key records that this host keeps and that are not here.
func (p *repairer) fromKept(ctx context.Context, here map[Tag]bool, found map[Tag]copyOf) error {
	r := p.repo
	kept, err := r.state.listKept(r.ID())
	if err != nil {
		return err
	}
	for _, t := range kept {
		if here[t] || found[t].m.Body != nil {
			continue
		}
		_, m, err := r.state.readKept(r.ID(), t)
		if err == nil {
			err = r.verifyAs(ctx, t, m)
		}
		if err != nil && !about(err) {
			return err
		}
		if err == nil {
			found[t] = copyOf{tag: t, m: m, from: &RepairSource{Name: local}}
		}
	}
	return nil
}
