// Package mirror decorates the registry of a repository with others that hold
// exact copies of it (docs/adr/0010-copies-and-mirrors.md): what one cannot give
// is read from the next, blob by blob.
//
// Main type: [Store]. Reading asks the primary first, then the mirrors in their
// order. What is missing, cut off, of the wrong size, damaged or out of reach is
// asked of the next one; a blob that was cut off goes on there where it stopped.
// A registry that cannot be reached rests for a while, so that not every blob
// waits for it. Tags are those of all registries together, so that the newest
// record counts wherever it is; where two disagree about a tag the primary is
// believed.
//
// Everything that changes something goes to the primary alone. The package
// copies nothing (package repo does), and authenticates nothing: the caller says
// by store.Doubt that what it read is not what was stored.
package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"lifeboat/internal/store"
)

// Defaults of Options.
const (
	DefaultRest     = 30 * time.Second
	DefaultMaxRest  = 10 * time.Minute
	DefaultPatience = 10 * time.Second
)

// Copy is one registry that the repository is read from.
type Copy struct {
	// Name is the registry's address, for people.
	Name  string
	Store store.Store
}

// Options are all optional.
type Options struct {
	// Rest is how long a registry that was out of reach is not asked again; it
	// doubles each time, up to MaxRest.
	Rest, MaxRest time.Duration
	// Patience bounds Capabilities, by which a command learns whether a registry
	// is there at all, for each registry.
	Patience time.Duration
	// Notice receives lines for the operator, Logger each failure.
	Notice func(string)
	Logger *slog.Logger
	// Now is the clock by which registries rest; nil means the real one.
	Now func() time.Time
}

// Store is the decorator. Safe for concurrent use as far as the stores are.
type Store struct {
	writes store.Store
	copies []*copyState
	opts   Options

	mu      sync.Mutex
	lagging bool
	bad     map[badCopy]bool // blobs that a registry gives wrong
}

// copyState is one registry; what changes is guarded by Store.mu.
type copyState struct {
	Copy
	at    int
	until time.Time // resting
	rest  time.Duration
	cause error // why it rests
	told  map[string]bool
}

type badCopy struct {
	blob digest.Digest
	at   int
}

// maxBad bounds how many damaged blobs are remembered; beyond it they are found
// out anew.
const maxBad = 1 << 16

var _ store.Copied = (*Store)(nil)

// New returns a store that writes to writes and reads from copies, of which the
// first is the primary too: the same registry, perhaps with less patience, for
// there are others to ask.
func New(writes store.Store, copies []Copy, o Options) *Store {
	if o.Rest <= 0 {
		o.Rest = DefaultRest
	}
	if o.MaxRest <= 0 {
		o.MaxRest = DefaultMaxRest
	}
	if o.Patience <= 0 {
		o.Patience = DefaultPatience
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &Store{writes: writes, opts: o, bad: map[badCopy]bool{}}
	for i, c := range copies {
		s.copies = append(s.copies, &copyState{Copy: c, at: i, told: map[string]bool{}})
	}
	return s
}

// Primary implements store.Copied.
func (s *Store) Primary() store.Store { return s.writes }

// Lagging implements store.Copied.
func (s *Store) Lagging() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lagging
}

// awake lists the registries to ask: those that do not rest, or all where all do.
func (s *Store) awake() []*copyState {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.opts.Now()
	var out []*copyState
	for _, c := range s.copies {
		if !now.Before(c.until) {
			out = append(out, c)
		}
	}
	if len(out) == 0 {
		return slices.Clone(s.copies)
	}
	return out
}

// away reports whether an error speaks of a registry as a whole: asking it for
// something else is of no use for now.
func away(err error) bool {
	for _, e := range []error{store.ErrUnreachable, store.ErrUnauthorized, store.ErrForbidden, store.ErrUntrusted} {
		if errors.Is(err, e) {
			return true
		}
	}
	return errors.Is(err, errPatience)
}

var errPatience = errors.New("no answer")

// note learns from how a request ended.
func (s *Store) note(c *copyState, what string, err error) {
	s.mu.Lock()
	var say string
	switch {
	case err == nil:
		if c.cause != nil {
			say = fmt.Sprintf("registry %s answers again", c.Name)
		}
		c.cause, c.rest, c.until = nil, 0, time.Time{}
	case away(err):
		if c.cause == nil {
			say = fmt.Sprintf("registry %s does not answer as it should; going on with the others: %v", c.Name, err)
		}
		if c.rest = 2 * c.rest; c.rest == 0 {
			c.rest = s.opts.Rest
		}
		c.rest = min(c.rest, s.opts.MaxRest)
		c.cause, c.until = err, s.opts.Now().Add(c.rest)
	case errors.Is(err, store.ErrNotFound):
	default:
		if !c.told[what] {
			c.told[what] = true
			say = fmt.Sprintf("registry %s does not give %s right; going on with the others: %v", c.Name, what, err)
		}
	}
	s.mu.Unlock()
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		s.opts.Logger.Warn("a registry failed", "registry", c.Name, "what", what, "err", err)
	}
	s.say(say)
}

func (s *Store) say(text string) {
	if text != "" && s.opts.Notice != nil {
		s.opts.Notice(text)
	}
}

