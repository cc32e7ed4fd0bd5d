package copying

import (
	"context"
	"fmt"
	"sync"

	"lifeboat/internal/dr"
	"lifeboat/internal/layer"
	"lifeboat/internal/repo"
)

// translator gives the units of one snapshot their ids in the other repository.
type translator struct {
	job *job
	rd  *repo.Reader
	w   *repo.Writer
}

// units returns the units of the other repository for those of this one, in the
// same order: those that are known to be there as they are, the others read,
// authenticated and put.
func (t *translator) units(ctx context.Context, refs []dr.UnitRef) ([]dr.UnitRef, error) {
	if len(refs) == 0 {
		return nil, nil
	}
	out := make([]dr.UnitRef, len(refs))
	first := map[dr.UnitID]int{} // where a unit that is to be read stands first
	var ask []dr.UnitRef
	var at []int
	var known int64
	for i, ref := range refs {
		if _, ok := first[ref.ID]; ok {
			continue
		}
		if id, ok := t.job.mem.get(ref.ID); ok {
			have := dr.UnitRef{ID: id, Len: ref.Len}
			reused, err := t.w.Reuse(ctx, []dr.UnitRef{have})
			if err != nil {
				return nil, err
			}
			if reused {
				out[i] = have
				known += int64(ref.Len)
				continue
			}
		}
		first[ref.ID] = i
		ask, at = append(ask, ref), append(at, i)
	}
	t.job.tell(known)
	if err := t.read(ctx, ask, at, out); err != nil {
		return nil, err
	}
	for i, ref := range refs {
		if k, ok := first[ref.ID]; ok {
			out[i] = out[k]
		}
		if out[i].Len != ref.Len {
			return nil, fmt.Errorf("unit %s is named with two lengths: %w", ref.ID, dr.ErrTampered)
		}
	}
	return out, nil
}

// read reads units and puts them.
func (t *translator) read(ctx context.Context, ask []dr.UnitRef, at []int, out []dr.UnitRef) error {
	if len(ask) == 0 {
		return nil
	}
	var mu sync.Mutex
	var failed error
	err := t.rd.Fetch(ctx, ask, func(i int, data []byte) error {
		ref, err := t.w.Put(ctx, data)
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			failed = err
			return err
		}
		out[at[i]] = ref
		t.job.mem.put(ask[i].ID, ref.ID)
		t.job.res.Read += int64(len(data))
		t.job.tell(int64(len(data)))
		return nil
	})
	if failed != nil {
		return failed
	}
	if err != nil {
		return &readError{err}
	}
	return t.job.mem.spill()
}

// flush writes down what was learned.
func (t *translator) flush() error { return t.job.mem.flush() }

// source marks what cannot be read as a failure of this side.
func (t *translator) source() layer.Source { return marked{t.rd} }

type marked struct{ rd *repo.Reader }

// Unit implements layer.Source.
func (m marked) Unit(ctx context.Context, ref dr.UnitRef) ([]byte, error) {
	data, err := m.rd.Unit(ctx, ref)
	if err != nil {
		return nil, &readError{err}
	}
	return data, nil
}
