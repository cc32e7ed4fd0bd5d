package repo

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"lifeboat/internal/dr"
	"lifeboat/internal/store"
)

// checkDense looks for numbers that are missing of records that are never removed:
// those below a tag that may be a record, and those that this host has seen. What
// somebody else put under a number says nothing of those before it; f has to know
// of such tags already.
func (r *Repo) checkDense(ctx context.Context, c Class, f *findings) error {
	names, err := r.st.Tags(ctx, Tag{Class: c}.prefix())
	if err != nil {
		return err
	}
	marks, err := r.state.allMarks()
	if err != nil {
		return err
	}
	squatted := map[string]bool{}
	for _, p := range f.list {
		if p.Foreign() {
			squatted[p.Tag] = true
		}
	}
	tags, _ := parseTags(names)
	next := Tag{Class: c, Number: 1}
	missing := func(upTo dr.Number) {
		for ; next.Number < upTo && upTo-next.Number <= maxGap; next = next.next() {
			f.add(Problem{Tag: next.String(), Err: fmt.Errorf("the record is missing, and such records are never removed: %w", store.ErrNotFound)})
		}
	}
	for _, t := range tags {
		if squatted[t.String()] && t.Number > marks[t.prefix()] {
			continue
		}
		upTo := t.Number
		if c == ClassKey && next.Number < t.Number {
			after, err := r.follows(ctx, t)
			if err != nil {
				return err
			}
			if after > 0 { // those between were given up
				upTo = after + 1
			}
		}
		missing(upTo)
		next = t.next()
	}
	if mark := marks[next.prefix()]; next.Number <= mark {
		missing(mark + 1)
	}
	return nil
}

// maxGap is how many numbers in a row may be told to be missing.
const maxGap = 8

// keyProblems looks at all key records: each has to be one of this repository,
// under its own number. Those that are found sound are kept.
func (r *Repo) keyProblems(ctx context.Context) ([]Problem, error) {
	names, err := r.st.Tags(ctx, Tag{Class: ClassKey}.prefix())
	if err != nil {
		return nil, err
	}
	tags, _ := parseTags(names) // the others are ordinary tags (docs/adr/0001)
	var mu sync.Mutex
	var gone []Problem
	_, problems, err := readAll(ctx, tags, func(ctx context.Context, t Tag) (*struct{}, error) {
		k, m, err := readKeyRecord(ctx, r.st, t)
		if errors.Is(err, store.ErrNotFound) {
			mu.Lock()
			defer mu.Unlock()
			gone = append(gone, Problem{Tag: t.String(), Err: fmt.Errorf("the tag is listed, and what it names is gone: %w", err)})
			return nil, err
		}
		if err == nil {
			err = k.Verify(r.keyring().Secret())
		}
		if err == nil {
			r.keepKey(t, m)
		}
		return &struct{}{}, err
	})
	return append(problems, gone...), err
}
