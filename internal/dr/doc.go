// Package dr is Lifeboat's vocabulary: the names, identifiers, records and
// sentinel errors that every other package shares. It holds no logic beyond
// parsing and validation and does no I/O.
//
// The words are those of docs/terms.md; the stored forms are those of
// docs/format.md. "Invariant N" in a comment of any package refers to the
// numbered list at the top of docs/format.md.
package dr
