package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/distribution/distribution/v3"
	"github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/opencontainers/go-digest"
)

// blobsRoot is where Distribution keeps the bytes of all names; see its
// storage/paths.go.
const blobsRoot = "/docker/registry/v2/blobs"

// blobPath is the file with the bytes of a blob or manifest.
func blobPath(d digest.Digest) string {
	hex := d.Encoded()
	return path.Join(blobsRoot, d.Algorithm().String(), hex[:2], hex, "data")
}

// maxChildren bounds the indexes whose lists are remembered; beyond it starts
// anew.
const maxChildren = 1 << 14

// references knows which manifests the indexes under tags list. What a digest
// names never changes, so lists are remembered. Safe for concurrent use.
type references struct {
	driver driver.StorageDriver
	ledger *ledger

	mu    sync.Mutex
	lists map[digest.Digest][]digest.Digest // by index; none for other manifests
}

func newReferences(l *ledger) *references {
	return &references{driver: l.driver, ledger: l, lists: map[digest.Digest][]digest.Digest{}}
}

// lister returns a tag whose index lists d, "" where there is none. Tags of
// packs are not looked at: they name image manifests, and there are many. The error
// wraps errDamaged where it cannot be told what a tag lists.
func (r *references) lister(ctx context.Context, name string, d digest.Digest) (string, error) {
	tags, err := r.ledger.tags(ctx, name)
	if err != nil {
		return "", err
	}
	all, err := tags.All(ctx)
	var unknown distribution.ErrRepositoryUnknown
	if errors.As(err, &unknown) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("list tags: %w", err)
	}
	for _, t := range all {
		if parseTag(t).class == classPacks {
			continue
		}
		named, err := r.ledger.named(ctx, name, t)
		if err != nil {
			return "", err
		}
		if named == "" {
			continue
		}
		list, err := r.children(ctx, named)
		if err != nil {
			return "", fmt.Errorf("what tag %s lists: %w", t, err)
		}
		if slices.Contains(list, d) {
			return t, nil
		}
	}
	return "", nil
}

// children returns the manifests that an index lists.
func (r *references) children(ctx context.Context, d digest.Digest) ([]digest.Digest, error) {
	r.mu.Lock()
	list, ok := r.lists[d]
	r.mu.Unlock()
	if ok {
		return list, nil
	}
	body, err := r.driver.GetContent(ctx, blobPath(d))
	if isMissing(err) || err == nil && !fitsDigest(body, d) {
		err = errDamaged
	}
	if err != nil {
		return nil, fmt.Errorf("read manifest %s: %w", d, err)
	}
	var x struct {
		Manifests []struct {
			Digest digest.Digest `json:"digest"`
		} `json:"manifests"`
	}
	if err := json.Unmarshal(body, &x); err != nil {
		return nil, fmt.Errorf("manifest %s: %w", d, err)
	}
	list = []digest.Digest{}
	for _, m := range x.Manifests {
		list = append(list, m.Digest)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.lists) >= maxChildren {
		clear(r.lists)
	}
	r.lists[d] = list
	return list, nil
}

// digestsIn returns everything in a manifest that looks like a digest, wherever
// it stands: more than it names is better than less.
func digestsIn(body []byte) (map[digest.Digest]bool, error) {
	var v any
	if err := json.Unmarshal(body, &v); err != nil {
		return nil, err
	}
	out := map[digest.Digest]bool{}
	var walk func(any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			for _, x := range v {
				walk(x)
			}
		case []any:
			for _, x := range v {
				walk(x)
			}
		case string:
			if len(v) <= 200 && strings.Contains(v, ":") {
				if d := digest.Digest(v); d.Validate() == nil {
					out[d] = true
				}
			}
		}
	}
	walk(v)
	return out, nil
}
