package imageserve

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"lifeboat/internal/layer"
)

// serve answers one request of the OCI distribution protocol, as far as
// pulling needs it.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	if !s.running.TryRLock() {
		panic(http.ErrAbortHandler) // closed
	}
	defer s.running.RUnlock()
	h := w.Header()
	h.Set("Docker-Distribution-Api-Version", "registry/2.0")
	if !s.allowed(r) {
		h.Set("WWW-Authenticate", `Basic realm="lifeboat"`)
		fail(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		fail(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "this registry is read-only")
		return
	}
	rest, ok := strings.CutPrefix(r.URL.Path, "/v2/")
	if !ok {
		fail(w, http.StatusNotFound, "NAME_UNKNOWN", "not found")
		return
	}
	if rest == "" {
		sendJSON(w, r, "application/json", []byte("{}"))
		return
	}
	parts := strings.Split(rest, "/")
	if len(parts) < 3 {
		fail(w, http.StatusNotFound, "NAME_UNKNOWN", "not found")
		return
	}
	n := len(parts) - 2
	img := s.names[strings.Join(parts[:n], "/")]
	if img == nil {
		fail(w, http.StatusNotFound, "NAME_UNKNOWN", "no such image is served")
		return
	}
	switch parts[n] {
	case "manifests":
		img.manifest(w, r, parts[n+1])
	case "blobs":
		s.blob(w, r, img, layer.Digest(parts[n+1]))
	case "tags":
		list, err := json.Marshal(map[string]any{"name": img.name, "tags": []string{tag}})
		if err != nil {
			panic(err) // strings always encode
		}
		sendJSON(w, r, "application/json", list)
	default:
		fail(w, http.StatusNotFound, "NAME_UNKNOWN", "not found")
	}
}

// fail sends an error in the protocol's form.
func fail(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"errors":[{"code":%q,"message":%q}]}`+"\n", code, message)
}

func sendJSON(w http.ResponseWriter, r *http.Request, contentType string, data []byte) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodGet {
		_, _ = w.Write(data) // the client is gone then
	}
}

func (img *image) manifest(w http.ResponseWriter, r *http.Request, ref string) {
	digest := layer.Digest(ref)
	if ref == tag {
		digest = img.root
	}
	doc, ok := img.manifests[digest]
	if !ok {
		fail(w, http.StatusNotFound, "MANIFEST_UNKNOWN", "no such manifest is kept in the snapshot")
		return
	}
	w.Header().Set("Docker-Content-Digest", string(digest))
	w.Header().Set("Etag", strconv.Quote(string(digest)))
	sendJSON(w, r, doc.mediaType, doc.data)
}

// blob streams a configuration or a layer. A range is served by making the
// blob from its start and leaving out what was not asked for.
func (s *Server) blob(w http.ResponseWriter, r *http.Request, img *image, digest layer.Digest) {
	b, ok := img.blobs[digest]
	if !ok {
		fail(w, http.StatusNotFound, "BLOB_UNKNOWN", "no such blob is kept in the snapshot")
		return
	}
	h := w.Header()
	h.Set("Accept-Ranges", "bytes")
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Docker-Content-Digest", string(digest))
	h.Set("Etag", strconv.Quote(string(digest)))
	from, to, status := parseRange(r, digest, b.size)
	switch status {
	case http.StatusRequestedRangeNotSatisfiable:
		h.Set("Content-Range", fmt.Sprintf("bytes */%d", b.size))
		fail(w, status, "RANGE_INVALID", "the range is beyond the blob")
		return
	case http.StatusPartialContent:
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, b.size))
	}
	h.Set("Content-Length", strconv.FormatInt(to-from, 10))
	if r.Method == http.MethodHead || from == to {
		w.WriteHeader(status)
		return
	}
	select {
	case s.streams <- struct{}{}:
		defer func() { <-s.streams }()
	case <-r.Context().Done():
		return
	}
	w.WriteHeader(status)
	part := &partWriter{w: w, skip: from, left: to - from, wrote: s.served}
	err := b.write(r.Context(), part)
	if errors.Is(err, errPartDone) {
		err = nil
	}
	if err != nil {
		if r.Context().Err() == nil && part.err == nil {
			s.log.Error("image blob failed", "digest", digest, "error", err)
		}
		// What went out is short of its length or wrong: end the connection,
		// so that the engine does not take it for the blob.
		panic(http.ErrAbortHandler)
	}
	s.log.Debug("image blob served", "digest", digest, "bytes", to-from)
}

// parseRange reads a single byte range; anything else is served whole, as
// RFC 9110 allows.
func parseRange(r *http.Request, digest layer.Digest, size int64) (from, to int64, status int) {
	whole := func() (int64, int64, int) { return 0, size, http.StatusOK }
	spec, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes=")
	if !ok || strings.Contains(spec, ",") {
		return whole()
	}
	if cond := r.Header.Get("If-Range"); cond != "" && cond != strconv.Quote(string(digest)) {
		return whole()
	}
	first, last, ok := strings.Cut(spec, "-")
	if !ok {
		return whole()
	}
	to = size
	if last != "" {
		n, err := strconv.ParseInt(last, 10, 64)
		if err != nil || n < 0 {
			return whole()
		}
		if first == "" { // the last n bytes
			return suffix(n, size)
		}
		if n < size {
			to = n + 1
		}
	}
	from, err := strconv.ParseInt(first, 10, 64)
	if err != nil || from < 0 || last != "" && to <= from && from < size {
		return whole()
	}
	if from >= size {
		return 0, 0, http.StatusRequestedRangeNotSatisfiable
	}
	return from, to, http.StatusPartialContent
}

func suffix(n, size int64) (from, to int64, status int) {
	if n == 0 || size == 0 {
		return 0, 0, http.StatusRequestedRangeNotSatisfiable
	}
	return size - min(n, size), size, http.StatusPartialContent
}

// errPartDone ends the making of a blob when all that was asked for is sent.
var errPartDone = errors.New("part is complete")

// partWriter passes on left bytes after the first skip. The digest of a blob is
// known only after its last byte went out; engines check it themselves.
type partWriter struct {
	w    io.Writer
	skip int64
	left int64
	err  error
	// wrote is told of bytes that went out.
	wrote func(n int64)
}

func (p *partWriter) Write(b []byte) (int, error) {
	total := len(b)
	if n := min(p.skip, int64(len(b))); n > 0 {
		b = b[n:]
		p.skip -= n
	}
	if n := min(p.left, int64(len(b))); n > 0 {
		if _, p.err = p.w.Write(b[:n]); p.err != nil {
			return 0, p.err
		}
		p.left -= n
		p.wrote(n)
		b = b[n:]
	}
	if len(b) > 0 {
		return 0, errPartDone
	}
	return total, nil
}
