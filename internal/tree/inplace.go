package tree

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
)

// inPlace is what Extract may do to what it finds, where that is somebody's.
type inPlace struct {
	on     bool
	remove bool     // what the target does not have
	aside  []string // beside the way to the only path that is wanted: not even read
}

// ErrElsewhere: what should be a directory on the way to the path that is wanted is
// something else. It is not touched, whatever may go.
var ErrElsewhere = errors.New("it leads somewhere else")

// keeps reports whether what is only on disk stays.
func (p *inPlace) keeps() bool { return p.on && !p.remove }

// wayThere reports whether a directory only leads to what is wanted. One that is
// there stays as it is.
func (a *applier) wayThere(path string) bool {
	return a.only != "" && path != a.only && (path == "" || catalog.Under(a.only, path)) || a.match != nil && !a.match(path)
}

// setAside finds what lies beside the way to the only path that is wanted, so that
// bringing back one file of a large tree does not read all of it.
func (a *applier) setAside() error {
	for at, rest, more := "", a.only, a.only != ""; more && !a.root.Single(); {
		var name string
		name, rest, more = strings.Cut(rest, "/")
		names, err := a.list(at)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			return nil // nothing is there, or obstacles tells
		}
		if err != nil {
			return err
		}
		for _, n := range names {
			if n != name {
				a.place.aside = append(a.place.aside, join(at, n))
			}
		}
		at = join(at, name)
	}
	return nil
}

// obstacles looks for what cannot make way before anything is changed: a directory
// goes only where that was asked for, and what leads elsewhere is nobody's mistake.
func (a *applier) obstacles(ctx context.Context) error {
	return a.diff(ctx, func(c catalog.Change) error {
		switch {
		case c.A == nil || c.B == nil || c.A.Type == c.B.Type:
			return nil
		case a.wayThere(c.A.Path):
			return fmt.Errorf("%s is a %v and a %v in the snapshot: %w; move it away: %w", a.root.display(c.A.Path), c.A.Type, c.B.Type, ErrElsewhere, dr.ErrUsage)
		case c.A.Type == catalog.Directory && a.place.keeps():
			return fmt.Errorf("%s is a directory and a %v in the snapshot; move it away, or allow that what is not in the snapshot goes: %w", a.root.display(c.A.Path), c.B.Type, dr.ErrUsage)
		}
		return nil
	})
}
