package layer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"lifeboat/internal/cut"
	"lifeboat/internal/dr"
)

// RecordFormat is the version of ImageRecord that this code writes.
const RecordFormat = 1

// Bounds on what a record may claim, checked before memory is taken
// (invariant 10).
const (
	maxRecord  = 64 << 20 // JSON of an image record
	maxObject  = 4 << 20  // a manifest, an index, a configuration
	maxLayers  = 1024     // of one image; engines stop at about 127
	maxObjects = 4096     // manifests, indexes and attestations of one image
	maxHeader  = 64 << 10 // gzip header in a recipe
)

var (
	// ErrForeignLayer: the image has a layer that its publisher does not allow
	// to be passed on and that the engine therefore does not hand out.
	ErrForeignLayer = errors.New("layer is not distributable and not in the archive")
	// ErrLayerMissing: the engine's archive does not hold a layer, manifest or
	// configuration that the image names.
	ErrLayerMissing = errors.New("not in the archive")
	// ErrImageMissing: the archive does not hold a wanted image.
	ErrImageMissing = errors.New("image is not in the archive")
	// ErrDigest: bytes that the engine handed out are not those that their
	// digest names.
	ErrDigest = errors.New("digest does not match")
	// ErrNoStoredBlob: the image comes from an engine that names no compressed
	// bytes, so there are none to give back.
	ErrNoStoredBlob = errors.New("no stored form of the layer is known")
)

// Sink takes units in. A repository's writer satisfies it. Put copies data.
type Sink interface {
	Put(ctx context.Context, data []byte) (dr.UnitRef, error)
}

// Source gives units out, authenticated. A repository's reader satisfies it.
// The slice is not changed by either side afterwards.
type Source interface {
	Unit(ctx context.Context, ref dr.UnitRef) ([]byte, error)
}

// Fetcher is what a Source may offer besides: many units at once, in any
// order, fn called concurrently. The slice is used during the call only.
type Fetcher interface {
	Fetch(ctx context.Context, refs []dr.UnitRef, fn func(i int, data []byte) error) error
}

// Digest is an OCI digest, always "sha256:" and 64 lower-case hexadecimal
// digits.
type Digest string

// ParseDigest checks s against the one form that is accepted.
func ParseDigest(s string) (Digest, error) {
	d := Digest(s)
	if !d.Valid() {
		return "", fmt.Errorf("digest %q: want sha256: and 64 hexadecimal digits", s)
	}
	return d, nil
}

