// Package pack turns units into packs and back, and says where each unit lies:
// groups of units, compressed and sealed together, many of them in one padded
// pack; and the index of the packs of one pack manifest. Bytes in, bytes out
// (docs/format.md, sections Groups and packs, Index and pack manifest;
// docs/adr/0002-units-groups-packs-index.md).
//
// Main types: [Group] collects units; [Codec] compresses; [Builder] seals
// groups into a pack; [Opener] opens groups; [IndexWriter] and [ReadIndex]
// store and read the index.
//
// The package neither deduplicates nor decides what belongs into which pack,
// and it never compares a unit with its id: whoever hands a unit on does.
package pack