// tellOnce tells the operator something about a registry, once.
func (s *Store) tellOnce(c *copyState, kind, text string) {
	s.mu.Lock()
	told := c.told[kind]
	c.told[kind] = true
	s.mu.Unlock()
	if !told {
		s.say(text)
	}
}

// asked notes whether the primary answered a question about tags.
func (s *Store) asked(primary bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lagging = !primary
}

// failures are what the registries said, in their order.
type failures struct {
	s    *Store
	errs map[int]error
}

func (s *Store) failures() *failures { return &failures{s: s, errs: map[int]error{}} }

func (f *failures) add(c *copyState, err error) { f.errs[c.at] = err }

// error is the first registry's, which rests perhaps and was not asked: then why
// it rests. What the others said is added as text, for it is the first one of
// which the caller thinks.
func (f *failures) error() error {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	var first error
	var more string
	for _, c := range f.s.copies {
		err := f.errs[c.at]
		if err == nil {
			err = c.cause
		}
		switch {
		case err == nil:
		case first == nil:
			first = err
		default:
			more += fmt.Sprintf("; %s: %v", c.Name, err)
		}
	}
	if first == nil {
		return fmt.Errorf("no registry to ask: %w", store.ErrUnreachable)
	}
	if more == "" {
		return first
	}
	return fmt.Errorf("%w%s", first, more)
}

// Capabilities implements store.Store: those of the first registry that answers.
func (s *Store) Capabilities(ctx context.Context) (store.Capabilities, error) {
	f := s.failures()
	for _, c := range s.awake() {
		bounded, cancel := context.WithTimeoutCause(ctx, s.opts.Patience, fmt.Errorf("%w within %s: %w", errPatience, s.opts.Patience, store.ErrUnreachable))
		caps, err := c.Store.Capabilities(bounded)
		cancel()
		if ctx.Err() != nil {
			return caps, err
		}
		s.note(c, "its capabilities", err)
		if err == nil {
			s.asked(c.at == 0)
			return caps, nil
		}
		f.add(c, err)
	}
	return store.Capabilities{}, f.error()
}

// Tags implements store.Manifests: the tags of all registries together.
func (s *Store) Tags(ctx context.Context, prefix string) ([]string, error) {
	f := s.failures()
	var all []string
	answered, primary := false, false
	for _, c := range s.awake() {
		tags, err := c.Store.Tags(ctx, prefix)
		if ctx.Err() != nil {
			return nil, err
		}
		s.note(c, "its tags", err)
		if err != nil {
			f.add(c, err)
			continue
		}
		answered, primary = true, primary || c.at == 0
		all = append(all, tags...)
	}
	if !answered {
		return nil, f.error()
	}
	s.asked(primary)
	slices.Sort(all)
	return slices.Compact(all), nil
}

// ResolveTag implements store.Manifests.
func (s *Store) ResolveTag(ctx context.Context, tag string) (d digest.Digest, err error) {
	err = s.named(ctx, tag, func(c store.Store) error { d, err = c.ResolveTag(ctx, tag); return err })
	return d, err
}

// GetManifest implements store.Manifests.
func (s *Store) GetManifest(ctx context.Context, ref string) (m store.Manifest, err error) {
	err = s.named(ctx, ref, func(c store.Store) error { m, err = c.GetManifest(ctx, ref); return err })
	return m, err
}

// named asks one registry after the other for what ref names.
func (s *Store) named(ctx context.Context, ref string, get func(store.Store) error) error {
	f := s.failures()
	list := s.awake()
	s.asked(len(list) > 0 && list[0].at == 0)
	for _, c := range list {
		err := get(c.Store)
		if ctx.Err() != nil {
			return err
		}
		if err == nil || errors.Is(err, store.ErrNotFound) {
			s.note(c, ref, nil)
		} else {
			s.note(c, ref, err)
		}
		if c.at == 0 && err != nil && away(err) {
			s.asked(false)
		}
		if err == nil {
			return nil
		}
		f.add(c, err)
	}
	return f.error()
}

// HasBlob implements store.Blobs: whether the primary has it.
func (s *Store) HasBlob(ctx context.Context, d digest.Digest) (bool, error) {
	return s.writes.HasBlob(ctx, d)
}

// PutBlob implements store.Blobs, at the primary.
func (s *Store) PutBlob(ctx context.Context, d digest.Digest, size int64, open func() (io.ReadCloser, error)) (int64, error) {
	return s.writes.PutBlob(ctx, d, size, open)
}

// PutManifest implements store.Manifests, at the primary.
func (s *Store) PutManifest(ctx context.Context, tag, mediaType string, body []byte) (digest.Digest, error) {
	return s.writes.PutManifest(ctx, tag, mediaType, body)
}

// DeleteTag implements store.Manifests, at the primary.
func (s *Store) DeleteTag(ctx context.Context, tag string) error {
	return s.writes.DeleteTag(ctx, tag)
}

// DeleteManifest implements store.Manifests, at the primary.
func (s *Store) DeleteManifest(ctx context.Context, d digest.Digest) error {
	return s.writes.DeleteManifest(ctx, d)
}
