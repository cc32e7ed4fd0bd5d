package ocistore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"lifeboat/internal/store"
)

// accept lists what GetManifest understands how to hand on.
var accept = strings.Join([]string{
	ocispec.MediaTypeImageManifest,
	ocispec.MediaTypeImageIndex,
	"application/vnd.docker.distribution.manifest.v2+json",
	"application/vnd.docker.distribution.manifest.list.v2+json",
}, ", ")

var tagRE = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)

func checkTag(tag string) error {
	if !tagRE.MatchString(tag) {
		return fmt.Errorf("%q is not a tag: %w", clean(tag), store.ErrRefused)
	}
	return nil
}

// reasonRetired is what Lifeboat's registry answers when the number of a tag
// was used and deleted: to the writer it is as good as taken.
const reasonRetired = "retired"

// reasonTaken is what it answers when the tag names something else, which need not
// be there: reading the tag again would say nothing.
const reasonTaken = "taken"

// reasonListed is what it answers when a tag names what is to be deleted, or an
// index under a tag lists it.
const reasonListed = "listed"

// reasonDamaged is what it answers when the files of the thing asked for cannot be used:
// reading it again would say no more.
const reasonDamaged = "damaged"

// PutManifest implements store.Manifests: HEAD where the registry has not
// announced immutable tags, PUT, and then reading again wherever the answer
// leaves a doubt (docs/adr/0001).
func (c *client) PutManifest(ctx context.Context, tag, mediaType string, body []byte) (digest.Digest, error) {
	d := digest.FromBytes(body)
	what := fmt.Sprintf("write tag %s (manifest %s)", tag, d)
	if err := checkTag(tag); err != nil {
		return "", c.fail(what, err)
	}
	if len(body) > store.MaxManifest {
		return "", c.fail(what, fmt.Errorf("%d bytes, at most %d: %w", len(body), store.MaxManifest, store.ErrTooLarge))
	}
	if !c.immutable.Load() {
		done, err := c.compareTag(ctx, tag, d)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return "", c.fail(what, err)
		}
		if done && !store.IsRewriting(ctx) {
			return d, nil
		}
	}
	if err := c.sendManifest(ctx, tag, mediaType, d, body); err != nil {
		return "", c.fail(what, err)
	}
	return d, nil
}

// compareTag reports whether tag names d already; ErrTagTaken where it names
// another.
func (c *client) compareTag(ctx context.Context, tag string, d digest.Digest) (bool, error) {
	have, err := c.resolve(ctx, tag)
	if err != nil {
		return false, err
	}
	if have != d {
		return false, fmt.Errorf("it names %s: %w", have, store.ErrTagTaken)
	}
	return true, nil
}

func (c *client) sendManifest(ctx context.Context, tag, mediaType string, d digest.Digest, body []byte) error {
	src := &source{size: int64(len(body)), open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }}
	header := http.Header{"Content-Type": {mediaType}}
	if store.IsRewriting(ctx) {
		header.Set(rewriteHeader, rewriteDamaged)
	}
	resp, err := c.do(ctx, http.MethodPut, c.url("manifests", tag), header, src)
	if err != nil {
		if neverSent(err) {
			return err
		}
		return c.settle(ctx, tag, d, err)
	}
	defer drain(resp)
	if resp.StatusCode == http.StatusCreated {
		if got := resp.Header.Get("Docker-Content-Digest"); got != "" && got != d.String() {
			return fmt.Errorf("the registry stored it as %s: %w", clean(got), store.ErrDigestMismatch)
		}
		if c.immutable.Load() {
			return nil
		}
		return c.settle(ctx, tag, d, nil)
	}
	refusal := statusError(resp)
	var r *response
	switch {
	case errors.As(refusal, &r) && r.reason == reasonRetired:
		return fmt.Errorf("%w: %w", refusal, store.ErrTagRetired)
	case r != nil && r.reason == reasonDamaged:
		return refusal
	case r != nil && r.reason == reasonTaken:
		return fmt.Errorf("%w: %w", refusal, store.ErrTagTaken)
	case resp.StatusCode >= 500 || !definite(refusal):
		return c.settle(ctx, tag, d, refusal)
	}
	return refusal
}

// definite reports whether a refusal says by itself that the tag was not
// written and why, so that reading it again adds nothing.
func definite(err error) bool {
	for _, s := range []error{store.ErrUnauthorized, store.ErrUntrusted, store.ErrForbidden, store.ErrTooLarge, store.ErrIncomplete, store.ErrUnreachable, store.ErrNotFound} {
		if errors.Is(err, s) {
			return true
		}
	}
	return false
}

// settle reads the tag after a PUT whose outcome is in doubt: cause is the
// failure, nil where the registry said that it wrote it.
func (c *client) settle(ctx context.Context, tag string, d digest.Digest, cause error) error {
	if err := context.Cause(ctx); err != nil {
		return fmt.Errorf("%w: %w", err, store.ErrUnknownOutcome)
	}
	done, err := c.compareTag(ctx, tag, d)
	switch {
	case done:
		return nil
	case errors.Is(err, store.ErrTagTaken):
		return err
	case errors.Is(err, store.ErrDigestMismatch) && cause == nil:
		return fmt.Errorf("accepted, and damaged there: %w", err)
	case errors.Is(err, store.ErrNotFound) && cause == nil:
		return fmt.Errorf("the registry accepted it but does not show it: %w", store.ErrUnknownOutcome)
	case errors.Is(err, store.ErrNotFound):
		var r *response
		if errors.As(cause, &r) {
			return cause // it answered, and did not write
		}
		return fmt.Errorf("%w: it is not there yet: %w", cause, store.ErrUnknownOutcome)
	case cause == nil:
		return fmt.Errorf("accepted, but reading it again failed: %w: %w", err, store.ErrUnknownOutcome)
	}
	return fmt.Errorf("%w: reading it again failed too: %w", cause, store.ErrUnknownOutcome)
}

