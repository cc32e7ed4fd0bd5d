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
	"golang.org/x/sys/unix"
)

// A power cut or a bad disk leaves small files torn, empty or garbled. Distribution
// answers with status 500, which says of the registry that it is away and of the
// thing asked for nothing. Here each says what it is: a damaged manifest is sent as
// it is, as blobs are, so that whoever asked finds that its digest is another; a tag
// of which it cannot be read what it names is refused as damaged; any other link that
// says nothing is not there. All of them are healed by storing the same again. What
// cannot be read at all is told in the same way (unreadable.go).

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
	err = d.judge(ctx, p, err)
	n, request := ctx.Value(noteKey{}).(*note)
	if !request || path.Base(p) != "link" || strings.HasSuffix(p, "/"+currentLink) && !n.checked.Load() {
		return b, err
	}
	if errors.Is(err, errDamaged) || err == nil && !leads(p, digest.Digest(b)) {
		return nil, driver.PathNotFoundError{Path: p, DriverName: driverName}
	}
	return b, err
}

// leads reports whether a link leads somewhere: what is kept under SHA-256 to itself,
// the name by another digest to the SHA-256.
func leads(p string, to digest.Digest) bool {
	as, algorithm := path.Base(path.Dir(p)), path.Base(path.Dir(path.Dir(p)))
	return to.Validate() == nil && (algorithm != digest.SHA256.String() || to.Encoded() == as)
}

// serveManifest sends a manifest that is damaged as it is, and has Distribution,
// which would fail to parse it, send the others. One that cannot be read is refused;
// which it is is told all the same.
func (g *guard) serveManifest(w http.ResponseWriter, r *http.Request, req *request) {
	ctx, d := r.Context(), digest.Digest(req.ref)
	if !isDigest(req.ref) {
		var err error
		d, err = g.ledger.resolve(ctx, req.name, req.ref)
		if errors.Is(err, errDamaged) {
			g.log.Error("a tag is damaged: it cannot be read what it names", "name", req.name, "tag", req.ref, "err", err)
			damagedTag(req.ref, err).write(w)
			return
		}
		if err != nil || d == "" {
			g.forward(w, r, req)
			return
		}
	}
	body, err := g.manifestBytes(ctx, req.name, d)
	unreadable := errors.Is(err, errDamaged)
	if err != nil && !unreadable || err == nil && fitsDigest(body, d) {
		g.forward(w, r, req)
		return
	}
	g.log.Error("a manifest is damaged", "name", req.name, "ref", req.ref, "digest", d, "err", err)
	h := w.Header()
	h.Set("Docker-Distribution-Api-Version", "registry/2.0")
	h.Set("Docker-Content-Digest", d.String())
	if unreadable && r.Method == http.MethodGet {
		damagedObject("manifest "+d.String(), blame(err)).write(w)
		return
	}
	h.Set("Content-Type", "application/octet-stream")
	if !unreadable {
		h.Set("Content-Length", strconv.Itoa(len(body)))
	}
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
	if err != nil {
		return nil, err
	}
	if digest.Digest(kept) != d {
		return nil, fmt.Errorf("it leads to %s", kept) // by another digest than SHA-256
	}
	return g.driver.GetContent(ctx, blobPath(d))
}

// damagedTag has the status of what is understood and cannot be done: nobody is to
// ask again.
func damagedTag(tag string, err error) *refusal {
	if no := blame(err); no != 0 {
		return damagedObject("tag "+tag, no)
	}
	return &refusal{
		status: http.StatusUnprocessableEntity, code: "DIGEST_INVALID", reason: reasonDamaged,
		message: fmt.Sprintf("tag %s is damaged in the registry's storage: it cannot be read what it names", tag),
	}
}

// damagedObject refuses what the file system, with the error no, does not let be read or
// replaced in the storage.
func damagedObject(what string, no unix.Errno) *refusal {
	return &refusal{
		status: http.StatusUnprocessableEntity, code: "DIGEST_INVALID", reason: reasonDamaged,
		message: fmt.Sprintf("%s is damaged in the registry's storage: a file of it cannot be read or written (%s); the registry's log names it", what, no),
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
