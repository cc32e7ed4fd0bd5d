package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"

	"lifeboat/internal/dr"
	"lifeboat/internal/store/overlay"
)

// rehearsal is a repository in which nothing that is done is real: it reads r, what
// it writes goes to a layer over the registry, and what it remembers to copies of
// what this host remembers. Index caches are shared, for they are named and sealed by
// what they hold. It tells the operator nothing. It is closed with r.
func (r *Repo) rehearsal() (*Repo, *overlay.Store, error) {
	dir, err := os.MkdirTemp("", "lifeboat-rehearsal-") // mode 0700
	if err != nil {
		return nil, nil, fmt.Errorf("rehearsal: %w", err)
	}
	over := overlay.New(r.st, dir)
	o := r.opts
	o.Notice, o.Log, o.CacheDir = nil, slog.New(slog.NewTextHandler(io.Discard, nil)), r.cache
	c, err := newRepo(over, o)
	if err != nil {
		return nil, nil, errors.Join(err, os.RemoveAll(dir))
	}
	c.tmpDir, c.walkRoot = dir, r.walkRoot
	c.ring.Store(r.ring.Load())
	c.keys.Store(r.keys.Load())
	if c.state, err = r.state.copyTo(filepath.Join(dir, "state")); err == nil && c.state.place() == "" {
		c.reads = r.packLog().Copy()
	} else if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("rehearsal: %w", err), c.Close())
	}
	r.readsMu.Lock()
	defer r.readsMu.Unlock()
	r.rehearsals = append(r.rehearsals, c)
	return c, over, nil
}

// copyTo is a state that begins as s is now and goes its own way, below base.
func (s *state) copyTo(base string) (*state, error) {
	c := newState("")
	c.firm, c.fresh, c.began = nil, nil, s.began
	err := s.locked(func() error {
		c.firm, c.fresh, c.kept = maps.Clone(s.firm), maps.Clone(s.fresh), s.kept
		if s.dir == "" {
			c.mem = marks{
				Numbers: maps.Clone(s.mem.Numbers), Seen: maps.Clone(s.mem.Seen), Forgotten: maps.Clone(s.mem.Forgotten),
				Own: maps.Clone(s.mem.Own), Given: maps.Clone(s.mem.Given), Generation: s.mem.Generation, Setbacks: maps.Clone(s.mem.Setbacks),
				Ended: maps.Clone(s.mem.Ended),
			}
			c.pending, c.read, c.lost = maps.Clone(s.pending), maps.Clone(s.read), maps.Clone(s.lost)
			c.unused, c.small = maps.Clone(s.unused), maps.Clone(s.small)
			return nil
		}
		rel, err := filepath.Rel(s.base, s.dir)
		if err != nil {
			return err
		}
		c.base, c.dir = base, filepath.Join(base, rel)
		return errors.Join(copyFiles(c.dir, s.dir), copyFiles(filepath.Join(base, "pins"), filepath.Join(s.base, "pins")))
	})
	if err != nil {
		return nil, fmt.Errorf("local state: %w", err)
	}
	return c, nil
}

// copyFiles copies a directory of regular files, as far as they are there: other
// processes take some away meanwhile.
func copyFiles(to, from string) error {
	err := filepath.WalkDir(from, func(name string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, name)
		if err != nil {
			return err
		}
		if e.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		}
		if !e.Type().IsRegular() {
			return nil
		}
		return copyFile(filepath.Join(to, rel), name)
	})
	return err
}

func copyFile(to, from string) error {
	src, err := os.Open(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }() // read only
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}

// rehearse is run for a dry run: the real run, in a rehearsal. What reading finds is
// remembered all the same, so that nothing has to be read twice.
func (p *repairer) rehearse(ctx context.Context) error {
	read := p.opts.Read
	if read {
		_, err := p.look(ctx, true)
		if err != nil && !errors.Is(err, dr.ErrTampered) {
			return err
		}
		read = err != nil // what cannot be judged yet is read once it can
	}
	var err error
	if p.repo, p.over, err = p.repo.rehearsal(); err != nil {
		return err
	}
	return p.run(ctx, read)
}
