// Package goflate127 is a frozen copy of the compressor of Go's compress/flate
// as of Go 1.27. Only the package name was changed and unused code marked as
// such for the linter. It is under the BSD licence
// in LICENSE.
//
// Why a copy: container engines compress layers with Go's compress/gzip, and
// an engine with the containerd image store names an image by the digest of
// those compressed bytes. A layer recipe (package layer, docs/format.md,
// Images) promises that the same bytes come out again in years to come. The
// standard library promises a valid stream, not the same stream, and changes
// its compressor; this copy must therefore never be changed or replaced. What
// it gives is pinned by the golden digests in the test.
//
// It only compresses. Use compress/flate or klauspost/compress to decompress.
package goflate127

// An InternalError reports an error in the compressor itself.
type InternalError string

func (e InternalError) Error() string { return "goflate127: internal error: " + string(e) }
