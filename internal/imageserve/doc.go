// Package imageserve offers the images of one snapshot to the engine on the
// same host as a read-only registry, straight from the repository: layers are
// put together while they are pulled, nothing is staged on disk (ADR 7).
//
// Serve listens on loopback only, at a random port, with credentials made for
// the occasion. For an engine that names images by their configuration it
// offers manifests of its own making over uncompressed layers, which need no
// hashing since a layer's diff id is its digest; for an engine with the
// containerd image store it offers the original manifests over the stored
// layers (layer.Form). Served says which id the engine will give the image and
// whether that is the one it had.
//
// The package does not talk to the engine: the caller pulls Served.Ref with
// Server.RegistryAuth, tags the image and removes the reference. It takes no
// uploads and knows neither snapshots nor systems.
package imageserve
