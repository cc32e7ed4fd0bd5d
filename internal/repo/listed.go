package repo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"lifeboat/internal/store"
)

// What is stored in a place may show up in its listings sooner or later than where it
// is read, by as much as such a place is behind with itself. So it is looked again
// before something counts as lost; once for each tag, and for a few tags, of each
// repository that is opened.
var listedAgain = [...]time.Duration{0, 100 * time.Millisecond, 400 * time.Millisecond}

const maxPatience = 16

// getListed reads what a tag names that was listed a while ago. Deleting a manifest
// takes its tag first or with it, so there are two reasons why it may not be there,
// and listing again tells them apart: the tag is gone since, then the error wraps
// store.ErrNotFound; or the tag is listed all the same, then what it named is lost,
// which is damage as bytes are that do not fit their digest, and the error wraps
// store.ErrDigestMismatch.
func (r *Repo) getListed(ctx context.Context, tag string) (store.Manifest, error) {
	m, err := r.st.GetManifest(ctx, tag)
	patient := false
	for i, wait := range listedAgain {
		if !errors.Is(err, store.ErrNotFound) {
			return m, err
		}
		if i == 1 {
			_, before := r.waited.LoadOrStore(tag, true)
			patient = !before && r.patience.Add(1) <= maxPatience
		}
		if i > 0 && !patient {
			break
		}
		select {
		case <-ctx.Done():
			return m, context.Cause(ctx)
		case <-time.After(wait):
		}
		names, lerr := r.st.Tags(ctx, tag)
		if lerr != nil {
			return m, lerr
		}
		if !slices.Contains(names, tag) {
			return m, err
		}
		// It may have been on its way, or put back meanwhile.
		m, err = r.st.GetManifest(ctx, tag)
	}
	if errors.Is(err, store.ErrNotFound) {
		err = fmt.Errorf("tag %s is listed, and what it names is not there: %w", tag, errLostManifest)
	}
	return m, err
}

// errLostManifest is lostManifest, which says nothing of bytes that are not there.
var errLostManifest error = lostManifest{}

type lostManifest struct{}

func (lostManifest) Error() string { return "the registry has lost it" }

func (lostManifest) Unwrap() error { return store.ErrDigestMismatch }
