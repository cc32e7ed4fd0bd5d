package registry

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/distribution/distribution/v3/registry/api/v2"
	"github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/google/uuid"
	"github.com/gorilla/mux"
	"github.com/opencontainers/go-digest"
)

// maxManifest is the largest manifest accepted, in bytes; Distribution's own
// bound.
const maxManifest = 4 << 20

// guard stands before Distribution: it logs in, enforces access roles and keeps
// tags immutable.
type guard struct {
	next   http.Handler // Distribution
	routes *mux.Router  // the same routes that next uses
	users  *users
	ledger *ledger
	refs   *references
	driver driver.StorageDriver
	log    *slog.Logger

	// names holds one lock a name: shared while manifests and tags are added,
	// exclusive while something is deleted by digest.
	names lockTable
	// series holds one lock a series of tags.
	series lockTable
	// digests holds one lock a digest: shared while its bytes are stored or given
	// to a name, exclusive while they are removed. Locks are taken in the order
	// digest, name, series.
	digests lockTable
	// added counts, by name, the requests that stored manifests; others those that
	// stored or mounted by another digest than SHA-256.
	added  sync.Map // of *atomic.Int64
	others atomic.Int64
	// changed is told that something was deleted.
	changed func()

	mu     sync.Mutex
	epochs map[string]uint64 // newest epoch seen, by name and system
}

