package registry

import (
	"net/http"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// serveBlob sends a blob as Distribution would, but straight from its file: the
// kernel hands it to the connection, and is told at once all that will be read.
// Distribution reads pieces of 4 MiB, one after the other, into memory of its own
// for each request. What is not there, or not a file, is left to it.
func (g *guard) serveBlob(w http.ResponseWriter, r *http.Request, req *request) {
	f := g.openBlob(req)
	if f == nil {
		g.forward(w, r, req)
		return
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		g.forward(w, r, req)
		return
	}
	h := w.Header()
	h.Set("Docker-Distribution-Api-Version", "registry/2.0")
	h.Set("ETag", `"`+req.ref+`"`)
	h.Set("Cache-Control", "max-age=31536000")
	h.Set("Docker-Content-Digest", req.ref)
	h.Set("Content-Type", "application/octet-stream")
	if r.Method == http.MethodGet {
		announceRead(int(f.Fd()), r.Header.Get("Range"), info.Size())
	}
	http.ServeContent(w, r, "", time.Time{}, f)
}

// openBlob opens the file of a blob that the name in the request has; nil where
// there is none.
func (g *guard) openBlob(req *request) *os.File {
	d, ok := g.driver.(*diskDriver)
	dgst := digest.Digest(req.ref)
	if !ok || dgst.Validate() != nil || dgst.Algorithm() != digest.SHA256 {
		return nil
	}
	link, err := readBounded(d.file(path.Join(layersPath(req.name), dgst.Algorithm().String(), dgst.Encoded(), "link")))
	if err != nil || string(link) != req.ref {
		return nil
	}
	f, err := os.Open(d.file(blobPath(dgst)))
	if err != nil {
		return nil
	}
	return f
}

const (
	// readAhead bounds what is announced of one request, in bytes.
	readAhead = 16 << 20
	// readAheadStep is what the kernel takes of one announcement.
	readAheadStep = 512 << 10
)

// announceRead has the disk begin with all that a request will read, instead of
// with a little at a time. It is a hint: nothing is done where a range is not
// understood.
func announceRead(fd int, ranges string, size int64) {
	from, n := wanted(ranges, size)
	for end := from + min(n, readAhead); from < end; from += readAheadStep {
		if unix.Fadvise(fd, from, min(readAheadStep, end-from), unix.FADV_WILLNEED) != nil {
			return
		}
	}
}

// wanted is what a Range header with one range of bytes, or none, asks for.
func wanted(ranges string, size int64) (from, n int64) {
	if ranges == "" {
		return 0, size
	}
	list, _ := strings.CutPrefix(ranges, "bytes=")
	first, last, ok := strings.Cut(list, "-")
	from, err := strconv.ParseInt(first, 10, 64)
	if !ok || err != nil || from < 0 || from >= size {
		return 0, 0
	}
	to, err := strconv.ParseInt(last, 10, 64)
	if err != nil || to < from {
		to = size - 1
	}
	return from, min(to, size-1) - from + 1
}
