package recover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"lifeboat/internal/dr"
	"lifeboat/internal/engine"
	"lifeboat/internal/imageserve"
	"lifeboat/internal/layer"
)

// handover says how an image of the snapshot is handed to this engine and
// which id it has here.
func (b *bringUp) handover(ctx context.Context, im dr.Image) (*layer.ImageRecord, layer.Handover, error) {
	rec, err := layer.Decode(ctx, b.reader, im.Record)
	if err != nil {
		return nil, layer.Handover{}, fmt.Errorf("image %s: %w", imageName(im), err)
	}
	h, err := layer.HandoverTo(rec, b.survey.info.ContainerdStore)
	if err != nil {
		return nil, layer.Handover{}, fmt.Errorf("image %s: %w", imageName(im), err)
	}
	return rec, h, nil
}

// imageID is the id that an image of the snapshot has on this engine, and
// whether the engine has it.
func (b *bringUp) imageID(ctx context.Context, im dr.Image) (id string, here bool, err error) {
	_, h, err := b.handover(ctx, im)
	if err != nil {
		return "", false, err
	}
	here, err = b.d.Engine.HasImage(ctx, string(h.EngineID))
	return string(h.EngineID), here, err
}

// bringImages hands the missing images to the engine and names them. A name
// that another image has here is left to it; the container is then created by
// the image's id.
func (b *bringUp) bringImages(ctx context.Context) error {
	var missing []*layer.ImageRecord
	var total int64
	for _, im := range b.local.Images {
		rec, h, err := b.handover(ctx, im)
		if err != nil {
			return err
		}
		here, err := b.d.Engine.HasImage(ctx, string(h.EngineID))
		if err != nil {
			return err
		}
		if here {
			continue
		}
		if !h.SameID {
			b.o.Progress.Note("image " + imageName(im) + " gets another id here: " + h.Why)
		}
		missing = append(missing, rec)
		total += im.Bytes
	}
	b.o.Progress.Total(total)
	if err := b.handImages(ctx, missing); err != nil {
		return err
	}
	for _, im := range b.local.Images {
		id, here, err := b.imageID(ctx, im)
		if err == nil && !here {
			err = fmt.Errorf("it was handed to the engine and is not there: %w", dr.ErrNotFound)
		}
		if err != nil {
			return fmt.Errorf("image %s: %w", imageName(im), err)
		}
		for _, tag := range im.Tags {
			if strings.HasPrefix(tag, engine.RestoredRepo+":") {
				continue // captured by an earlier version
			}
			if err := b.nameImage(ctx, id, tag); err != nil {
				return err
			}
		}
	}
	return nil
}

// handImages lets the engine pull the images from a listener on its own
// loopback; where it cannot, they are loaded as an archive.
func (b *bringUp) handImages(ctx context.Context, images []*layer.ImageRecord) error {
	if len(images) == 0 {
		return nil
	}
	if b.survey.info.ContainerdStore || b.o.Degraded { // in degraded mode the engine may be anywhere
		// This store takes a pull for whole where it has an unpacked layer but not
		// its bytes; a loaded archive always is.
		for _, rec := range images {
			if err := b.loadImage(ctx, rec); err != nil {
				return err
			}
		}
		return nil
	}
	l, err := loopbackOf(b.survey.host.EnginePID)
	if err != nil {
		return err
	}
	srv, err := imageserve.Serve(ctx, b.reader, images, imageserve.Options{
		ContainerdStore: b.survey.info.ContainerdStore, Listener: l, Log: b.d.Log, Served: b.o.Progress.Done,
	})
	if err != nil {
		return err
	}
	defer srv.Close()
	for _, rec := range images {
		if err := b.pullImage(ctx, srv, rec); err != nil {
			if ctx.Err() != nil || errors.Is(err, dr.ErrTampered) {
				return err
			}
			b.d.Log.Warn("the engine could not pull the image; loading it instead", "image", rec.ID, "error", err)
			if lerr := b.loadImage(ctx, rec); lerr != nil {
				return errors.Join(lerr, err)
			}
		}
	}
	return nil
}

// pullStall is how long the engine may report nothing of a pull.
const pullStall = 2 * time.Minute

