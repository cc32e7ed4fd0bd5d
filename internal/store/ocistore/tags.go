package ocistore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"lifeboat/internal/store"
)

// Bounds of a tag listing. A registry that has more, or says so, is an error:
// nothing that is cut off is taken for the whole.
const (
	tagsPerPage = 1000
	maxTagPages = 10_000
	maxTagPage  = 16 << 20 // bytes of one page
	maxTagBytes = 96 << 20 // of all pages
	// maxTags bounds the memory that a list takes.
	maxTags = 1_000_000
	// maxHollow is how many pages in a row may bring nothing new.
	maxHollow = 16
)

// Tags implements store.Manifests.
func (c *client) Tags(ctx context.Context, prefix string) ([]string, error) {
	l := &tagList{prefix: prefix, left: maxTagBytes, visited: map[string]bool{}}
	next := c.url("tags", "list") + "?n=" + strconv.Itoa(tagsPerPage)
	if prefix != "" && c.prefixed.Load() {
		next += "&prefix=" + url.QueryEscape(prefix) // it may answer with fewer; what comes is looked at all the same
	}
	for page := 0; next != ""; page++ {
		if err := l.visit(next, page); err != nil {
			return nil, c.fail("list tags", err)
		}
		after, err := c.tagPage(ctx, next, l)
		if errors.Is(err, store.ErrNotFound) && page == 0 {
			return nil, nil
		}
		if err != nil {
			return nil, c.fail("list tags", err)
		}
		next = after
	}
	slices.Sort(l.tags)
	return slices.Compact(l.tags), nil
}

// tagList gathers the pages of one listing.
type tagList struct {
	prefix  string
	tags    []string
	seen    int   // tags of any prefix
	left    int64 // bytes that may still come
	visited map[string]bool
	hollow  int
	before  int // seen when the last page was asked for
}

// visit notes a page that is about to be asked for, and refuses one that leads
// nowhere.
func (l *tagList) visit(addr string, page int) error {
	if page > 0 {
		l.hollow++
		if l.seen > l.before {
			l.hollow = 0
		}
	}
	l.before = l.seen
	switch {
	case page == maxTagPages:
		return fmt.Errorf("more than %d pages: %w", maxTagPages, store.ErrTooLarge)
	case l.visited[addr]:
		return fmt.Errorf("the registry's pages lead back to themselves: %w", store.ErrRefused)
	case l.hollow == maxHollow:
		return fmt.Errorf("%d pages in a row hold no tag: %w", maxHollow, store.ErrRefused)
	}
	l.visited[addr] = true
	return nil
}

// add takes one tag of a page.
func (l *tagList) add(tag string) error {
	if l.seen++; l.seen > maxTags {
		return fmt.Errorf("more than %d tags: %w", maxTags, store.ErrTooLarge)
	}
	if strings.HasPrefix(tag, l.prefix) && checkTag(tag) == nil {
		l.tags = append(l.tags, strings.Clone(tag))
	}
	return nil
}

// tagPage reads one page of the listing and returns the address of the next, ""
// at the end.
func (c *client) tagPage(ctx context.Context, addr string, l *tagList) (next string, err error) {
	resp, err := c.do(ctx, http.MethodGet, addr, nil, nil)
	if err != nil {
		return "", err
	}
	defer drain(resp)
	if resp.StatusCode != http.StatusOK {
		return "", statusError(resp)
	}
	most := min(l.left, maxTagPage)
	body := &io.LimitedReader{R: resp.Body, N: most + 1}
	err = decodeTags(body, l.add)
	l.left = max(0, l.left-(most+1-body.N))
	switch {
	case body.N <= 0:
		return "", fmt.Errorf("a list of more than %d bytes: %w", most, store.ErrTooLarge)
	case errors.Is(err, errNoTags):
		return "", fmt.Errorf("the list of tags is not JSON of the expected form: %w", store.ErrRefused)
	case errors.Is(err, store.ErrTooLarge):
		return "", err
	case err != nil:
		return "", cutOff(ctx, err)
	}
	return c.nextPage(resp)
}

// errNoTags: the answer is no list of tags.
var errNoTags = errors.New("not a list of tags")

// decodeTags hands each tag of {"name":…,"tags":[…]} to add, without keeping the
// whole list in memory: a registry decides how long it is.
func decodeTags(r io.Reader, add func(string) error) error {
	dec := json.NewDecoder(r)
	if err := expect(dec, json.Delim('{')); err != nil {
		return err
	}
	for dec.More() {
		key, err := token(dec)
		if err != nil {
			return err
		}
		if key == "tags" {
			err = decodeTagArray(dec, add)
		} else {
			var ignored json.RawMessage // "name"
			err = noJSON(dec.Decode(&ignored))
		}
		if err != nil {
			return err
		}
	}
	return expect(dec, json.Delim('}'))
}

func decodeTagArray(dec *json.Decoder, add func(string) error) error {
	t, err := token(dec)
	switch {
	case err != nil:
		return err
	case t == nil: // a name without tags
		return nil
	case t != json.Delim('['):
		return errNoTags
	}
	for dec.More() {
		t, err := token(dec)
		if err != nil {
			return err
		}
		tag, ok := t.(string)
		if !ok {
			return errNoTags
		}
		if err := add(tag); err != nil {
			return err
		}
	}
	return expect(dec, json.Delim(']'))
}

// token reads one token. What is no JSON is errNoTags; an answer that was cut
// off is its own error.
func token(dec *json.Decoder) (json.Token, error) {
	t, err := dec.Token()
	return t, noJSON(err)
}

func noJSON(err error) error {
	if _, ok := errors.AsType[*json.SyntaxError](err); ok {
		return errNoTags
	}
	return err
}

func expect(dec *json.Decoder, want json.Delim) error {
	t, err := token(dec)
	if err == nil && t != want {
		return errNoTags
	}
	return err
}

// nextPage follows a Link header within the registry's origin only.
func (c *client) nextPage(resp *http.Response) (string, error) {
	link := resp.Header.Get("Link")
	if link == "" {
		return "", nil
	}
	bad := fmt.Errorf("the registry's link to the next page cannot be followed: %w", store.ErrRefused)
	target, ok := strings.CutPrefix(link, "<")
	target, _, ok2 := strings.Cut(target, ">")
	if !ok || !ok2 {
		return "", bad
	}
	u, err := resp.Request.URL.Parse(target)
	if err != nil {
		return "", bad
	}
	own, err := url.Parse(c.base)
	if err != nil || hostPort(u) != hostPort(own) {
		return "", bad
	}
	u.Scheme, u.User = own.Scheme, nil
	return u.String(), nil
}
