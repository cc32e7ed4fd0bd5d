// Package layer stores container images so that they come back with the same
// identity, and so that a file in a layer and its copy in a writable layer or
// a volume are one and the same unit (docs/format.md, Images; ADR 7).
//
// Capture reads the stream of `docker save` in one pass, whatever the order of
// its members, and makes an ImageRecord for each wanted image. A Layer is kept
// in the split form: a skeleton (all bytes that are not file content: headers,
// padding, what cannot be parsed) and a list of the units that file contents
// were cut into. Skeleton and contents together are the exact bytes of the
// layer by construction; what the splitter understood of them decides only how
// well they deduplicate. Where an engine names compressed bytes (containerd
// image store), the stored bytes are kept as they are, cut content-defined.
// CaptureOptions.Recipes asks for the split form and a Recipe in their place,
// for blobs that the compressor at hand gives again.
//
// WriteLayer, WriteBlob and WriteArchive give the bytes back as streams and
// check their digest at the end. Encode and Decode turn an ImageRecord into
// units and back; Units lists every unit that a record needs.
//
// The package talks to no engine and no registry, knows no snapshots and keeps
// no state: units go to a Sink and come from a Source.
package layer
