// Package repo is the repository: units in, snapshots out, over any store of
// blobs and tags (docs/format.md; docs/adr/0002-units-groups-packs-index.md and
// 0003-keys-and-signatures.md).
//
// Main types: [Repo] is an open repository; [Writer] takes units, deduplicates,
// packs and sends them, and commits a snapshot; [Reader] gives the units of one
// snapshot back, authenticated; [Snapshot] is a verified commit record.
//
// The registry is not trusted (invariant 10): what it holds is used only after
// it was authenticated, and a tag that holds nonsense is a [Problem], not a
// failure of the rest. Any number of hosts may write at the same time without
// locks; a writer that is killed leaves only blobs and manifests that nothing
// names, which the same host uses again.
//
// The package knows nothing of containers or files, and does not decide which
// site may speak for a system (package fence does).
package repo
