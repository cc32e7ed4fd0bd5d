package engine

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"lifeboat/internal/dr"
)

// Image describes an image by name or id. The error of one that is not there
// wraps dr.ErrNotFound.
func (e *Engine) Image(ctx context.Context, ref string) (Image, error) {
	var raw bytes.Buffer
	res, err := e.cli.ImageInspect(ctx, ref, client.ImageInspectWithRawResponse(&raw))
	if err != nil {
		return Image{}, failed("inspect image "+ref, err)
	}
	img := Image{
		ID: res.ID, Tags: real(res.RepoTags), Digests: real(res.RepoDigests),
		OS: res.Os, Arch: res.Architecture, Variant: res.Variant, DiffIDs: res.RootFS.Layers, Size: res.Size,
		Inspect: bytes.Clone(raw.Bytes()),
	}
	if res.Config != nil {
		img.Labels = res.Config.Labels
	}
	if !strings.Contains(img.ID, ":") {
		img.ID = "sha256:" + img.ID // podman
	}
	// A classic engine's id is the configuration's digest. With the containerd
	// store the descriptor tells that it is a manifest's.
	if res.Descriptor == nil {
		img.ConfigDigest = img.ID
	}
	return img, nil
}

// real drops the engine's placeholder for images without a name, and sorts.
func real(names []string) []string {
	out := slices.DeleteFunc(slices.Clone(names), func(s string) bool { return strings.Contains(s, "<none>") })
	slices.Sort(out)
	return out
}

// RestoredRepo is the name, before its tag, that keeps an image which is being
// brought up from being swept until its containers exist. It is Lifeboat's own
// and never part of what Discover finds.
const RestoredRepo = "lifeboat-restored"

// given are the names that others gave.
func given(names []string) []string {
	return slices.DeleteFunc(names, func(s string) bool {
		return strings.HasPrefix(s, RestoredRepo+":") || strings.HasPrefix(s, RestoredRepo+"@")
	})
}

