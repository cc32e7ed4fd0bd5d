package repo

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"lifeboat/internal/dr"
	"lifeboat/internal/pack"
	"lifeboat/internal/seal"
	"lifeboat/internal/store"
)

// Media and artifact types of format 1.
const (
	typePrefix = "application/vnd.lifeboat."
	typePacks  = typePrefix + "packs.v1"
	typeIndex  = typePrefix + "index.v1"
	typePack   = typePrefix + "pack.v1"

	// recordAnnotation carries a record in base64.
	recordAnnotation = "dev.lifeboat.record"
)

// maxNeeds is how many pack manifests a snapshot may list.
const maxNeeds = 32

// emptyBlob is the content of the OCI empty descriptor.
const emptyBlob = "{}"

func emptyDescriptor() ocispec.Descriptor {
	return ocispec.Descriptor{
		MediaType: ocispec.MediaTypeEmptyJSON,
		Digest:    digest.FromString(emptyBlob),
		Size:      int64(len(emptyBlob)),
	}
}

// recordType is the artifact type of the records of a class.
func recordType(c Class) string {
	names := map[Class]string{
		ClassKey: "key", ClassHost: "host", ClassEpoch: "epoch", ClassSwitch: "switch", ClassSnapshot: "snapshot",
		ClassRelocation: "relocation", ClassLock: "lock",
	}
	return typePrefix + names[c] + ".v1"
}

// encodeRecordManifest makes the manifest that carries a record.
func encodeRecordManifest(c Class, record []byte) ([]byte, error) {
	m := ocispec.Manifest{
		Versioned:    specs.Versioned{SchemaVersion: 2},
		MediaType:    ocispec.MediaTypeImageManifest,
		ArtifactType: recordType(c),
		Config:       emptyDescriptor(),
		Layers:       []ocispec.Descriptor{emptyDescriptor()},
		Annotations:  map[string]string{recordAnnotation: base64.StdEncoding.EncodeToString(record)},
	}
	return json.Marshal(m)
}

// decodeRecordManifest returns the record that a manifest carries. The error
// wraps dr.ErrTampered.
func decodeRecordManifest(m store.Manifest, c Class) ([]byte, error) {
	if m.MediaType != ocispec.MediaTypeImageManifest {
		return nil, tampered("a manifest of media type %q", short(m.MediaType))
	}
	var d wireManifest
	if err := json.Unmarshal(m.Body, &d); err != nil {
		return nil, tampered("not a manifest: %v", err)
	}
	if d.ArtifactType != recordType(c) {
		return nil, tampered("an artifact of type %q, not %q", short(d.ArtifactType), recordType(c))
	}
	return decodeAnnotation(d.Annotations)
}

// claims reports whether a manifest says to be a record of a class.
func claims(m store.Manifest, c Class) bool {
	var d wireManifest
	return json.Unmarshal(m.Body, &d) == nil && d.ArtifactType == recordType(c)
}

// short bounds what an error quotes of a manifest.
func short(s string) string { return s[:min(len(s), 100)] }

func decodeAnnotation(raw json.RawMessage) ([]byte, error) {
	text, err := annotation(raw, recordAnnotation)
	if err != nil {
		return nil, tampered("its annotations cannot be read: %v", err)
	}
	if text == "" || len(text) > base64.StdEncoding.EncodedLen(seal.MaxRecord) {
		return nil, tampered("no record in it, or one too large")
	}
	b, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil {
		return nil, tampered("its record is not base64")
	}
	return b, nil
}

// encodeSnapshotIndex makes the image index of a snapshot, or of its relocation.
func encodeSnapshotIndex(c Class, record []byte, needs []need) ([]byte, error) {
	x := ocispec.Index{
		Versioned:    specs.Versioned{SchemaVersion: 2},
		MediaType:    ocispec.MediaTypeImageIndex,
		ArtifactType: recordType(c),
		Manifests:    []ocispec.Descriptor{},
		Annotations:  map[string]string{recordAnnotation: base64.StdEncoding.EncodeToString(record)},
	}
	for _, n := range needs {
		x.Manifests = append(x.Manifests, ocispec.Descriptor{
			MediaType: ocispec.MediaTypeImageManifest, ArtifactType: typePacks,
			Digest: n.Digest, Size: n.Size,
		})
	}
	return json.Marshal(x)
}

// need is a pack manifest that a snapshot lists.
type need struct {
	Digest digest.Digest
	Size   int64
}

