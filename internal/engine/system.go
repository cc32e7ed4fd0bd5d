package engine

import (
	"encoding/json"

	"lifeboat/internal/dr"
)

// Labels of Lifeboat's own. Those that say whose an object is are put on what
// recover creates, beside the captured labels, which stay as they are (Compose
// compares its own). Discover leaves them out of what it describes; Container,
// Network, Volume and Inventory show them.
const (
	LabelSystem   = "dev.lifeboat.system"
	LabelSnapshot = "dev.lifeboat.snapshot"
	LabelEpoch    = "dev.lifeboat.epoch"
	// LabelHelper marks helper containers and their images. They are never part
	// of a system.
	LabelHelper = "dev.lifeboat.helper"
)

// Selector says which containers make a system: those of a Compose project,
// those named, or both together.
type Selector struct {
	// Project is the name of a Compose project.
	Project string
	// Containers are names or ids (a prefix of an id that fits one only).
	Containers []string
	// Reserved are addresses, host:port, that Lifeboat depends on while it
	// works (the registry, say). A container that serves one of them must not be
	// frozen and is refused. The engine's own address and the resolver are
	// reserved anyway.
	Reserved []string
	// Archive asks for the system as it can be captured through the engine's
	// archive API alone (degraded mode): volumes and binds have Via, and the
	// coverage report says of each tree what is not kept.
	Archive bool
	// Host is what HostFS or Discover has said of the engine a moment ago; it is
	// not asked again then. nil: it is.
	Host *HostFS
}

// Via is how the archive API reaches a volume or bind: at a path of a container
// that mounts it.
type Via struct {
	Container string // id
	Path      string
	// Mounts are the destinations of all of the container's mounts.
	Mounts []string
}

// System is what Discover found: dr's vocabulary, with what only the capturing
// host needs to know besides. Slices are sorted by name.
type System struct {
	Project    string
	Engine     dr.EngineInfo
	HostFS     HostFS
	Containers []Container
	Images     []Image
	Networks   []Network
	Volumes    []Volume
	Binds      []Bind
	Files      []ProjectFile
	// Coverage says of each object what will be captured and what not.
	Coverage []dr.CoverageItem
}

// Container is a container of the system. The embedded part is normalised for a
// create request; Mounts[].Tree and Layer hold the keys of trees that are to be
// captured.
type Container struct {
	dr.Container
	// InitPID is the init process while it runs or is paused, else 0, in the
	// engine's pid namespace.
	InitPID int
	// OneOff is a container of `docker compose run`.
	OneOff bool
	// AutoRemove containers are gone once they stop: stopping one loses its
	// writable layer.
	AutoRemove bool
	// HasHealthcheck tells whether the engine checks its health.
	HasHealthcheck bool
	// RestartPolicy as captured, which SetRestartPolicy takes.
	RestartPolicy RestartPolicy
	// LayerPath is where the writable layer lies; zero where Layer is empty.
	LayerPath Layer
}

// Network is a network of the system; Spec decodes as NetworkSpec.
type Network struct {
	dr.Network
	ID string
	// UsedBy are containers outside the system that are attached too.
	UsedBy []string
}

// Volume is a volume of the system.
type Volume struct {
	dr.Volume
	// Path is where its data lies in the engine's mount namespace; with the
	// local driver's bind option that is the bound directory, since the mount
	// point is mounted only while a container runs. Empty if not to be captured.
	Path string
	// UsedBy are containers outside the system that mount it too.
	UsedBy []string
	// Via is set with Selector.Archive where the volume is to be captured.
	Via *Via
}

// Bind is a host path that containers of the system mount.
type Bind struct {
	dr.Bind
	// Kind is dir, file, socket, device, missing or unknown.
	Kind string
	// Propagation is the mount propagation asked for, where not the default.
	Propagation string
	// UsedBy are containers outside the system that mount it too.
	UsedBy []string
	// Via is set with Selector.Archive where the bind is to be captured.
	Via *Via
}

// ProjectFile is a file that describes the project; its content is read by capture.
type ProjectFile struct {
	Role string // compose, env or other
	Path string // absolute in the engine's mount namespace
}

// Image is what the engine says about an image.
type Image struct {
	// ID names the image on this engine: the configuration's digest, or a
	// manifest's digest with the containerd store.
	ID string
	// ConfigDigest is the digest of the configuration; empty where only the
	// saved image tells (containerd store without access to containerd).
	ConfigDigest string
	Tags         []string
	Digests      []string
	OS           string
	Arch         string
	Variant      string
	// DiffIDs are the digests of the uncompressed layers, lowest first.
	DiffIDs []string
	// Size in bytes as the engine counts it; not comparable between engines.
	Size int64
	// Labels of its configuration.
	Labels map[string]string
	// Inspect is the engine's whole answer.
	Inspect json.RawMessage
}

// RestartPolicy says when the engine starts a container again by itself.
type RestartPolicy struct {
	Name              string // no, always, unless-stopped, on-failure
	MaximumRetryCount int
}