// ResolveTag implements store.Manifests.
func (c *client) ResolveTag(ctx context.Context, tag string) (digest.Digest, error) {
	d, err := c.resolve(ctx, tag)
	if err != nil {
		return "", c.fail("read tag "+tag, err)
	}
	return d, nil
}

// First implements store.Remembering.
func (c *client) First(ctx context.Context, tag string) (digest.Digest, error) {
	query := ""
	if c.first.Load() {
		query = "?first"
	}
	d, err := c.head(ctx, tag, query)
	if query != "" && errors.Is(err, store.ErrRefused) {
		d, err = c.ask(ctx, http.MethodGet, tag, query) // GET says why, which HEAD has no room for
	}
	if err != nil {
		return "", c.fail("read what tag "+tag+" was given first", err)
	}
	return d, nil
}

// resolve returns what a tag names.
func (c *client) resolve(ctx context.Context, tag string) (digest.Digest, error) {
	return c.head(ctx, tag, "")
}

// head asks by HEAD, and by GET where the registry leaves the digest out, or why it
// refuses.
func (c *client) head(ctx context.Context, tag, query string) (digest.Digest, error) {
	d, err := c.ask(ctx, http.MethodHead, tag, query)
	if err == nil && d != "" || err != nil && (query != "" || !errors.Is(err, store.ErrRefused)) {
		return d, err
	}
	m, err := c.getManifest(ctx, tag)
	return m.Digest, err
}

// ask returns the digest that the header of an answer gives, "" for none.
func (c *client) ask(ctx context.Context, method, tag, query string) (digest.Digest, error) {
	if err := checkTag(tag); err != nil {
		return "", err
	}
	resp, err := c.do(ctx, method, c.url("manifests", tag)+query, http.Header{"Accept": {accept}}, nil)
	if err != nil {
		return "", err
	}
	defer drain(resp)
	if resp.StatusCode != http.StatusOK {
		return "", statusError(resp)
	}
	if d := digest.Digest(resp.Header.Get("Docker-Content-Digest")); checkDigest(d) == nil {
		return d, nil
	}
	return "", nil
}

// GetManifest implements store.Manifests.
func (c *client) GetManifest(ctx context.Context, ref string) (store.Manifest, error) {
	m, err := c.getManifest(ctx, ref)
	if err != nil {
		return store.Manifest{}, c.fail("get manifest "+clean(ref), err)
	}
	return m, nil
}

func (c *client) getManifest(ctx context.Context, ref string) (store.Manifest, error) {
	want := digest.Digest(ref)
	if checkDigest(want) != nil {
		want = ""
		if err := checkTag(ref); err != nil {
			return store.Manifest{}, err
		}
	}
	resp, err := c.do(ctx, http.MethodGet, c.url("manifests", ref), http.Header{"Accept": {accept}}, nil)
	if err != nil {
		return store.Manifest{}, err
	}
	defer drain(resp)
	if resp.StatusCode != http.StatusOK {
		return store.Manifest{}, statusError(resp)
	}
	if resp.ContentLength > store.MaxManifest {
		return store.Manifest{}, fmt.Errorf("%d bytes, at most %d: %w", resp.ContentLength, store.MaxManifest, store.ErrTooLarge)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, store.MaxManifest+1))
	if err != nil {
		return store.Manifest{}, cutOff(ctx, err)
	}
	if len(body) > store.MaxManifest {
		return store.Manifest{}, fmt.Errorf("more than %d bytes: %w", store.MaxManifest, store.ErrTooLarge)
	}
	got := digest.FromBytes(body)
	if want == "" {
		want = digest.Digest(resp.Header.Get("Docker-Content-Digest"))
	}
	if want != "" && want != got {
		return store.Manifest{}, fmt.Errorf("the registry sent %s instead of %s: %w", got, clean(string(want)), store.ErrDigestMismatch)
	}
	mediaType, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	return store.Manifest{MediaType: strings.TrimSpace(mediaType), Digest: got, Body: body}, nil
}

// DeleteTag implements store.Manifests. Registries that take a tag for a bad
// digest do not offer it.
func (c *client) DeleteTag(ctx context.Context, tag string) error {
	what := "delete tag " + tag
	if err := checkTag(tag); err != nil {
		return c.fail(what, err)
	}
	err := c.delete(ctx, tag)
	var r *response
	if errors.Is(err, store.ErrDigestMismatch) && (!errors.As(err, &r) || r.reason != reasonDamaged) {
		err = fmt.Errorf("%w: %w", err, store.ErrUnsupported)
	}
	if err != nil {
		return c.fail(what, err)
	}
	return nil
}

// DeleteManifest implements store.Manifests.
func (c *client) DeleteManifest(ctx context.Context, d digest.Digest) error {
	what := "delete manifest " + d.String()
	if err := checkDigest(d); err != nil {
		return c.fail(what, err)
	}
	if err := c.delete(ctx, d.String()); err != nil {
		return c.fail(what, err)
	}
	return nil
}

func (c *client) delete(ctx context.Context, ref string) error {
	ctx = withDelete(ctx, c.ref)
	resp, err := c.do(ctx, http.MethodDelete, c.url("manifests", ref), nil, nil)
	if err != nil {
		return err
	}
	defer drain(resp)
	switch resp.StatusCode {
	case http.StatusAccepted, http.StatusOK, http.StatusNoContent:
		return nil
	}
	refusal := statusError(resp)
	var r *response
	if errors.As(refusal, &r) && r.reason == reasonListed {
		return fmt.Errorf("%w: %w", refusal, store.ErrListed)
	}
	return refusal
}
