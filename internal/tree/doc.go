// Package tree reads and writes file trees on disk: writable layers, volumes
// and bind mounts.
//
// Walk lists a tree in catalog order. Capture turns a tree into units and a
// catalog in three passes: Precopy reads while everything runs, Secure takes
// hold of what changed while the system is frozen, Finish cuts and stores
// after the thaw. Apply brings a directory to the state of a catalog and
// writes differences only; LocalCatalog finds out what is there; Extract
// writes a tree for people to look at, with Salvage also one that is damaged.
//
// A tree is hostile ground: everything is reached from the descriptor of its
// root, beneath it, through no symbolic link (openat2 with RESOLVE_BENEATH and
// RESOLVE_NO_SYMLINKS, or one component at a time with O_NOFOLLOW where the
// kernel has no openat2), so that neither a planted link nor a rename at the
// wrong moment leads outside (invariant 10). Names are raw bytes.
//
// The package knows neither repository nor engine: units go to a Sink and come
// from a UnitFetcher. It freezes and thaws nothing.
package tree
