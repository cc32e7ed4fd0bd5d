package registry

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"

	"github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/opencontainers/go-digest"
)

// A client that found stored bytes not to fit their digest may ask for them to be
// stored anew (store.Rewriting). Distribution never looks at what it has under a
// digest: it stats the file and takes it for good. For such a request, and for each
// manifest that is stored, Stat says of a file that does not fit its digest, or cannot
// be read, that it is not there; then Distribution puts the bytes that it has just verified in its
// place, atomically. Whoever may upload may ask: what replaces the damaged bytes can
// be nothing but the right ones.
const (
	rewriteHeader  = "Lifeboat-Rewrite"
	rewriteDamaged = "damaged"
)

// rewriting notes that the request means to replace the bytes of a digest if they
// are damaged.
func (n *note) rewriting(d string) {
	if d := digest.Digest(d); d.Validate() == nil && d.Algorithm() == digest.SHA256 {
		n.rewrite.Store(&d)
	}
}

// Stat implements driver.StorageDriver.
func (d *diskDriver) Stat(ctx context.Context, p string) (driver.FileInfo, error) {
	info, err := d.StorageDriver.Stat(ctx, p)
	err = d.judge(ctx, p, err)
	n, ok := ctx.Value(noteKey{}).(*note)
	if !ok || n.rewrite.Load() == nil || p != blobPath(*n.rewrite.Load()) {
		return info, err
	}
	sound := false
	if err == nil {
		sound, err = d.fits(ctx, p, *n.rewrite.Load())
	}
	if err != nil && !errors.Is(err, errDamaged) {
		return nil, err
	}
	if !sound {
		return nil, driver.PathNotFoundError{Path: p, DriverName: driverName}
	}
	return info, nil
}

// fits reports whether a file has the digest under which it is kept.
func (d *diskDriver) fits(ctx context.Context, p string, want digest.Digest) (bool, error) {
	f, err := d.Reader(ctx, p, 0)
	if err != nil {
		return false, err
	}
	sum := sha256.New()
	_, err = io.Copy(sum, f)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err == nil && digest.NewDigest(digest.SHA256, sum) == want, d.judge(ctx, p, err)
}
