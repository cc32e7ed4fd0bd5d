package repo

import (
	"context"
	"errors"
	"io"

	"lifeboat/internal/dr"
	"lifeboat/internal/store"
)

// readBlob hands a stretch of a blob to use. Where use finds that it is not what
// was stored (dr.ErrTampered) and there is another copy of the blob (package
// mirror), use is called again with that one, from the beginning: it must be
// able to begin anew. elsewhere reports that bytes came from another registry
// than the primary.
func (r *Repo) readBlob(ctx context.Context, b blob, off, length int64, use func(io.Reader) error) (elsewhere bool, err error) {
	for {
		src, err := r.st.GetBlob(ctx, b.Digest, b.Size, off, length)
		if err != nil {
			return false, err
		}
		err = use(src)
		elsewhere = store.Elsewhere(src)
		again := errors.Is(err, dr.ErrTampered) && store.Doubt(src)
		if cerr := src.Close(); err == nil {
			err = cerr
		}
		if !again || ctx.Err() != nil {
			return elsewhere, err
		}
		r.log.Warn("a copy of a blob is damaged and read elsewhere", "blob", b.Digest, "error", err)
	}
}

// primary is the registry that takes what this host writes. Whether something is
// stored there is asked of it alone: a new snapshot must not rest on what only a
// mirror has (invariant 1).
func (r *Repo) primary() store.Store { return store.Primary(r.st) }

// mirrorBehind tells that a mirror shows less than this host has seen. While the
// primary cannot be asked that is to be expected, and no sign of an attack: what
// is written goes to the primary, so nothing can be claimed on an old state.
func (r *Repo) mirrorBehind(what string) {
	r.behindOnce.Do(func() {
		r.notice("the primary registry cannot be asked, and the mirror is behind what this host has seen: " + what)
	})
	r.log.Warn("a mirror is behind", "what", what)
}