// HasImage reports whether the engine has an image, by name or id.
func (e *Engine) HasImage(ctx context.Context, ref string) (bool, error) {
	_, err := e.Image(ctx, ref)
	if errors.Is(err, dr.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// ImageBytes are the exact bytes that an image's identity hangs on.
type ImageBytes struct {
	Config       []byte
	ConfigDigest string
	// Manifest is empty where the engine keeps none.
	Manifest          []byte
	ManifestDigest    string
	ManifestMediaType string
}

// ImageBytes reads configuration and manifest of an image from the engine's own
// store, checked against their digests, without saving the image. Where the
// store cannot be reached the error says why; the saved image has them too.
func (e *Engine) ImageBytes(ctx context.Context, ref string) (ImageBytes, error) {
	img, err := e.Image(ctx, ref)
	if err != nil {
		return ImageBytes{}, err
	}
	h, err := e.HostFS(ctx)
	if err != nil {
		return ImageBytes{}, err
	}
	if !h.Local {
		return ImageBytes{}, fmt.Errorf("configuration of image %s: %s", ref, h.Reason)
	}
	if img.ConfigDigest != "" {
		return classicImageBytes(h, img)
	}
	b, err := e.contentImageBytes(ctx, h, img)
	if err != nil {
		return ImageBytes{}, fmt.Errorf("configuration of image %s: %w", ref, err)
	}
	return b, nil
}

// classicImageBytes reads the image database of a graph driver engine.
func classicImageBytes(h HostFS, img Image) (ImageBytes, error) {
	hexID := strings.TrimPrefix(img.ID, "sha256:")
	p, err := h.Path(filepath.Join(h.RootDir, "image", h.facts.StorageDriver, "imagedb/content/sha256", hexID))
	if err != nil {
		return ImageBytes{}, fmt.Errorf("configuration of image %s: %w", img.ID, err)
	}
	b, err := os.ReadFile(p)
	if err != nil {
		return ImageBytes{}, fmt.Errorf("configuration of image %s: %w", img.ID, err)
	}
	if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != hexID {
		return ImageBytes{}, fmt.Errorf("configuration of image %s: its content has another digest: %w", img.ID, dr.ErrTampered)
	}
	return ImageBytes{Config: b, ConfigDigest: img.ID}, nil
}

// ociNode is a manifest or an index, as far as it is needed.
type ociNode struct {
	MediaType string `json:"mediaType"`
	Config    *struct {
		Digest string `json:"digest"`
	} `json:"config"`
	Manifests []struct {
		Digest   string `json:"digest"`
		Platform *struct {
			OS           string `json:"os"`
			Architecture string `json:"architecture"`
			Variant      string `json:"variant"`
		} `json:"platform"`
	} `json:"manifests"`
}

// contentImageBytes follows an image id in the containerd store: an index leads
// to the manifest of the image's platform, that to the configuration.
func (e *Engine) contentImageBytes(ctx context.Context, h HostFS, img Image) (ImageBytes, error) {
	c, err := e.containerd(ctx, h)
	if err != nil {
		return ImageBytes{}, err
	}
	defer c.Close()
	out := ImageBytes{ManifestDigest: img.ID}
	for depth := 0; depth < 3; depth++ {
		if out.Manifest, err = c.Blob(ctx, out.ManifestDigest); err != nil {
			return ImageBytes{}, err
		}
		var n ociNode
		if err := json.Unmarshal(out.Manifest, &n); err != nil {
			return ImageBytes{}, fmt.Errorf("manifest %s: %w", out.ManifestDigest, err)
		}
		out.ManifestMediaType = n.MediaType
		if n.Config != nil {
			out.ConfigDigest = n.Config.Digest
			out.Config, err = c.Blob(ctx, n.Config.Digest)
			return out, err
		}
		next := ""
		for _, m := range n.Manifests {
			if m.Platform != nil && m.Platform.OS == img.OS && m.Platform.Architecture == img.Arch && m.Platform.Variant == img.Variant {
				next = m.Digest
				break
			}
		}
		if next == "" && len(n.Manifests) == 1 {
			next = n.Manifests[0].Digest
		}
		if next == "" {
			return ImageBytes{}, fmt.Errorf("index %s names no manifest for %s/%s", out.ManifestDigest, img.OS, img.Arch)
		}
		out.ManifestDigest = next
	}
	return ImageBytes{}, errors.New("indexes nested too deep")
}

// SaveImage streams an image as `docker save` does. The caller closes it; an
// error on the way shows as an error of Read or as a truncated archive.
func (e *Engine) SaveImage(ctx context.Context, id string) (io.ReadCloser, error) {
	r, err := e.cli.ImageSave(ctx, []string{id})
	if err != nil {
		return nil, failed("save image "+id, err)
	}
	return r, nil
}

// stream reads the engine's progress messages until their end. An error in them
// is the outcome of the call, although its status was 200.
func stream(r io.Reader, each func(m message)) error {
	d := json.NewDecoder(r)
	for {
		var m message
		err := d.Decode(&m)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the engine's progress: %w", err)
		}
		if m.Error != "" {
			return &apiError{msg: m.Error, class: streamClass(m.Error)}
		}
		each(m)
	}
}

// streamClass gives an error of a progress stream the class that an answer with
// a status would have had.
func streamClass(msg string) error {
	for _, s := range []string{"not found", "manifest unknown", "does not exist", "No such"} {
		if strings.Contains(msg, s) {
			return cerrdefs.ErrNotFound
		}
	}
	return cerrdefs.ErrInternal
}

// parsePlatform reads os/arch[/variant].
func parsePlatform(s string) (ocispec.Platform, error) {
	p := strings.Split(s, "/")
	if len(p) < 2 || len(p) > 3 || slices.Contains(p, "") {
		return ocispec.Platform{}, fmt.Errorf("platform %q is not os/arch[/variant]: %w", s, dr.ErrUsage)
	}
	out := ocispec.Platform{OS: p[0], Architecture: p[1]}
	if len(p) == 3 {
		out.Variant = p[2]
	}
	return out, nil
}

// message is one line of progress of load, pull and import.
type message struct {
	Stream   string `json:"stream"`
	Status   string `json:"status"`
	ID       string `json:"id"`
	Progress struct {
		Current int64 `json:"current"`
		Total   int64 `json:"total"`
	} `json:"progressDetail"`
	Error string `json:"error"`
}

// LoadImage loads an archive as `docker load` does and returns what the engine
// says it loaded, names and ids.
func (e *Engine) LoadImage(ctx context.Context, archive io.Reader) ([]string, error) {
	res, err := e.cli.ImageLoad(ctx, archive)
	if err != nil {
		return nil, changed("load image", err)
	}
	defer res.Close()
	var loaded []string
	err = stream(res, func(m message) {
		for _, p := range []string{"Loaded image ID: ", "Loaded image: ", "Loaded image(s): "} {
			if rest, ok := strings.CutPrefix(m.Stream, p); ok {
				for name := range strings.SplitSeq(strings.TrimSpace(rest), ",") {
					loaded = append(loaded, strings.TrimSpace(name))
				}
			}
		}
	})
	if err != nil {
		return loaded, changed("load image", err)
	}
	return loaded, nil
}

// RegistryAuth are credentials for pulling; they travel in a header.
type RegistryAuth struct {
	Username      string `json:"username,omitempty"`
	Password      string `json:"password,omitempty"`
	IdentityToken string `json:"identitytoken,omitempty"`
	ServerAddress string `json:"serveraddress,omitempty"`
}

// PullProgress is the state of one layer of a pull, in bytes; Total is 0 until known.
type PullProgress struct {
	Layer   string
	Status  string
	Current int64
	Total   int64
}

// PullOptions say how to pull. The zero value pulls anonymously.
type PullOptions struct {
	Auth     RegistryAuth
	Platform string // os/arch[/variant], empty for the engine's own
	// Progress, if set, is called from the calling goroutine.
	Progress func(PullProgress)
	// Stall ends the pull when the engine reports nothing for that long; 0
	// waits for ever (an engine has no stall timeout of its own).
	Stall time.Duration
}

// PullImage pulls ref (a name with tag or digest) and returns when the image is
// there whole.
func (e *Engine) PullImage(ctx context.Context, ref string, o PullOptions) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	auth := ""
	if o.Auth != (RegistryAuth{}) {
		b, err := json.Marshal(o.Auth)
		if err != nil {
			return fmt.Errorf("pull image %s: encode credentials: %w", ref, err)
		}
		auth = base64.URLEncoding.EncodeToString(b)
	}
	opts := client.ImagePullOptions{RegistryAuth: auth}
	if o.Platform != "" {
		p, err := parsePlatform(o.Platform)
		if err != nil {
			return fmt.Errorf("pull image %s: %w", ref, err)
		}
		opts.Platforms = append(opts.Platforms, p)
	}
	var watch *time.Timer
	if o.Stall > 0 {
		watch = time.AfterFunc(o.Stall, func() { cancel(fmt.Errorf("no progress for %s", o.Stall)) })
		defer watch.Stop()
	}
	res, err := e.cli.ImagePull(ctx, ref, opts)
	if err == nil {
		defer res.Close()
		err = stream(res, func(m message) {
			if watch != nil {
				watch.Reset(o.Stall)
			}
			if o.Progress != nil {
				o.Progress(PullProgress{Layer: m.ID, Status: m.Status, Current: m.Progress.Current, Total: m.Progress.Total})
			}
		})
	}
	if err != nil && context.Cause(ctx) != nil {
		err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	// A pull that breaks off leaves nothing behind but layers; doing it again is safe.
	return failed("pull image "+ref, err)
}

// TagImage gives an image another name; it takes the name from whatever had it.
func (e *Engine) TagImage(ctx context.Context, id, ref string) error {
	repo, tag := splitRef(ref)
	err := e.call(ctx, "POST", "/images/"+id+"/tag", url.Values{"repo": {repo}, "tag": {tag}}, nil, nil)
	return changed("tag image "+id+" as "+ref, err)
}

// UntagImage takes a name away. The image itself goes when it was its last name
// and nothing uses it. A name that is not there is no error.
func (e *Engine) UntagImage(ctx context.Context, ref string) error {
	err := e.removeImage(ctx, ref, url.Values{"noprune": {"1"}})
	if errors.Is(err, dr.ErrNotFound) {
		return nil
	}
	return err
}

// RemoveImage removes an image by id with all its names. It fails with
// dr.ErrHeld while a container uses it; one that is not there is no error.
func (e *Engine) RemoveImage(ctx context.Context, id string) error {
	img, err := e.Image(ctx, id)
	if errors.Is(err, dr.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	// One name at a time, so that an image in use is not forced away.
	for _, t := range img.Tags {
		if err := e.UntagImage(ctx, t); err != nil {
			return err
		}
	}
	err = e.removeImage(ctx, id, nil)
	if errors.Is(err, dr.ErrNotFound) {
		return nil
	}
	return err
}

func (e *Engine) removeImage(ctx context.Context, ref string, q url.Values) error {
	return changed("remove image "+ref, e.call(ctx, "DELETE", "/images/"+ref, q, nil, nil))
}

// ImportImage makes an image of one layer from a tar stream of a root file
// system. changes are Dockerfile lines (ENTRYPOINT, LABEL…). It returns the id.
func (e *Engine) ImportImage(ctx context.Context, rootfs io.Reader, ref string, changes []string) (string, error) {
	repo, tag := splitRef(ref)
	res, err := e.cli.ImageImport(ctx, client.ImageImportSource{Source: rootfs, SourceName: "-"}, repo, client.ImageImportOptions{Tag: tag, Changes: changes})
	if err != nil {
		return "", notAllowed(changed("import image "+ref, err))
	}
	defer res.Close()
	id := ""
	if err := stream(res, func(m message) {
		if strings.HasPrefix(m.Status, "sha256:") {
			id = m.Status
		}
	}); err != nil {
		return "", notAllowed(changed("import image "+ref, err))
	}
	if id == "" {
		img, err := e.Image(ctx, ref)
		return img.ID, err
	}
	return id, nil
}

// splitRef splits name:tag; a colon of a port is none of a tag.
func splitRef(ref string) (repo, tag string) {
	if i := strings.LastIndex(ref, ":"); i > strings.LastIndex(ref, "/") {
		return ref[:i], ref[i+1:]
	}
	return ref, "latest"
}
