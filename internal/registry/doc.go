// Package registry is Lifeboat's own OCI registry: CNCF Distribution v3 as a
// library, with what a repository needs around it.
//
// Distribution stores and serves; in front of it stands a guard that logs users
// in (htpasswd, bcrypt), enforces access roles by tag class and name, and keeps
// tags of Lifeboat's grammar from ever naming another digest, atomically
// (docs/format.md, invariant 11; docs/adr/0001). Below it stands a storage
// driver that has on disk what was acknowledged, and that tells when the disk
// is full. Every response carries the header Lifeboat-Registry, by which clients
// know that they need not check for races themselves.
//
// A Server is made by New from a Config, which Validate checks as a whole: a
// mistake in it is an error with its reason, never a panic. The package knows
// nothing of snapshots beyond the classes of tags; it holds no repository key
// and cannot read what it stores. Ordinary images are served as by any registry.
package registry