// nameRE is the grammar of names of the OCI distribution specification.
var nameRE = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`)

// request is a request that was understood.
type request struct {
	route  string // of package v2
	name   string
	ref    string // tag or digest
	upload string // id of an upload
	user   string
	access Access
	note   *note
}

// ServeHTTP implements http.Handler.
func (g *guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set(announceHeader, announcement)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if r.URL.Path == healthPath {
		g.health(w, r)
		return
	}
	ctx, note := withNote(r.Context())
	r = r.WithContext(ctx)
	req, refused := g.admit(r)
	if refused != nil {
		if refused.status == http.StatusUnauthorized {
			w.Header().Set("WWW-Authenticate", `Basic realm="lifeboat"`)
		}
		refused.write(w)
		return
	}
	req.note = note
	g.dispatch(w, r, req)
}

// admit logs the user in and finds out what the request is about. What no route
// fits is refused here and never reaches Distribution.
func (g *guard) admit(r *http.Request) (*request, *refusal) {
	req := &request{access: everything()}
	if !g.users.open() {
		name, password, ok := r.BasicAuth()
		if !ok {
			return nil, &refusal{status: http.StatusUnauthorized, code: "UNAUTHORIZED", message: "log in with user and password"}
		}
		access, known, granted := g.users.login(r.Context(), name, password)
		if !known {
			return nil, &refusal{status: http.StatusUnauthorized, code: "UNAUTHORIZED", message: "wrong user or password"}
		}
		if !granted {
			return nil, denied(fmt.Sprintf("user %s has no access role; the operator adds one to the roles file", name))
		}
		req.user, req.access = name, access
	}
	var m mux.RouteMatch
	if !g.routes.Match(r, &m) || m.Route == nil {
		return nil, &refusal{status: http.StatusNotFound, code: "NAME_INVALID", message: "no such address in the OCI distribution protocol"}
	}
	req.route, req.name, req.upload = m.Route.GetName(), m.Vars["name"], m.Vars["uuid"]
	req.ref = m.Vars["reference"] + m.Vars["digest"]
	// Distribution's routes also take a registry's host for part of a name, and
	// dots for an upload; neither gets near a path of the storage.
	if (req.name != "" && !nameRE.MatchString(req.name)) || (req.upload != "" && uuid.Validate(req.upload) != nil) {
		return nil, &refusal{status: http.StatusBadRequest, code: "NAME_INVALID", message: "malformed name or upload"}
	}
	if req.name != "" && !req.access.sees(req.name) {
		return nil, denied(fmt.Sprintf("user %s has no access to name %s", req.user, req.name))
	}
	return req, nil
}

// dispatch decides by route and method. Reading what one may see needs no more;
// everything that changes something is named here.
func (g *guard) dispatch(w http.ResponseWriter, r *http.Request, req *request) {
	reading := r.Method == http.MethodGet || r.Method == http.MethodHead
	switch {
	case req.route == v2.RouteNameCatalog && req.access.Names != nil:
		denied("the list of all names is for users who may see every name").write(w)
	case reading && req.route == v2.RouteNameBlob:
		g.serveBlob(w, r, req)
	case reading && req.route == v2.RouteNameTags:
		g.listTags(w, r, req)
	case reading && req.route == v2.RouteNameManifest && !isDigest(req.ref) && r.URL.Query().Has(firstParameter):
		g.firstNamed(w, r, req)
	case reading && req.route == v2.RouteNameManifest:
		g.serveManifest(w, r, req)
	case reading && req.route != v2.RouteNameBlobUpload:
		g.forward(w, r, req)
	case req.route == v2.RouteNameManifest && r.Method == http.MethodPut:
		g.putManifest(w, r, req)
	case (req.route == v2.RouteNameManifest || req.route == v2.RouteNameBlob) && r.Method == http.MethodDelete:
		g.delete(w, r, req)
	case req.route == v2.RouteNameBlobUpload && r.Method == http.MethodPost,
		req.route == v2.RouteNameBlobUploadChunk && (r.Method == http.MethodPatch || r.Method == http.MethodPut || r.Method == http.MethodDelete):
		g.uploadBlob(w, r, req)
	default:
		(&refusal{status: http.StatusMethodNotAllowed, code: "UNSUPPORTED", message: r.Method + " is not offered here"}).write(w)
	}
}

// uploadBlob lets parts of an upload pass. What a failed last part leaves
// behind is removed, so that a full disk does not stay full of halves.
func (g *guard) uploadBlob(w http.ResponseWriter, r *http.Request, req *request) {
	if err := req.access.uploads(); err != nil {
		denied(fmt.Sprintf("user %s: %s", req.user, err)).write(w)
		return
	}
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		(&refusal{status: http.StatusBadRequest, code: "BLOB_UPLOAD_INVALID", message: "malformed query"}).write(w)
		return
	}
	for _, from := range q["from"] {
		if !req.access.sees(from) {
			denied(fmt.Sprintf("user %s has no access to name %s", req.user, from)).write(w)
			return
		}
	}
	defer g.storing(append(q["digest"], q["mount"]...)...)()
	if r.Header.Get(rewriteHeader) == rewriteDamaged {
		req.note.rewriting(q.Get("digest"))
	}
	// Distribution also looks for from and digest in a body that calls itself a
	// form, where nothing above has looked.
	r.Header.Set("Content-Type", "application/octet-stream")
	status := g.forward(w, r, req)
	if r.Method == http.MethodPut && status >= 400 {
		// The context of a client that went away is done.
		ctx := context.WithoutCancel(r.Context())
		if err := g.driver.Delete(ctx, uploadPath(req.name, req.upload)); err != nil && !isMissing(err) {
			g.log.Warn("failed upload not removed", "name", req.name, "upload", req.upload, "err", err)
		}
	}
}

func isMissing(err error) bool {
	var missing driver.PathNotFoundError
	return errors.As(err, &missing)
}

// putManifest holds the lock of the tag's series from the look at what is there
// until Distribution has written, so that of many writers one wins.
func (g *guard) putManifest(w http.ResponseWriter, r *http.Request, req *request) {
	if err := req.access.uploads(); err != nil {
		denied(fmt.Sprintf("user %s: %s", req.user, err)).write(w)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxManifest))
	if err != nil {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			(&refusal{status: http.StatusRequestEntityTooLarge, code: "SIZE_INVALID", message: fmt.Sprintf("a manifest has at most %d bytes", maxManifest)}).write(w)
			return
		}
		(&refusal{status: http.StatusBadRequest, code: "MANIFEST_INVALID", message: "the manifest was cut off"}).write(w)
		return
	}
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	stored := []string{digest.FromBytes(body).String()}
	if isDigest(req.ref) {
		stored = append(stored, req.ref)
	}
	defer g.storing(stored...)()
	req.note.rewriting(stored[0]) // it is small; so what is damaged is healed unasked
	defer g.names.rlock(req.name)()
	// Counted at its end: whoever counted before and reads meanwhile may miss it.
	defer g.addedTo(req.name).Add(1)
	if !isDigest(req.ref) {
		t := parseTag(req.ref)
		defer g.series.lock(req.name + ":" + t.series())()
		if refused := g.checkTag(r.Context(), req, t, digest.FromBytes(body)); refused != nil {
			refused.write(w)
			return
		}
	}
	if isDigest(req.ref) { // no tag makes it durable
		w = &syncedWriter{ResponseWriter: w, sync: g.synced}
	}
	g.forward(w, r, req)
}

// syncedWriter holds an answer that promises something back until that is on
// disk.
type syncedWriter struct {
	http.ResponseWriter
	sync func() error
	bad  bool // another answer was given
}

func (w *syncedWriter) WriteHeader(status int) {
	if status < http.StatusMultipleChoices {
		if err := w.sync(); err != nil {
			w.bad = true
			w.Header().Del("Docker-Content-Digest")
			w.Header().Del("Location")
			(&refusal{status: http.StatusInternalServerError, code: "UNKNOWN", message: err.Error()}).write(w.ResponseWriter)
			return
		}
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *syncedWriter) Write(b []byte) (int, error) {
	if w.bad {
		return len(b), nil
	}
	return w.ResponseWriter.Write(b)
}

// synced makes durable what was stored.
func (g *guard) synced() error {
	if d, ok := g.driver.(*diskDriver); ok {
		return d.unsynced.flush()
	}
	return nil
}

// storing holds the locks of digests while their bytes are stored or given to a
// name. The janitor only tries for these locks and never waits, so their order
// does not matter; but nobody may take one twice.
func (g *guard) storing(digests ...string) (unlock func()) {
	var keys []string
	for _, d := range digests {
		if !strings.HasPrefix(d, digest.SHA256.String()+":") {
			d = otherDigests
		}
		keys = append(keys, d)
	}
	slices.Sort(keys)
	var held []func()
	for _, k := range slices.Compact(keys) {
		held = append(held, g.digests.rlock(k))
	}
	return func() {
		if slices.Contains(keys, otherDigests) {
			g.others.Add(1) // at its end, as addedTo
		}
		for _, u := range held {
			u()
		}
	}
}

// addedTo counts the requests that stored manifests in a name. It changes only
// under the shared lock of the name, when they are done.
func (g *guard) addedTo(name string) *atomic.Int64 {
	n, _ := g.added.LoadOrStore(name, &atomic.Int64{})
	return n.(*atomic.Int64)
}

func isDigest(ref string) bool { return strings.ContainsRune(ref, ':') }

// checkTag decides whether user may let tag t name d now.
func (g *guard) checkTag(ctx context.Context, req *request, t tag, d digest.Digest) *refusal {
	var failed error
	err := req.access.writes(t, func() (bool, error) {
		var ok bool
		ok, failed = g.holds(ctx, req, t.system)
		return ok, failed
	})
	if failed != nil {
		return g.failure("read epochs", req, failed)
	}
	if err != nil {
		return denied(fmt.Sprintf("user %s may not write tag %s: %s", req.user, t.text, err))
	}
	have, err := g.ledger.resolve(ctx, req.name, t.text)
	switch {
	case errors.Is(err, errDamaged):
		return g.checkDamaged(ctx, req, t, d)
	case err != nil:
		return g.failure("read tag", req, err)
	case have == d:
		return nil
	case have != "" && t.ordinary() && req.access.Role == RoleOperator:
		return nil
	case have != "" && t.ordinary():
		return denied(fmt.Sprintf("user %s: role %s does not move tags; %s names %s", req.user, req.access.Role, t.text, have))
	case have != "":
		// What it was given first may be put back: then its link was damaged.
		first, err := g.ledger.given(ctx, req.name, t)
		if err != nil {
			return g.failure("read what the tag named first", req, err)
		}
		if first == d {
			return nil
		}
		return conflict(reasonTaken, fmt.Sprintf("tag %s is immutable and names %s", t.text, have))
	}
	return g.checkNew(ctx, req, t, d)
}

// checkNew decides about a tag that does not exist.
func (g *guard) checkNew(ctx context.Context, req *request, t tag, d digest.Digest) *refusal {
	if t.class == classPacks && !strings.HasPrefix(d.Encoded(), t.prefix) {
		return &refusal{status: http.StatusBadRequest, code: "TAG_INVALID", message: fmt.Sprintf("tag %s must begin the digest of its manifest, %s", t.text, d)}
	}
	if !t.numbered() {
		return nil
	}
	old, err := g.ledger.retired(ctx, req.name, t)
	if err != nil {
		return g.failure("read deleted tags", req, err)
	}
	if old != "" && old != d {
		return conflict(reasonRetired, fmt.Sprintf("tag %s was used and deleted; numbers are not given out again", t.text))
	}
	if before, ok := t.before(); ok && !req.access.leavesGaps(t) {
		ok, err := g.ledger.used(ctx, req.name, before)
		if err != nil {
			return g.failure("read tag", req, err)
		}
		if !ok {
			return conflict(reasonGap, fmt.Sprintf("tag %s does not exist; numbers have no gaps", before.text))
		}
	}
	if t.class == classEpoch && old == "" { // what is put back stays its writer's
		if err := g.ledger.claim(ctx, req.name, t, req.user); err != nil {
			return g.failure("note claim", req, err)
		}
	}
	return nil
}

// holds reports whether the user has written the newest epoch of a system. It
// reads without the lock of the epochs: who loses the epoch in this instant has
// written before.
func (g *guard) holds(ctx context.Context, req *request, system string) (bool, error) {
	key := req.name + ":" + system
	g.mu.Lock()
	from := g.epochs[key]
	g.mu.Unlock()
	user, newest, err := g.ledger.holder(ctx, req.name, system, from)
	if err != nil {
		return false, err
	}
	g.mu.Lock()
	g.epochs[key] = max(newest, g.epochs[key])
	g.mu.Unlock()
	return newest > 0 && user == req.user, nil
}

// delete removes a tag, a manifest or a blob, which operators may.
func (g *guard) delete(w http.ResponseWriter, r *http.Request, req *request) {
	if err := req.access.deletes(); err != nil {
		denied(fmt.Sprintf("user %s: %s", req.user, err)).write(w)
		return
	}
	var refused *refusal
	if isDigest(req.ref) {
		if refused := g.checkDelete(r.Context(), req); refused != nil { // reads what it needs without keeping others waiting
			refused.write(w)
			return
		}
		defer g.names.lock(req.name)()
		refused = g.checkDelete(r.Context(), req)
	} else {
		t := parseTag(req.ref)
		defer g.names.rlock(req.name)()
		defer g.series.lock(req.name + ":" + t.series())()
		refused = g.retire(r.Context(), req, t)
	}
	if refused != nil {
		refused.write(w)
		return
	}
	req.note.checked.Store(true)
	if status := g.forward(w, r, req); status < 300 {
		g.changed()
		g.log.Info("deleted", "name", req.name, "ref", req.ref, "user", req.user)
	}
}

// checkDelete keeps a manifest that tags of a repository name, or that the index
// under any tag lists (invariant 2). Under the exclusive lock of the name
// nothing is added meanwhile, and Distribution takes no index afterwards that
// lists what is gone: so no index under a tag ever lacks a manifest, whatever
// its writer and whoever deletes do, and wherever they are killed.
func (g *guard) checkDelete(ctx context.Context, req *request) *refusal {
	if req.route != v2.RouteNameManifest {
		return nil
	}
	tags, err := g.ledger.listers(ctx, req.name, digest.Digest(req.ref))
	if errors.Is(err, errDamaged) {
		return keptForDamage(err)
	}
	if err != nil {
		return g.failure("look for tags", req, err)
	}
	if len(tags) > 0 {
		return conflict(reasonListed, fmt.Sprintf("manifest %s is named by tag %s (%d in all); delete the tags first", req.ref, tags[0], len(tags)))
	}
	tag, err := g.refs.lister(ctx, req.name, digest.Digest(req.ref))
	if errors.Is(err, errDamaged) {
		return keptForDamage(err)
	}
	if err != nil {
		return g.failure("look for indexes", req, err)
	}
	if tag != "" {
		return conflict(reasonListed, fmt.Sprintf("manifest %s is listed by the index under tag %s; delete the tag first", req.ref, tag))
	}
	return nil
}

// retire notes a number as used up before its tag goes.
func (g *guard) retire(ctx context.Context, req *request, t tag) *refusal {
	if !t.numbered() {
		return nil
	}
	d, err := g.ledger.resolve(ctx, req.name, t.text)
	if err == nil && d == "" {
		return nil // Distribution says that it does not exist
	}
	if err == nil || errors.Is(err, errDamaged) {
		d, err = g.ledger.given(ctx, req.name, t)
	}
	if errors.Is(err, errDamaged) && !errors.Is(err, errUnreadable) {
		d, err = damagedDigest, nil
	}
	if err != nil {
		return g.failure("read what the tag named first", req, err)
	}
	if err := g.ledger.retire(ctx, req.name, t, d); err != nil {
		return g.failure("note deletion", req, err)
	}
	return nil
}

// firstParameter asks for what a tag was given first instead of what it names. The
// protocol has no such thing; elsewhere the answer is what the tag names.
const firstParameter = "first"

// firstNamed answers with the digest that a tag was given first: the only one that it
// may be given again, whatever it names now.
func (g *guard) firstNamed(w http.ResponseWriter, r *http.Request, req *request) {
	t := parseTag(req.ref)
	defer g.series.rlock(req.name + ":" + t.series())()
	read := g.ledger.given
	if t.ordinary() {
		read = func(ctx context.Context, name string, t tag) (digest.Digest, error) {
			return g.ledger.resolve(ctx, name, t.text)
		}
	}
	d, err := read(r.Context(), req.name, t)
	switch {
	case errors.Is(err, errDamaged):
		damagedTag(req.ref, err).write(w)
	case err != nil:
		g.failure("read what the tag named first", req, err).write(w)
	case d == "":
		(&refusal{status: http.StatusNotFound, code: "MANIFEST_UNKNOWN", message: "the tag was never given anything"}).write(w)
	default:
		w.Header().Set("Docker-Content-Digest", d.String())
		w.WriteHeader(http.StatusOK)
	}
}

// failure logs why the guard itself could not go on.
func (g *guard) failure(what string, req *request, err error) *refusal {
	g.log.Error("request failed", "what", what, "name", req.name, "ref", req.ref, "user", req.user, "err", err)
	if errors.Is(err, errDamaged) {
		return damagedObject(req.ref, blame(err))
	}
	if req.note.full.Load() {
		return noRoom()
	}
	return internal()
}

// forward hands the request to Distribution and returns the status it gave.
func (g *guard) forward(w http.ResponseWriter, r *http.Request, req *request) int {
	a := &answer{ResponseWriter: w, req: req}
	func() {
		defer func() {
			p := recover()
			if p == nil {
				return
			}
			if p == http.ErrAbortHandler {
				panic(p)
			}
			g.log.Error("request failed", "method", r.Method, "name", req.name, "ref", req.ref, "panic", fmt.Sprint(p))
			if a.status == 0 {
				internal().write(a)
			}
		}()
		defer req.note.closeAll()
		g.next.ServeHTTP(a, r)
	}()
	if a.replaced {
		g.log.Error("request failed", "method", r.Method, "route", req.route, "name", req.name, "ref", req.ref, "user", req.user,
			"status", a.status, "full", req.note.full.Load(), "answer", a.text.String())
	}
	if a.status >= 400 && r.Body != nil {
		// A client that is still sending would see a reset instead of the answer.
		_, _ = io.Copy(io.Discard, io.LimitReader(r.Body, maxDrain))
	}
	return a.status
}

// maxDrain bounds what is read of a body that was refused, in bytes: a whole
// pack.
const maxDrain = 64 << 20

// answer notes the status that Distribution gives, keeps the text of failures
// for the log instead of the client, and says so when the disk is full or an object
// damaged.
type answer struct {
	http.ResponseWriter
	req      *request
	status   int
	replaced bool
	text     bytes.Buffer
}

func (a *answer) WriteHeader(status int) {
	if a.status != 0 {
		return
	}
	a.status = status
	if status < 500 {
		a.ResponseWriter.WriteHeader(status)
		return
	}
	a.replaced = true
	r := internal()
	if no := a.req.note.damaged.Load(); no != nil {
		r = damagedObject(cmp.Or(a.req.ref, "what is kept under the digest"), *no)
	}
	if a.req.note.full.Load() {
		r = noRoom()
	}
	a.status = r.status
	r.write(a.ResponseWriter)
}

func (a *answer) Write(p []byte) (int, error) {
	if a.status == 0 {
		a.WriteHeader(http.StatusOK)
	}
	if !a.replaced {
		return a.ResponseWriter.Write(p)
	}
	if room := 2000 - a.text.Len(); room > 0 {
		a.text.Write(p[:min(len(p), room)])
	}
	return len(p), nil
}

// Unwrap lets http.ResponseController through.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// health answers without login whether the storage answers.
func (g *guard) health(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	status, text := http.StatusOK, "ok"
	if _, err := g.driver.Stat(r.Context(), "/"); err != nil && !isMissing(err) {
		g.log.Error("storage does not answer", "err", err)
		status, text = http.StatusServiceUnavailable, "storage does not answer"
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"status": text}) // the client is gone
}