func (b *bringUp) pullImage(ctx context.Context, srv *imageserve.Server, rec *layer.ImageRecord) error {
	served, err := srv.Image(rec.ID)
	if err != nil {
		return err
	}
	err = b.d.Engine.PullImage(ctx, served.Ref, engine.PullOptions{
		Auth:  engine.RegistryAuth{Username: srv.Username(), Password: srv.Password(), ServerAddress: srv.Addr()},
		Stall: pullStall,
	})
	if err != nil {
		return err
	}
	// A name keeps the image from being swept before its own ones are given.
	if err := b.d.Engine.TagImage(ctx, string(served.EngineID), keepName(rec)); err != nil {
		return err
	}
	return b.d.Engine.UntagImage(ctx, served.Ref)
}

// keepName names an image until its containers exist.
func keepName(rec *layer.ImageRecord) string { return engine.RestoredRepo + ":" + rec.ID.Hex()[:32] }

// dropKeepNames takes the names of keepName away where the image has another
// one. An image without any other keeps it: a store that sweeps what has no name
// would take it from under its containers.
func (b *bringUp) dropKeepNames(ctx context.Context) error {
	for _, im := range b.local.Images {
		rec, h, err := b.handover(ctx, im)
		if err != nil {
			return err
		}
		have, err := b.d.Engine.Image(ctx, string(h.EngineID))
		if err != nil {
			return fmt.Errorf("image %s: %w", imageName(im), err)
		}
		if keep := keepName(rec); hasOtherName(have.Tags, keep) {
			if err := b.d.Engine.UntagImage(ctx, keep); err != nil {
				return err
			}
		}
	}
	return nil
}

// hasOtherName reports whether an image has the name keep and another one that
// is not of its kind.
func hasOtherName(tags []string, keep string) bool {
	other := slices.ContainsFunc(tags, func(s string) bool { return !strings.HasPrefix(s, engine.RestoredRepo+":") })
	return other && slices.Contains(tags, keep)
}

func (b *bringUp) loadImage(ctx context.Context, rec *layer.ImageRecord) error {
	h, err := layer.HandoverTo(rec, b.survey.info.ContainerdStore)
	if err != nil {
		return err
	}
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := layer.WriteArchive(ctx, counting{pw, b.o.Progress.Done}, b.reader, h.Form, layer.ArchiveImage{Record: rec, Tags: []string{keepName(rec)}})
		_ = pw.CloseWithError(err)
		done <- err
	}()
	_, err = b.d.Engine.LoadImage(ctx, pr)
	_ = pr.CloseWithError(errors.New("the engine stopped reading"))
	if werr := <-done; werr != nil && (err == nil || errors.Is(werr, dr.ErrTampered)) {
		return werr
	}
	return err
}

func imageName(im dr.Image) string {
	if len(im.Tags) > 0 {
		return im.Tags[0]
	}
	return im.ID
}

// nameImage gives an image a name unless another one has it.
func (b *bringUp) nameImage(ctx context.Context, id, tag string) error {
	have, err := b.d.Engine.Image(ctx, tag)
	switch {
	case errors.Is(err, dr.ErrNotFound):
		return b.d.Engine.TagImage(ctx, id, tag)
	case err != nil:
		return err
	case have.ID != id:
		b.o.Progress.Note("the name " + tag + " stays with another image here; containers are created by the image's id")
	}
	return nil
}

// localImage is the id, on this engine, of the image that a container runs.
func (b *bringUp) localImage(ctx context.Context, c dr.Container) (string, error) {
	at := slices.IndexFunc(b.local.Images, func(im dr.Image) bool { return im.ID == c.Image })
	if at < 0 {
		return "", fmt.Errorf("the snapshot has no image %s for container %s: %w", c.Image, c.Name, dr.ErrTampered)
	}
	id, here, err := b.imageID(ctx, b.local.Images[at])
	if err == nil && !here {
		err = fmt.Errorf("image %s: %w", imageName(b.local.Images[at]), dr.ErrNotFound)
	}
	return id, err
}

// imageRef is what a container is created from: the captured name where it
// means the captured image here, else the image's id.
func (b *bringUp) imageRef(ctx context.Context, c dr.Container, id string) string {
	if got, err := b.d.Engine.Image(ctx, c.ImageRef); err == nil && got.ID == id {
		return c.ImageRef
	}
	return id
}

// counting tells of the bytes that are written through it.
type counting struct {
	io.Writer
	wrote func(n int64)
}

func (c counting) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	c.wrote(int64(n))
	return n, err
}
