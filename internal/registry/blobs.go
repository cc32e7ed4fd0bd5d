package registry

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// serveBlob sends a blob as Distribution would, but straight from its file: the
// kernel hands it to the connection, and is told at once all that will be read.
// Distribution reads pieces of 4 MiB, one after the other, into memory of its own
// for each request. What is not there is left to it. What cannot be read is refused as
// damaged: before the first byte of what is asked for is sent, for later it could only
// be cut off; who then asks for the rest is told.
func (g *guard) serveBlob(w http.ResponseWriter, r *http.Request, req *request) {
	f, info, err := g.openBlob(r, req)
	if errors.Is(err, errDamaged) {
		g.log.Error("a blob is damaged", "name", req.name, "ref", req.ref, "err", err)
		damagedObject("blob "+req.ref, blame(err)).write(w)
		return
	}
	if f == nil {
		g.forward(w, r, req)
		return
	}
	defer f.Close()
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

// openBlob opens the file of a blob that the name in the request has; nil where there
// is none, or Distribution is to say why there is none. The error wraps errDamaged, or
// is one of the whole storage.
func (g *guard) openBlob(r *http.Request, req *request) (*os.File, os.FileInfo, error) {
	d, ok := g.driver.(*diskDriver)
	dgst := digest.Digest(req.ref)
	if !ok || dgst.Validate() != nil || dgst.Algorithm() != digest.SHA256 {
		return nil, nil, nil
	}
	link, err := readBounded(d.file(linkPath(layersPath(req.name), dgst)))
	if err != nil || string(link) != req.ref {
		return nil, nil, nil
	}
	f, err := os.Open(d.file(blobPath(dgst)))
	if err != nil {
		return nil, nil, d.judge(r.Context(), blobPath(dgst), err)
	}
	info, err := readable(f, r)
	if err != nil {
		return nil, nil, errors.Join(d.judge(r.Context(), blobPath(dgst), err), f.Close())
	}
	return f, info, nil
}

// readable looks at a file, and at the first byte of it that is asked for.
func readable(f *os.File, r *http.Request) (os.FileInfo, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file: %w", f.Name(), unix.EISDIR)
	}
	if r.Method != http.MethodGet {
		return info, nil
	}
	from, _ := wanted(r.Header.Get("Range"), info.Size())
	if _, err := f.ReadAt(make([]byte, 1), from); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return info, nil
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
