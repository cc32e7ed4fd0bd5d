package store

import "io"

// Copied is a store that reads one repository from several registries, which
// package mirror makes.
type Copied interface {
	Store
	// Primary is the one that takes what is written. Who must know what that one
	// holds, and not what any of them does, asks it.
	Primary() Store
	// Lagging reports whether the primary could not be asked the last time, so
	// that tags were read from mirrors alone, which may be behind.
	Lagging() bool
}

// Primary returns the registry of a store that takes what is written: st itself
// unless it is Copied.
func Primary(st Store) Store {
	if c, ok := st.(Copied); ok {
		return c.Primary()
	}
	return st
}

// Lagging reports whether what st shows may be older than what there is, because
// the primary registry could not be asked.
func Lagging(st Store) bool {
	c, ok := st.(Copied)
	return ok && c.Lagging()
}

// Doubtful is a reader of a blob of which there are several copies.
type Doubtful interface {
	io.ReadCloser
	// Doubt says that what was read is not what was stored. It is not read from
	// there any more. It reports whether the blob can be had from elsewhere by
	// asking for it again.
	Doubt() bool
	// Elsewhere reports whether any of it came from another registry than the
	// primary.
	Elsewhere() bool
}

// Doubt says that what was read from r did not authenticate, and reports whether
// asking for the blob again gives another copy of it.
func Doubt(r io.ReadCloser) bool {
	d, ok := r.(Doubtful)
	return ok && d.Doubt()
}

// Elsewhere reports whether bytes of r came from another registry than the
// primary: then they prove nothing about what the primary holds.
func Elsewhere(r io.ReadCloser) bool {
	d, ok := r.(Doubtful)
	return ok && d.Elsewhere()
}
