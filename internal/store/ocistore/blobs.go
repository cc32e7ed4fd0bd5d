package ocistore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"lifeboat/internal/store"
)

// HasBlob implements store.Blobs.
func (c *client) HasBlob(ctx context.Context, d digest.Digest) (bool, error) {
	_, ok, err := c.statBlob(ctx, d)
	if err != nil {
		return false, c.fail("look for blob "+d.String(), err)
	}
	return ok, nil
}

// statBlob returns the size of a blob, -1 where the registry does not tell. GET says why
// it refuses, which HEAD has no room for: a blob that is damaged there is
// store.ErrDigestMismatch.
func (c *client) statBlob(ctx context.Context, d digest.Digest) (size int64, ok bool, err error) {
	if err := checkDigest(d); err != nil {
		return 0, false, err
	}
	resp, err := c.do(ctx, http.MethodHead, c.url("blobs", d.String()), nil, nil)
	if err != nil {
		return 0, false, err
	}
	defer drain(resp)
	switch resp.StatusCode {
	case http.StatusOK:
		return resp.ContentLength, true, nil
	case http.StatusNotFound:
		return 0, false, nil
	}
	refusal := statusError(resp)
	if !errors.Is(refusal, store.ErrRefused) {
		return 0, false, refusal
	}
	resp, err = c.do(ctx, http.MethodGet, c.url("blobs", d.String()), http.Header{"Range": {"bytes=0-0"}}, nil)
	if err != nil {
		return 0, false, err
	}
	defer drain(resp)
	if resp.StatusCode >= http.StatusBadRequest {
		refusal = statusError(resp)
	}
	return 0, false, refusal
}

// checkDigest refuses what could change the path of a request.
func checkDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
		return fmt.Errorf("%q is not a sha256 digest: %w", clean(string(d)), store.ErrRefused)
	}
	return nil
}

// PutBlob implements store.Blobs: HEAD, POST, one PUT. What the registry itself calls
// damaged is replaced.
func (c *client) PutBlob(ctx context.Context, d digest.Digest, size int64, open func() (io.ReadCloser, error)) (int64, error) {
	what := fmt.Sprintf("put blob %s (%d bytes)", d, size)
	have, ok, err := c.statBlob(ctx, d)
	damaged := errors.Is(err, store.ErrDigestMismatch)
	if err != nil && !damaged {
		return 0, c.fail(what, err)
	}
	header := http.Header{"Content-Type": {"application/octet-stream"}}
	if damaged || store.IsRewriting(ctx) {
		ok = false
		header.Set(rewriteHeader, rewriteDamaged)
	}
	if ok {
		if have >= 0 && have != size {
			return 0, c.fail(what, fmt.Errorf("it is stored there with %d bytes: %w", have, store.ErrDigestMismatch))
		}
		return 0, nil
	}
	location, err := c.startUpload(ctx)
	if err != nil {
		return 0, c.fail(what, fmt.Errorf("start upload: %w", err))
	}
	q := location.Query()
	q.Set("digest", d.String())
	location.RawQuery = q.Encode()
	src := &source{size: size, open: open}
	resp, err := c.do(ctx, http.MethodPut, location.String(), header, src)
	if err != nil {
		return src.sent(), c.fail(what, err)
	}
	defer drain(resp)
	if resp.StatusCode != http.StatusCreated {
		return src.sent(), c.fail(what, statusError(resp))
	}
	return size, nil
}

// rewriteHeader asks Lifeboat's registry to store bytes in the place of those that
// it has under their digest, if those do not fit it any more. Others ignore it.
const (
	rewriteHeader  = "Lifeboat-Rewrite"
	rewriteDamaged = "damaged"
)

// startUpload opens an upload and returns where to send it: the registry's own
// origin, never another, for the credentials go there too.
func (c *client) startUpload(ctx context.Context) (*url.URL, error) {
	resp, err := c.do(ctx, http.MethodPost, c.url("blobs", "uploads/"), nil, nil)
	if err != nil {
		return nil, err
	}
	defer drain(resp)
	if resp.StatusCode != http.StatusAccepted {
		return nil, statusError(resp)
	}
	location, err := resp.Location()
	if err != nil {
		return nil, fmt.Errorf("the registry did not say where to upload to: %w", store.ErrRefused)
	}
	own, err := url.Parse(c.base)
	if err != nil {
		return nil, err
	}
	// A registry behind a proxy that ends TLS may believe that it speaks plain
	// HTTP; host and path count, the scheme is ours.
	if strings.EqualFold(location.Hostname(), own.Hostname()) && location.Port() == own.Port() {
		location.Scheme = own.Scheme
	}
	if location.Scheme != own.Scheme || hostPort(location) != hostPort(own) || location.User != nil {
		return nil, fmt.Errorf("the registry wants the upload at another host (%s): %w", clean(location.Host), store.ErrRefused)
	}
	return location, nil
}

// GetBlob implements store.Blobs by a ranged GET.
func (c *client) GetBlob(ctx context.Context, d digest.Digest, size, off, length int64) (io.ReadCloser, error) {
	what := fmt.Sprintf("get blob %s (%d bytes from %d of %d)", d, length, off, size)
	n, err := store.SpanOf(size, off, length)
	if err != nil {
		return nil, c.fail(what, err)
	}
	if err := checkDigest(d); err != nil {
		return nil, c.fail(what, err)
	}
	if n == 0 {
		return io.NopCloser(strings.NewReader("")), nil
	}
	var header http.Header
	if n != size {
		header = http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", off, off+n-1)}}
	}
	resp, err := c.do(ctx, http.MethodGet, c.url("blobs", d.String()), header, nil)
	if err != nil {
		return nil, c.fail(what, err)
	}
	skip, err := checkSpan(resp, size, off, n)
	if err != nil {
		drain(resp)
		return nil, c.fail(what, err)
	}
	r := &spanReader{c: c, ctx: ctx, what: what, resp: resp, left: n}
	if skip > 0 {
		if _, err := io.CopyN(io.Discard, resp.Body, skip); err != nil {
			_ = resp.Body.Close() // the read error counts
			return nil, c.fail(what, cutOff(ctx, err))
		}
	}
	return r, nil
}

