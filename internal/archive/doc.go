// Package archive captures and lays down file trees through a container
// engine's archive API alone, for the degraded mode (docs/adr/0008): where
// neither the files of the engine's host can be reached nor a helper container
// may be started.
//
// Decode turns the tar archive that the engine gives for one path into catalog
// entries. Capture reads one tree in the passes of tree.Capture: Precopy stores
// content while everything runs, Secure reads all of it again while everything
// stands still, Finish builds the catalog. Encode turns a catalog into a tar
// archive that the engine unpacks. Kept and Lost say what the API does not keep.
//
// An archive is hostile ground like a tree on disk: names are checked, a link
// leads to an entry of the same archive or the archive is refused, lengths are
// bounded by the bytes that really come, and an archive that was cut off is not
// taken for whole (invariant 10).
//
// The package speaks to no engine itself (Source does), freezes nothing and
// puts nothing on disk; the list of a tree's entries is held in memory, within
// a Budget.
package archive
