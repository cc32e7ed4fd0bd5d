package store

import (
	"context"

	"github.com/opencontainers/go-digest"
)

// Remembering is a store that knows what a tag was given first, whatever has
// become of the tag since.
type Remembering interface {
	Store
	// First returns what tag was given first; ErrNotFound where it was never given
	// anything, as far as is known; ErrDigestMismatch where what says so is damaged. Where Capabilities.RetiredTags is set and the
	// tag is one of Lifeboat's grammar, it is the only digest that the tag takes
	// again, both where it names something else (its link was damaged) and after
	// it was deleted. Elsewhere it is what the tag names.
	First(ctx context.Context, tag string) (digest.Digest, error)
}

// First asks the registry that takes what is written what a tag was given first.
func First(ctx context.Context, st Store, tag string) (digest.Digest, error) {
	st = Primary(st)
	if r, ok := st.(Remembering); ok {
		return r.First(ctx, tag)
	}
	return st.ResolveTag(ctx, tag)
}
