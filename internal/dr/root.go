package dr

import (
	"encoding/json"
	"time"
)

// RootFormat is the version of Root that this code writes.
const RootFormat = 1

// Kind says on which line a snapshot stands.
type Kind string

const (
	// KindCurrent is a snapshot of the site that holds the system's epoch.
	KindCurrent Kind = "current"
	// KindDivergent is what a site held that is on no line of snapshots; it
	// was kept before it was overwritten. It is never the default of a failover.
	KindDivergent Kind = "divergent"
)

// Consistency says what the instant of a snapshot promises.
type Consistency string

const (
	// ConsistentCrash: all trees are of the one instant of the freeze.
	ConsistentCrash Consistency = "crash"
	// ConsistentStopped: no container of the system was running.
	ConsistentStopped Consistency = "stopped"
	// ConsistentNone: the trees are of no common instant. Nothing writes this: the
	// degraded mode pauses all containers while it reads, and is ConsistentCrash
	// (ADR 8).
	ConsistentNone Consistency = "none"
)

// Root is the root record of a snapshot: everything needed to bring the system
// up on an engine that has never seen it. It is stored as JSON in one unit;
// the unit's id is the snapshot's id. Slices are sorted by name so that equal
// systems give equal records.
type Root struct {
	Format      int         `json:"format"`
	Repo        RepoID      `json:"repo"`
	System      System      `json:"system"`
	Site        Site        `json:"site"`
	Host        HostID      `json:"host"`
	Epoch       Epoch       `json:"epoch"`
	Parent      *SnapshotID `json:"parent,omitempty"`
	Kind        Kind        `json:"kind"`
	Consistency Consistency `json:"consistency"`
	// Created is the instant of the freeze (UTC), or of the start of reading
	// where nothing ran.
	Created    time.Time      `json:"created"`
	Engine     EngineInfo     `json:"engine"`
	Containers []Container    `json:"containers"`
	Images     []Image        `json:"images"`
	Networks   []Network      `json:"networks"`
	Volumes    []Volume       `json:"volumes"`
	Binds      []Bind         `json:"binds"`
	Files      []ProjectFile  `json:"files"`
	Trees      []Tree         `json:"trees"`
	Coverage   []CoverageItem `json:"coverage"`
}

// EngineInfo describes the engine that a snapshot was taken from.
type EngineInfo struct {
	ID            string `json:"id"`
	Name          string `json:"name"`
	Version       string `json:"version"`
	API           string `json:"api"`
	StorageDriver string `json:"storage_driver"`
	// ContainerdStore is true where images live in the containerd image store:
	// an image is then named by a manifest over stored (compressed) bytes.
	ContainerdStore bool   `json:"containerd_store"`
	OS              string `json:"os"`
	Arch            string `json:"arch"`
	Kernel          string `json:"kernel"`
}

// Container is one container of a system.
type Container struct {
	// ID is the engine's id at capture time; for people and logs only.
	ID string `json:"id"`
	// Name without the leading slash.
	Name string `json:"name"`
	// Project, Service and ContainerNumber come from Compose labels; empty else.
	Project         string `json:"project,omitempty"`
	Service         string `json:"service,omitempty"`
	ContainerNumber string `json:"container_number,omitempty"`
	// State is the engine's word: running, exited, created, paused, restarting, dead.
	State    string `json:"state"`
	ExitCode int    `json:"exit_code,omitempty"`
	// Image is the id of an entry in Root.Images; ImageRef the name the container was created with.
	Image    string `json:"image"`
	ImageRef string `json:"image_ref"`
	// Config, HostConfig and Endpoints are the engine's own JSON, as a create
	// request takes them: Config and HostConfig of inspect, and for each network
	// name the endpoint settings stripped of what the engine assigned at run time.
	Config     json.RawMessage            `json:"config"`
	HostConfig json.RawMessage            `json:"host_config"`
	Endpoints  map[string]json.RawMessage `json:"endpoints,omitempty"`
	Platform   string                     `json:"platform,omitempty"`
	DependsOn  []Dependency               `json:"depends_on,omitempty"`
	Mounts     []Mount                    `json:"mounts,omitempty"`
	// Layer is the key of the writable layer in Root.Trees; empty where it was
	// not captured (coverage says why).
	Layer string `json:"layer,omitempty"`
}

// Dependency orders the start of containers, in Compose's terms.
type Dependency struct {
	// Container is the name of a container in the same Root.
	Container string `json:"container"`
	// Condition is service_started, service_healthy or service_completed_successfully.
	Condition string `json:"condition"`
}

