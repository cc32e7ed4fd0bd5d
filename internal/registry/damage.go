package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path"
	"strconv"
	"strings"

	"github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/opencontainers/go-digest"
)

// A power cut or a bad disk leaves small files torn, empty or garbled. Distribution
// answers with status 500, which says of the registry that it is away and of the
// thing asked for nothing. Here each says what it is: a damaged manifest is sent as
// it is, as blobs are, so that whoever asked finds that its digest is another; a tag
// of which it cannot be read what it names is refused as damaged; any other link that
// says nothing is not there. All of them are healed by storing the same again.

// errDamaged: a file of the storage is not what it has to be.
var errDamaged = errors.New("damaged in the registry's storage")

// damagedDigest stands in the note on a deleted tag in the place of a digest that
// nobody knows: no manifest has it, so the number is given out to none.
const damagedDigest = digest.Digest("damaged")

// isNoDigest reports whether err is that of a link whose content is no digest.
func isNoDigest(err error) bool {
	return errors.Is(err, digest.ErrDigestInvalidFormat) || errors.Is(err, digest.ErrDigestInvalidLength) || errors.Is(err, digest.ErrDigestUnsupported)
}

// fitsDigest reports whether bytes are those of a digest.
func fitsDigest(body []byte, d digest.Digest) bool {
	return d.Validate() == nil && d.Algorithm().FromBytes(body) == d
}

// GetContent implements driver.StorageDriver. To requests a link that says nothing is
// not there, but for that of a tag, which must not pass for free; only Distribution's
// own look for tags of what was deleted goes past it. The janitor, who takes away what
// no link leads to, sees it as it is.
func (d *diskDriver) GetContent(ctx context.Context, p string) ([]byte, error) {
	b, err := d.StorageDriver.GetContent(ctx, p)
	n, request := ctx.Value(noteKey{}).(*note)
	if err != nil || !request || path.Base(p) != "link" || strings.HasSuffix(p, "/"+currentLink) && !n.checked.Load() {
		return b, err
	}
	if digest.Digest(b).Validate() != nil {
		return nil, driver.PathNotFoundError{Path: p, DriverName: driverName}
	}
	return b, nil
}

// serveManifest sends a manifest that is damaged as it is, and has Distribution,
// which would fail to parse it, send the others.
func (g *guard) serveManifest(w http.ResponseWriter, r *http.Request, req *request) {
	ctx, d := r.Context(), digest.Digest(req.ref)
	if !isDigest(req.ref) {
		var err error
		d, err = g.ledger.resolve(ctx, req.name, req.ref)
		if errors.Is(err, errDamaged) {
			g.log.Error("a tag is damaged: it cannot be read what it names", "name", req.name, "tag", req.ref)
			damagedTag(req.ref).write(w)
			return
		}
		if err != nil || d == "" {
			g.forward(w, r, req)
			return
		}
	}
	body, err := g.manifestBytes(ctx, req.name, d)
	if err != nil || fitsDigest(body, d) {
		g.forward(w, r, req)
		return
	}
	g.log.Error("a manifest is damaged", "name", req.name, "ref", req.ref, "digest", d)
	h := w.Header()
	h.Set("Docker-Distribution-Api-Version", "registry/2.0")
	h.Set("Docker-Content-Digest", d.String())
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodGet {
		_, _ = w.Write(body) // the client is gone; nothing to do about it
	}
}

// manifestBytes returns what is kept as a manifest of a name, whatever it is.
func (g *guard) manifestBytes(ctx context.Context, name string, d digest.Digest) ([]byte, error) {
	if err := d.Validate(); err != nil {
		return nil, err
	}
	kept, err := g.driver.GetContent(ctx, linkPath(revisionsPath(name), d))
	if err != nil || digest.Digest(kept) != d {
		return nil, errors.Join(err, errDamaged)
	}
	return g.driver.GetContent(ctx, blobPath(d))
}

// damagedTag has the status of what is understood and cannot be done: nobody is to
// ask again.
func damagedTag(tag string) *refusal {
	return &refusal{
		status: http.StatusUnprocessableEntity, code: "DIGEST_INVALID", reason: reasonDamaged,
		message: fmt.Sprintf("tag %s is damaged in the registry's storage: it cannot be read what it names", tag),
	}
}

// keptForDamage refuses a deletion while it cannot be told what tags need.
func keptForDamage(err error) *refusal {
	return conflict(reasonListed, fmt.Sprintf("it cannot be told what tags need, and nothing is deleted: %s", err))
}

// checkDamaged decides whether a tag of which it cannot be read what it names may
// name d: only if it did.
func (g *guard) checkDamaged(ctx context.Context, req *request, t tag, d digest.Digest) *refusal {
	was, err := g.ledger.given(ctx, req.name, t)
	switch {
	case err != nil && !errors.Is(err, errDamaged):
		return g.failure("read tag", req, err)
	case err == nil && was == d, t.ordinary() && req.access.Role == RoleOperator:
		return nil
	}
	return conflict(reasonTaken, fmt.Sprintf("tag %s is damaged in the registry's storage, and nothing says that it named %s", t.text, d))
}
