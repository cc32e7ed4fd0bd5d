package layer

import (
	"encoding/json"
	"fmt"
)

// Form is how images are handed to an engine.
type Form uint8

const (
	// FormConfig is for engines that name an image by its configuration:
	// uncompressed layers, named by diff id.
	FormConfig Form = iota + 1
	// FormTarget is for engines with the containerd image store: manifests and
	// stored layers as they were captured, or made manifests over uncompressed
	// layers where there were none.
	FormTarget
)

// Handover says how an image is handed to an engine and what becomes of it.
type Handover struct {
	Form Form
	// EngineID is the id that the engine gives the image.
	EngineID Digest
	// SameID is false where that is not the id of the record; Why tells the reason.
	SameID bool
	Why    string
}

// HandoverTo plans the handover to an engine with or without the containerd
// image store.
func HandoverTo(rec *ImageRecord, containerdStore bool) (Handover, error) {
	if !containerdStore {
		h := Handover{Form: FormConfig, EngineID: rec.Config.Digest, SameID: rec.Target == nil}
		if !h.SameID {
			h.Why = "it was captured from an engine with the containerd image store, which names images by their manifest; this engine names them by their configuration"
		}
		return h, nil
	}
	target, made, err := targetOf(rec)
	h := Handover{Form: FormTarget, EngineID: target.Digest, SameID: made == nil}
	if !h.SameID {
		h.Why = "it was captured from an engine without the containerd image store, which names images by their configuration; this engine names them by their manifest"
	}
	return h, err
}

// Media types of the manifests made here. All engines take them, and the type
// of the layers says that they are not compressed.
const (
	typeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	typeDockerConfig   = "application/vnd.docker.container.image.v1+json"
	typeDockerLayer    = "application/vnd.docker.image.rootfs.diff.tar"
)

// MadeManifest makes a manifest over the uncompressed layers. The same record
// always gives the same bytes.
func MadeManifest(rec *ImageRecord) (Descriptor, []byte, error) {
	type manifest struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Config        Descriptor   `json:"config"`
		Layers        []Descriptor `json:"layers"`
	}
	m := manifest{
		SchemaVersion: 2, MediaType: typeDockerManifest,
		Config: Descriptor{MediaType: typeDockerConfig, Digest: rec.Config.Digest, Size: rec.Config.Size},
		Layers: []Descriptor{},
	}
	for i := range rec.Layers {
		m.Layers = append(m.Layers, Descriptor{MediaType: typeDockerLayer, Digest: rec.Layers[i].DiffID, Size: rec.Layers[i].Size})
	}
	data, err := json.Marshal(m)
	if err != nil {
		return Descriptor{}, nil, fmt.Errorf("make a manifest for image %s: %w", rec.ID, err)
	}
	return Descriptor{MediaType: typeDockerManifest, Digest: DigestOf(data), Size: int64(len(data))}, data, nil
}

// targetOf gives what an image name points at in an engine with the containerd
// image store; made is nil where the record has it.
func targetOf(rec *ImageRecord) (target Descriptor, made []byte, err error) {
	if rec.Target != nil {
		return *rec.Target, nil, nil
	}
	return MadeManifest(rec)
}
