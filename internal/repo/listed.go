package repo

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"lifeboat/internal/store"
)

// getListed reads what a tag names that was listed a while ago. Deleting a manifest
// takes its tag first or with it, so there are two reasons why it may not be there,
// and listing again tells them apart: the tag is gone since, then the error wraps
// store.ErrNotFound; or the tag is listed all the same, then what it named is lost,
// which is damage as bytes are that do not fit their digest, and the error wraps
// store.ErrDigestMismatch.
func (r *Repo) getListed(ctx context.Context, tag string) (store.Manifest, error) {
	m, err := r.st.GetManifest(ctx, tag)
	if !errors.Is(err, store.ErrNotFound) {
		return m, err
	}
	names, lerr := r.st.Tags(ctx, tag)
	if lerr != nil {
		return m, lerr
	}
	if !slices.Contains(names, tag) {
		return m, err
	}
	// It may have been on its way, or put back meanwhile.
	m, again := r.st.GetManifest(ctx, tag)
	if errors.Is(again, store.ErrNotFound) {
		return m, fmt.Errorf("tag %s is listed, and what it names is not there: %w", tag, errLostManifest)
	}
	return m, again
}

// errLostManifest is lostManifest, which says nothing of bytes that are not there.
var errLostManifest error = lostManifest{}

type lostManifest struct{}

func (lostManifest) Error() string { return "the registry has lost it" }

func (lostManifest) Unwrap() error { return store.ErrDigestMismatch }
