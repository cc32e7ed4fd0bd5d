package repo

import (
	"context"
	"errors"
	"slices"

	"lifeboat/internal/dr"
	"lifeboat/internal/store"
)

// maxBroken bounds the damaged groups that a reader remembers; beyond it they are
// found out anew.
const maxBroken = 1 << 16

// brokenGroup is a group that could not be had.
type brokenGroup struct {
	tries int
	err   error
}

// placesError is why a unit cannot be had: what went wrong at each place that has
// it.
type placesError struct{ errs []error }

func (e *placesError) Error() string   { return errors.Join(e.errs...).Error() }
func (e *placesError) Unwrap() []error { return e.errs }

// Damaged reports whether an error of a Reader says that what was asked for is
// damaged or gone, wherever it was looked for (dr.ErrTampered, store.ErrNotFound,
// store.ErrDigestMismatch). It is false where any place could not be asked.
func Damaged(err error) bool {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	var places *placesError
	if errors.As(err, &places) {
		return !slices.ContainsFunc(places.errs, func(err error) bool { return !about(err) })
	}
	return about(err)
}

// NewSalvageReader is NewReader for who wants what is whole of a snapshot that is
// damaged, and can do with a part: pack manifests that are damaged or gone are left
// out, and what lies in them alone is damaged (Damaged). Whoever starts a system from
// what is read uses NewReader. Errors are those of NewReader for everything but damage.
func (r *Repo) NewSalvageReader(ctx context.Context, snap *Snapshot) (*Reader, error) {
	rd, err := r.NewReader(ctx, snap)
	if err != nil && Damaged(err) && ctx.Err() == nil {
		rd, err = r.openSome(ctx, snap)
	}
	if err != nil {
		return nil, err
	}
	rd.broken = map[groupKey]brokenGroup{}
	return rd, nil
}

// FetchWhole is Fetch that goes on past units that are damaged or gone: lost is told
// each of them, by its place in refs, once every place and every registry was asked.
// It is called concurrently, with fn and with itself; its error ends the fetching, as
// does everything that is not damage: a lost network, a cancelled ctx, an error of fn.
func (rd *Reader) FetchWhole(ctx context.Context, refs []dr.UnitRef, fn func(i int, data []byte) error, lost func(i int, err error) error) error {
	return rd.fetchAll(ctx, refs, fn, func(ctx context.Context, i int) error {
		data, err := rd.Unit(ctx, refs[i])
		switch {
		case err == nil:
			return fn(i, data)
		case ctx.Err() == nil && Damaged(err):
			return lost(i, err)
		}
		return err
	})
}

// remember notes that a group cannot be had, so that it is not asked for once for each
// unit in it. It is called under mu.
func (rd *Reader) remember(k groupKey, err error) {
	if rd.broken == nil || !Damaged(err) || len(rd.broken) >= maxBroken {
		return
	}
	b := brokenGroup{rd.broken[k].tries + 1, err}
	if errors.Is(err, store.ErrNotFound) {
		b.tries = unitTries
	}
	rd.broken[k] = b
}
