package tree

import (
	"context"
	"fmt"
	"os"
	"slices"

	"lifeboat/internal/catalog"
)

// directories is the last pass: metadata of directories, once nothing in them
// is made or removed any more. Their own times do not move by what is set on
// what they hold, so any order will do; without privilege the deepest come
// first, for a directory may close itself.
func (a *applier) directories(ctx context.Context) error {
	w := a.writer()
	defer a.done(w)
	var later []catalog.Entry
	set := func(e *catalog.Entry) error {
		if os.Geteuid() != 0 {
			later = append(later, e.Clone())
			return nil
		}
		return a.setMetadata(w, e)
	}
	fix := func(path string) error {
		e, err := a.target.Lookup(ctx, path)
		if err != nil {
			return err
		}
		if e.Type != catalog.Directory {
			return nil // the root of a single file
		}
		return set(&e)
	}
	var done []string // directories dealt with, from the outermost in
	err := a.diff(ctx, func(c catalog.Change) error {
		path := c.Path()
		for len(done) > 0 && !catalog.Under(path, done[len(done)-1]) {
			done = done[:len(done)-1]
		}
		if path != "" && structural(c) {
			parent := catalog.Parent(path)
			if len(done) == 0 || done[len(done)-1] != parent {
				if err := a.fixUnlessGone(ctx, parent, fix); err != nil {
					return err
				}
				done = append(done, parent)
			}
		}
		if c.B == nil || c.B.Type != catalog.Directory {
			return nil
		}
		delete(a.touched, path)
		done = append(done, path)
		return set(c.B)
	})
	if err != nil {
		return err
	}
	for path := range a.touched {
		if err := a.fixUnlessGone(ctx, path, fix); err != nil {
			return err
		}
	}
	slices.Reverse(later)
	for i := range later {
		if err := a.setMetadata(w, &later[i]); err != nil {
			return err
		}
	}
	return nil
}

// fixUnlessGone calls fix for a directory of the target; one that is not in it
// any more was removed.
func (a *applier) fixUnlessGone(ctx context.Context, path string, fix func(string) error) error {
	if _, err := a.target.Lookup(ctx, path); err != nil {
		if isNotFound(err) || a.o.salvage.forgives(ctx, err) {
			return nil
		}
		return fmt.Errorf("directory of a change: %w", err)
	}
	return fix(path)
}

// structural reports whether a change made or removed a name.
func structural(c catalog.Change) bool {
	if c.A == nil || c.B == nil || c.A.Type != c.B.Type {
		return true
	}
	return c.Kind == catalog.Content && c.B.Type != catalog.File
}