// decodeSnapshotIndex returns the record and the needs of the image index of a
// snapshot or of its relocation. The error wraps dr.ErrTampered.
func decodeSnapshotIndex(c Class, m store.Manifest) (record []byte, needs []need, err error) {
	if m.MediaType != ocispec.MediaTypeImageIndex {
		return nil, nil, tampered("a manifest of media type %q, not an image index", short(m.MediaType))
	}
	var x wireManifest
	if err := json.Unmarshal(m.Body, &x); err != nil {
		return nil, nil, tampered("not an image index: %v", err)
	}
	if x.ArtifactType != recordType(c) {
		return nil, nil, tampered("an artifact of type %q, not %q", short(x.ArtifactType), recordType(c))
	}
	list, err := descriptors(x.Manifests, maxNeeds)
	if err != nil || len(list) == 0 {
		return nil, nil, tampered("it lists %d pack manifests or more, want 1 to %d: %v", len(list), maxNeeds, err)
	}
	for _, d := range list {
		if _, err := rawDigest(d.Digest); err != nil || d.Size < 1 || d.Size > store.MaxManifest {
			return nil, nil, tampered("it lists a manifest out of bounds")
		}
		needs = append(needs, need{d.Digest, d.Size})
	}
	record, err = decodeAnnotation(x.Annotations)
	return record, needs, err
}

// blob is a stored blob as a manifest names it.
type blob struct {
	Digest digest.Digest
	Size   int64
}

// packManifest is a pack manifest, parsed.
type packManifest struct {
	need
	raw   []byte
	index blob
	packs []blob
}

// tag is the pack manifest's own tag.
func (n need) tag() string { return string(ClassPacks) + "." + n.Digest.Encoded()[:32] }

// encodePackManifest makes the manifest that names an index and its packs.
func encodePackManifest(index blob, packs []blob) (*packManifest, error) {
	m := ocispec.Manifest{
		Versioned:    specs.Versioned{SchemaVersion: 2},
		MediaType:    ocispec.MediaTypeImageManifest,
		ArtifactType: typePacks,
		Config:       emptyDescriptor(),
		Layers:       []ocispec.Descriptor{{MediaType: typeIndex, Digest: index.Digest, Size: index.Size}},
	}
	for _, p := range packs {
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: typePack, Digest: p.Digest, Size: p.Size})
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode pack manifest: %w", err)
	}
	return &packManifest{need: need{digest.FromBytes(raw), int64(len(raw))}, raw: raw, index: index, packs: packs}, nil
}

// decodePackManifest checks a pack manifest. The error wraps dr.ErrTampered.
func decodePackManifest(raw []byte) (*packManifest, error) {
	var m wireManifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, tampered("not a manifest: %v", err)
	}
	if m.MediaType != ocispec.MediaTypeImageManifest || m.ArtifactType != typePacks {
		return nil, tampered("an artifact of type %q, not %q", short(m.ArtifactType), typePacks)
	}
	layers, err := descriptors(m.Layers, pack.MaxPacks+1)
	if err != nil || len(layers) < 2 {
		return nil, tampered("it names %d packs or more, want 1 to %d: %v", len(layers)-1, pack.MaxPacks, err)
	}
	p := &packManifest{need: need{digest.FromBytes(raw), int64(len(raw))}, raw: raw}
	for i, l := range layers {
		media, most := typePack, int64(pack.MaxSize)
		if i == 0 {
			media, most = typeIndex, pack.MaxIndex
		}
		if _, err := rawDigest(l.Digest); err != nil || l.MediaType != media || l.Size < 1 || l.Size > most {
			return nil, tampered("layer %d is not a %s within bounds", i, media)
		}
		b := blob{l.Digest, l.Size}
		if i == 0 {
			p.index = b
		} else {
			p.packs = append(p.packs, b)
		}
	}
	return p, nil
}

// rawDigest gives the 32 bytes of a sha256 digest.
func rawDigest(d digest.Digest) (raw [sha256.Size]byte, err error) {
	if err := d.Validate(); err != nil {
		return raw, err
	}
	if d.Algorithm() != digest.SHA256 {
		return raw, fmt.Errorf("digest %s is not sha256", d)
	}
	_, err = hex.Decode(raw[:], []byte(d.Encoded()))
	return raw, err
}

func digestOf(raw [sha256.Size]byte) digest.Digest {
	return digest.NewDigestFromBytes(digest.SHA256, raw[:])
}

// openBytes is what store.Blobs.PutBlob wants, for bytes in memory.
func openBytes(b []byte) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
}

// tampered makes an error that wraps dr.ErrTampered.
func tampered(format string, args ...any) error {
	return fmt.Errorf("%w: %w", fmt.Errorf(format, args...), dr.ErrTampered)
}

// about reports whether an error speaks of one stored thing rather than of the
// registry as a whole: then the rest can still be read.
func about(err error) bool {
	return errors.Is(err, dr.ErrTampered) || errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrTooLarge)
}