// Mount is one mount point of a container.
type Mount struct {
	// Type is volume, bind, tmpfs, npipe, cluster or image.
	Type        string `json:"type"`
	Name        string `json:"name,omitempty"`   // volume name
	Source      string `json:"source,omitempty"` // host path of a bind mount
	Destination string `json:"destination"`
	RW          bool   `json:"rw"`
	// Tree is the key in Root.Trees; empty where it was not captured.
	Tree string `json:"tree,omitempty"`
}

// Image is an image of the system with everything needed to give it back with
// the same identity.
type Image struct {
	// ID is the engine's image id (configuration digest, or manifest digest with the containerd store).
	ID string `json:"id"`
	// ConfigDigest is the digest of the configuration, on every kind of engine.
	ConfigDigest string   `json:"config_digest"`
	Tags         []string `json:"tags"`
	Digests      []string `json:"digests,omitempty"`
	OS           string   `json:"os"`
	Arch         string   `json:"arch"`
	Variant      string   `json:"variant,omitempty"`
	// Record is the image record (package layer) as a list of units: configuration,
	// manifest, layers.
	Record []UnitRef `json:"record"`
	// Bytes is the sum of the uncompressed layers.
	Bytes int64 `json:"bytes"`
}

// Network is a user-defined network of the system.
type Network struct {
	Name string `json:"name"`
	// Spec is the engine's create request (driver, IPAM, options, labels, flags) as JSON.
	Spec json.RawMessage `json:"spec"`
	// External networks are not created by the project; they must exist or be mapped by an override.
	External bool `json:"external,omitempty"`
}

// Volume is a volume of the system.
type Volume struct {
	Name    string            `json:"name"`
	Driver  string            `json:"driver"`
	Options map[string]string `json:"options,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
	// Anonymous volumes were named by the engine.
	Anonymous bool   `json:"anonymous,omitempty"`
	Tree      string `json:"tree,omitempty"`
}

// Bind is a path of the host that containers mount.
type Bind struct {
	Source string `json:"source"`
	// File is true where the source is a single file; the tree then holds one
	// entry with the empty path.
	File bool   `json:"file,omitempty"`
	Tree string `json:"tree,omitempty"`
}

// ProjectFile is a file that describes the project: Compose file, env file.
type ProjectFile struct {
	// Role is compose, env or other.
	Role string `json:"role"`
	Path string `json:"path"` // absolute on the captured host
	Mode uint32 `json:"mode"`
	UID  uint32 `json:"uid"`
	GID  uint32 `json:"gid"`
	// Content as units.
	Content []UnitRef `json:"content"`
	Size    int64     `json:"size"`
}

// TreeKind says what a tree is.
type TreeKind string

const (
	TreeLayer  TreeKind = "layer"
	TreeVolume TreeKind = "volume"
	TreeBind   TreeKind = "bind"
)

// Tree is one captured file tree.
type Tree struct {
	// Key is layer:<container name>, volume:<name> or bind:<absolute path>.
	Key  string   `json:"key"`
	Kind TreeKind `json:"kind"`
	// Catalog is the catalog's page table as units, in order (package catalog).
	Catalog []UnitRef `json:"catalog"`
	Entries int64     `json:"entries"`
	// Bytes is the sum of the apparent sizes of regular files.
	Bytes int64 `json:"bytes"`
	// Hash is BLAKE3 over all catalog pages, keyed with the id key: equal trees
	// have equal hashes.
	Hash UnitID `json:"hash"`
	// Exclude are paths inside the tree that were left out by the operator's
	// choice; bringing the tree back does not touch them.
	Exclude []string `json:"exclude,omitempty"`
	// Degraded names what could not be kept in this tree (attributes of the host,
	// what the engine's archive API does not give); empty when nothing was lost.
	Degraded string `json:"degraded,omitempty"`
	// HalfRestored are the directories in it ("" for its root) into which a restore
	// was not at its end when it was captured: what they hold is a mixture.
	HalfRestored []string `json:"half_restored,omitempty"`
}

// CoverageItem is one line of the coverage report.
type CoverageItem struct {
	// Object is what the line speaks of: container:NAME, volume:NAME, bind:PATH,
	// network:NAME, image:NAME (its id where it has none), device:PATH, tmpfs:CONTAINER:PATH …
	Object   string `json:"object"`
	Captured bool   `json:"captured"`
	// Partial: it is captured, and Reason says what of it is lost.
	Partial bool `json:"partial,omitempty"`
	// Reason says why it is not captured, what of it is lost, or what else to know.
	Reason string `json:"reason,omitempty"`
	// Bytes is the size where it is known, -1 else.
	Bytes int64 `json:"bytes"`
	// Refused items make a snapshot impossible (invariant 5: freezing it would
	// freeze Lifeboat itself).
	Refused bool `json:"refused,omitempty"`
}