// checkSpan compares what the registry says it will send with what was asked
// for, and returns how many bytes to skip first.
func checkSpan(resp *http.Response, size, off, n int64) (skip int64, err error) {
	switch resp.StatusCode {
	case http.StatusOK:
		if resp.ContentLength >= 0 && resp.ContentLength != size {
			return 0, fmt.Errorf("the registry holds %d bytes: %w", resp.ContentLength, store.ErrDigestMismatch)
		}
		return off, nil
	case http.StatusPartialContent:
		first, last, total, err := parseContentRange(resp.Header.Get("Content-Range"))
		if err != nil {
			return 0, err
		}
		if total >= 0 && total != size {
			return 0, fmt.Errorf("the registry holds %d bytes: %w", total, store.ErrDigestMismatch)
		}
		if first != off || last != off+n-1 {
			return 0, fmt.Errorf("the registry sends bytes %d to %d: %w", first, last, store.ErrDigestMismatch)
		}
		return 0, nil
	case http.StatusRequestedRangeNotSatisfiable:
		return 0, fmt.Errorf("the registry holds fewer bytes: %w", store.ErrDigestMismatch)
	}
	return 0, statusError(resp)
}

// parseContentRange reads "bytes first-last/total"; total is -1 for "*".
func parseContentRange(s string) (first, last, total int64, err error) {
	bad := fmt.Errorf("the registry sent the range %q: %w", clean(s), store.ErrRefused)
	rest, ok := strings.CutPrefix(s, "bytes ")
	span, totalText, ok2 := strings.Cut(rest, "/")
	firstText, lastText, ok3 := strings.Cut(span, "-")
	if !ok || !ok2 || !ok3 {
		return 0, 0, 0, bad
	}
	total = -1
	if totalText != "*" {
		if total, err = strconv.ParseInt(totalText, 10, 64); err != nil || total < 0 {
			return 0, 0, 0, bad
		}
	}
	first, err = strconv.ParseInt(firstText, 10, 64)
	last, err2 := strconv.ParseInt(lastText, 10, 64)
	if err != nil || err2 != nil || first < 0 || last < first {
		return 0, 0, 0, bad
	}
	return first, last, total, nil
}

// spanReader yields exactly the bytes asked for.
type spanReader struct {
	c    *client
	ctx  context.Context // of the request; reads end with it
	what string
	resp *http.Response
	left int64
}

func (r *spanReader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > r.left {
		p = p[:r.left]
	}
	n, err := r.resp.Body.Read(p)
	r.left -= int64(n)
	if err != nil && r.left > 0 {
		return n, r.c.fail(r.what, cutOff(r.ctx, err))
	}
	return n, nil
}

// cutOff is the error of a body that ended early.
func cutOff(ctx context.Context, err error) error {
	if ctxErr := context.Cause(ctx); ctxErr != nil {
		return ctxErr
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("the answer was cut off: %w: %w", io.ErrUnexpectedEOF, store.ErrUnreachable)
	}
	return fmt.Errorf("the answer was cut off: %w", transportError(ctx, err))
}

func (r *spanReader) Close() error { return r.resp.Body.Close() }

// source is the body of an upload; it can be opened again for a second try
// within one request (a token that ran out), and tells its own failures from
// those of the network.
type source struct {
	size int64
	open func() (io.ReadCloser, error)

	mu  sync.Mutex
	n   int64 // bytes read, over all tries
	err error
}

func (s *source) attach(req *http.Request) error {
	req.ContentLength = s.size
	if s.size == 0 {
		req.Body = http.NoBody
		return nil
	}
	req.GetBody = s.reader
	body, err := s.reader()
	if err != nil {
		return err
	}
	req.Body = body
	return nil
}

func (s *source) reader() (io.ReadCloser, error) {
	r, err := s.open()
	if err != nil {
		return nil, s.failed(fmt.Errorf("open what is to be sent: %w", err))
	}
	return &sourceReader{s: s, r: r, left: s.size}, nil
}

func (s *source) failed(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
	return err
}

func (s *source) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (s *source) sent() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n
}

type sourceReader struct {
	s    *source
	r    io.ReadCloser
	left int64
}

// Read hands the last bytes out only after it has seen that no more follow:
// a source that is too long must not become a blob that happens to fit.
func (r *sourceReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.left -= int64(n)
	if err == nil && r.left == 0 {
		err = r.end()
	}
	switch {
	case r.left < 0:
		return 0, r.s.failed(fmt.Errorf("what is to be sent is longer than %d bytes", r.s.size))
	case err != nil && !errors.Is(err, io.EOF):
		return 0, r.s.failed(fmt.Errorf("read what is to be sent: %w", err))
	case err != nil && r.left > 0:
		return 0, r.s.failed(fmt.Errorf("what is to be sent ends %d bytes short of %d", r.left, r.s.size))
	}
	r.s.mu.Lock()
	r.s.n += int64(n)
	r.s.mu.Unlock()
	return n, err
}

// end looks for what follows the last byte; io.EOF is what it should be.
func (r *sourceReader) end() error {
	var one [1]byte
	for {
		n, err := r.r.Read(one[:])
		if n > 0 {
			r.left = -1
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (r *sourceReader) Close() error { return r.r.Close() }