// Valid reports whether d has the accepted form.
func (d Digest) Valid() bool {
	const prefix = "sha256:"
	if len(d) != len(prefix)+64 || d[:len(prefix)] != prefix {
		return false
	}
	for _, c := range []byte(d[len(prefix):]) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// Hex is the digest without its algorithm; d must be Valid.
func (d Digest) Hex() string { return string(d[len("sha256:"):]) }

// DigestOf hashes data.
func DigestOf(data []byte) Digest {
	sum := sha256.Sum256(data)
	return digestFrom(sum[:])
}

func digestFrom(sum []byte) Digest { return Digest("sha256:" + hex.EncodeToString(sum)) }

// ImageRecord is everything that gives an image back with the same identity.
type ImageRecord struct {
	Format int `json:"format"`
	// ID is the engine's image id: the configuration's digest, or the digest
	// of Target where the engine has the containerd image store.
	ID Digest `json:"id"`
	// Platform of the image that the engine runs.
	OS      string `json:"os"`
	Arch    string `json:"arch"`
	Variant string `json:"variant,omitempty"`
	// Config is the configuration, byte for byte.
	Config Object `json:"config"`
	// Layers in order, the base first; their diff ids are those of the configuration.
	Layers []Layer `json:"layers"`
	// Target is what the engine's image name points at (containerd image store
	// only): a manifest, or an index of several platforms.
	Target *Descriptor `json:"target,omitempty"`
	// Manifest is the digest of the manifest, among Objects, that Config and
	// Layers belong to. Empty where the engine has none.
	Manifest Digest `json:"manifest,omitempty"`
	// Objects are the manifests and indexes at and below Target, and other
	// small blobs that they name (attestations, configurations of other platforms).
	Objects []Object `json:"objects,omitempty"`
	// Others are layers of further platforms that the engine holds as well.
	Others []Layer `json:"others,omitempty"`
	// Absent is what Target names but the engine does not hold: other platforms.
	Absent []Descriptor `json:"absent,omitempty"`
}

// Bytes is the sum of the uncompressed layers.
func (r *ImageRecord) Bytes() int64 {
	var n int64
	for i := range r.Layers {
		n += r.Layers[i].Size
	}
	return n
}

// Descriptor names a blob, as in the OCI image specification.
type Descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      Digest            `json:"digest"`
	Size        int64             `json:"size"`
	Platform    *Platform         `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Platform is an operating system and a processor architecture.
type Platform struct {
	OS      string `json:"os"`
	Arch    string `json:"architecture"`
	Variant string `json:"variant,omitempty"`
}

// Object is a small blob, kept byte for byte.
type Object struct {
	MediaType string       `json:"media_type,omitempty"`
	Digest    Digest       `json:"digest"`
	Size      int64        `json:"size"`
	Data      []dr.UnitRef `json:"data"`
}

// Layer is one layer of an image. The lists in it (Skeleton, Contents,
// Blob.Stored) are streams cut into units, so the record stays small however
// many files the layer holds.
type Layer struct {
	// DiffID is the digest of the uncompressed bytes, Size their number.
	DiffID Digest `json:"diff_id"`
	Size   int64  `json:"size"`
	// Skeleton and Contents are the split form (see the comment of splitter).
	// Without them the layer comes out of Blob by decompressing.
	Skeleton []dr.UnitRef `json:"skeleton,omitempty"`
	Contents []dr.UnitRef `json:"contents,omitempty"`
	// Files is how many stretches of file content the split form holds.
	Files int64 `json:"files,omitempty"`
	// Blob is the form that the engine stores and names; nil where it names
	// the uncompressed bytes only.
	Blob *Blob `json:"blob,omitempty"`
}

// split reports whether the layer has the split form.
func (l *Layer) split() bool { return len(l.Skeleton) > 0 }

// Compression names how a blob was compressed.
type Compression string

// The compressions that engines accept.
const (
	Uncompressed Compression = ""
	Gzip         Compression = "gzip"
	Zstd         Compression = "zstd"
)

// Blob is the stored form of a layer: what an engine with the containerd image
// store, or a registry, names by digest.
type Blob struct {
	Digest      Digest      `json:"digest"`
	Size        int64       `json:"size"`
	Compression Compression `json:"compression,omitempty"`
	// Recipe gives the first Recipe.Bytes bytes; nil means none.
	Recipe *Recipe `json:"recipe,omitempty"`
	// Stored lists the units of the bytes that no recipe gives.
	Stored []dr.UnitRef `json:"stored,omitempty"`
}

// reproduced is how many bytes of the blob the recipe gives.
func (b *Blob) reproduced() int64 {
	if b.Recipe == nil {
		return 0
	}
	return b.Recipe.Bytes
}

// Recipe says how the stored bytes come out of the uncompressed ones.
type Recipe struct {
	// Method names a compressor: RecipeGo.
	Method string `json:"method"`
	Level  int    `json:"level"`
	// Header is the gzip header as found.
	Header []byte `json:"header"`
	// Bytes is how far the recipe holds; the whole blob, as a rule.
	Bytes int64 `json:"bytes"`
}

// RecipeGo is one gzip member made by the compressor of Go 1.26's standard
// library. Its bytes are not a promise of later versions, so recipes are not
// asked for where a restore has to depend on them (ADR 7).
const RecipeGo = "gzip/go1.26"

// Encode stores the record and returns its units for dr.Image.Record. The same
// record gives the same units.
func Encode(ctx context.Context, sink Sink, cutter *cut.Cutter, rec *ImageRecord) ([]dr.UnitRef, error) {
	data, err := json.Marshal(rec)
	if err != nil {
		return nil, fmt.Errorf("encode the record of image %s: %w", rec.ID, err)
	}
	if len(data) > maxRecord {
		return nil, fmt.Errorf("encode the record of image %s: %d bytes, at most %d are allowed", rec.ID, len(data), maxRecord)
	}
	w := newPieceWriter(ctx, sink, cutter)
	if _, err := w.Write(data); err != nil {
		return nil, fmt.Errorf("store the record of image %s: %w", rec.ID, err)
	}
	refs, err := w.Close()
	if err != nil {
		return nil, fmt.Errorf("store the record of image %s: %w", rec.ID, err)
	}
	return refs, nil
}

// Decode reads a record and checks it. What does not hold together is
// dr.ErrTampered.
func Decode(ctx context.Context, src Source, refs []dr.UnitRef) (*ImageRecord, error) {
	data, err := readAll(ctx, src, refs, maxRecord)
	if err != nil {
		return nil, fmt.Errorf("read image record: %w", err)
	}
	rec, err := parseRecord(data)
	if err != nil {
		return nil, fmt.Errorf("read image record: %w", err)
	}
	return rec, nil
}

// parseRecord is Decode without a source.
func parseRecord(data []byte) (*ImageRecord, error) {
	rec := new(ImageRecord)
	dec := json.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(rec); err != nil {
		return nil, fmt.Errorf("%w: %w", dr.ErrTampered, err)
	}
	if rec.Format > RecordFormat {
		return nil, fmt.Errorf("image record has format %d, this program reads up to %d: use a newer one: %w", rec.Format, RecordFormat, dr.ErrUsage)
	}
	if err := rec.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", dr.ErrTampered, err)
	}
	return rec, nil
}

// check reports what of a record does not hold together.
func (r *ImageRecord) check() error {
	switch {
	case r.Format < 1:
		return fmt.Errorf("format %d", r.Format)
	case !r.ID.Valid():
		return fmt.Errorf("image id %q", r.ID)
	case len(r.Layers) > maxLayers || len(r.Others) > maxObjects || len(r.Objects) > maxObjects || len(r.Absent) > maxObjects:
		return errors.New("too many layers or objects")
	case r.Manifest != "" && r.Object(r.Manifest) == nil:
		return fmt.Errorf("manifest %s is not among the objects", r.Manifest)
	case r.Target != nil && r.Object(r.Target.Digest) == nil:
		return fmt.Errorf("target %s is not among the objects", r.Target.Digest)
	case r.Target != nil && r.Manifest == "":
		return errors.New("a target but no manifest")
	}
	for _, o := range append([]Object{r.Config}, r.Objects...) {
		if !o.Digest.Valid() || o.Size < 0 || o.Size > maxObject || sumRefs(o.Data) != o.Size {
			return fmt.Errorf("object %q of %d bytes", o.Digest, o.Size)
		}
	}
	for _, list := range [][]Layer{r.Layers, r.Others} {
		for i := range list {
			if err := list[i].check(); err != nil {
				return fmt.Errorf("layer %q: %w", list[i].DiffID, err)
			}
			if r.Target != nil && list[i].Blob == nil {
				return fmt.Errorf("layer %q: no stored form", list[i].DiffID)
			}
		}
	}
	return nil
}

// Object returns the object with the given digest, the configuration
// included, or nil.
func (r *ImageRecord) Object(d Digest) *Object {
	if r.Config.Digest == d {
		return &r.Config
	}
	for i := range r.Objects {
		if r.Objects[i].Digest == d {
			return &r.Objects[i]
		}
	}
	return nil
}

func (l *Layer) check() error {
	if !l.DiffID.Valid() || l.Size < 0 || l.Files < 0 {
		return fmt.Errorf("size %d", l.Size)
	}
	b := l.Blob
	if b == nil {
		if !l.split() {
			return errors.New("neither a split nor a stored form")
		}
		return nil
	}
	if !b.Digest.Valid() || b.Size < 0 {
		return fmt.Errorf("stored form %q of %d bytes", b.Digest, b.Size)
	}
	switch b.Compression {
	case Uncompressed:
		if b.Digest != l.DiffID || b.Size != l.Size || !l.split() || b.Recipe != nil || b.Stored != nil {
			return errors.New("an uncompressed stored form that is not the layer")
		}
		return nil
	case Gzip, Zstd:
	default:
		return fmt.Errorf("compression %q is not known: use a newer program", b.Compression)
	}
	if r := b.Recipe; r != nil {
		switch {
		case compressorFor(r.Method) == nil || r.Level < -2 || r.Level > 9:
			return fmt.Errorf("recipe %q, level %d is not known: use a newer program", r.Method, r.Level)
		case r.Bytes < 0 || r.Bytes > b.Size || len(r.Header) > maxHeader:
			return fmt.Errorf("recipe for %d of %d bytes", r.Bytes, b.Size)
		case !l.split():
			return errors.New("a recipe without the split form")
		}
	}
	if len(b.Stored) == 0 && b.reproduced() != b.Size {
		return fmt.Errorf("recipe for %d of %d bytes and no more stored", b.reproduced(), b.Size)
	}
	return nil
}

// sumRefs is the number of bytes that refs stand for.
func sumRefs(refs []dr.UnitRef) int64 {
	var n int64
	for _, r := range refs {
		n += int64(r.Len)
	}
	return n
}

// unit reads one unit and insists on its length.
func unit(ctx context.Context, src Source, ref dr.UnitRef) ([]byte, error) {
	data, err := src.Unit(ctx, ref)
	if err != nil {
		return nil, err
	}
	return data, checkUnit(ref, data)
}

func checkUnit(ref dr.UnitRef, data []byte) error {
	if len(data) != int(ref.Len) {
		return fmt.Errorf("unit %s has %d bytes, %d were promised: %w", ref.ID, len(data), ref.Len, dr.ErrTampered)
	}
	return nil
}

// readAll reads what refs stand for into memory, at most limit bytes.
func readAll(ctx context.Context, src Source, refs []dr.UnitRef, limit int64) ([]byte, error) {
	if n := sumRefs(refs); n > limit {
		return nil, fmt.Errorf("%d bytes, at most %d are allowed: %w", n, limit, dr.ErrTampered)
	}
	var all []byte
	for _, ref := range refs {
		data, err := unit(ctx, src, ref)
		if err != nil {
			return nil, err
		}
		if len(refs) == 1 {
			return data, nil
		}
		all = append(all, data...)
	}
	return all, nil
}

// ReadObject gives the bytes of an object, checked against its digest.
func ReadObject(ctx context.Context, src Source, o *Object) ([]byte, error) {
	data, err := readAll(ctx, src, o.Data, maxObject)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", o.Digest, err)
	}
	if DigestOf(data) != o.Digest {
		return nil, fmt.Errorf("read %s: %w: %w", o.Digest, ErrDigest, dr.ErrTampered)
	}
	return data, nil
}
