package registry

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
)

const (
	defaultCollectInterval = time.Hour
	defaultCollectGrace    = 24 * time.Hour
	// idleCollects is how many intervals may pass without a collection while
	// nothing is deleted: what uploads left behind is found then.
	idleCollects = 24
	// otherDigests is the lock for blobs that are named by another digest than the
	// SHA-256 under which they are kept.
	otherDigests = "other digests"
)

// Collected is what a collection took away.
type Collected struct {
	// Links are blobs that a name held and none of its manifests names; Blobs are
	// files that no name holds any more, of Bytes bytes together.
	Links, Blobs int
	Bytes        int64
}

// janitor takes back the room of what no manifest names, while requests are
// served. It knows Distribution's layout (storage/paths.go) and nothing of what
// is stored. One collection runs at a time.
//
// What makes it safe: a blob that a name holds is let go under the exclusive lock
// of the name, when none of the manifests that the name has, tagged or not, names
// it; so no manifest is stored meanwhile, and later Distribution refuses one that
// names it (invariant 1). What was uploaded within the grace is left alone: its
// manifest is still to come. A file is removed under the exclusive lock of its
// digest, when no name holds it; whoever uploads or mounts that digest waits.
// Killed anywhere, what is left over is found by the next collection.
type janitor struct {
	g        *guard
	grace    time.Duration
	deleted  atomic.Bool // something was deleted since the last collection
	idleLeft int         // intervals until the next collection without that
}

// run collects every so often until ctx ends.
func (j *janitor) run(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if j.idleLeft--; !j.deleted.Swap(false) && j.idleLeft > 0 {
			continue
		}
		j.idleLeft = idleCollects
		c, err := j.collect(ctx)
		switch {
		case err != nil && ctx.Err() == nil:
			j.deleted.Store(true) // again next time
			j.g.log.Error("collection failed; nothing that is needed was removed", "err", err)
		case c.Links+c.Blobs > 0:
			j.g.log.Info("collected", "links", c.Links, "blobs", c.Blobs, "bytes", c.Bytes)
		}
	}
}

func (j *janitor) collect(ctx context.Context) (c Collected, err error) {
	names, err := j.names(ctx, repositoriesRoot, nil)
	if err != nil {
		return c, err
	}
	for _, name := range names {
		n, err := j.unlink(ctx, name)
		c.Links += n
		if err != nil {
			return c, fmt.Errorf("collect in name %s: %w", name, err)
		}
	}
	if err := j.removeFiles(ctx, &c); err != nil {
		return c, fmt.Errorf("collect files: %w", err)
	}
	return c, nil
}

// names lists all names below a directory of the storage.
func (j *janitor) names(ctx context.Context, dir string, out []string) ([]string, error) {
	below, err := j.list(ctx, dir)
	if err != nil {
		return nil, err
	}
	found := false
	for _, p := range below {
		base := path.Base(p)
		if strings.HasPrefix(base, "_") {
			found = found || base == "_layers" || base == "_manifests"
			continue
		}
		if out, err = j.names(ctx, p, out); err != nil {
			return nil, err
		}
	}
	if found {
		out = append(out, strings.TrimPrefix(dir, repositoriesRoot+"/"))
	}
	return out, nil
}

// list is the driver's List, empty for what is not there.
func (j *janitor) list(ctx context.Context, dir string) ([]string, error) {
	below, err := j.g.driver.List(ctx, dir)
	if isMissing(err) || errors.Is(err, fs.ErrNotExist) {
		return nil, ctx.Err()
	}
	return below, err
}

// links calls fn with each link below a directory of the form ALGORITHM/HEX/link:
// the digest by which it is asked for, and that under which the bytes are.
func (j *janitor) links(ctx context.Context, dir string, fn func(as, kept digest.Digest) error) error {
	algorithms, err := j.list(ctx, dir)
	if err != nil {
		return err
	}
	for _, a := range algorithms {
		entries, err := j.list(ctx, a)
		if err != nil {
			return err
		}
		for _, e := range entries {
			as := digest.NewDigestFromEncoded(digest.Algorithm(path.Base(a)), path.Base(e))
			if as.Validate() != nil {
				continue
			}
			b, err := j.g.driver.GetContent(ctx, path.Join(e, "link"))
			if isMissing(err) {
				continue // the directory outlives the link
			}
			if err != nil {
				return err
			}
			kept := digest.Digest(b)
			if err := kept.Validate(); err != nil {
				return fmt.Errorf("link %s: %w", e, err)
			}
			if err := fn(as, kept); err != nil {
				return err
			}
		}
	}
	return nil
}

func layersPath(name string) string { return path.Join(repositoriesRoot, name, "_layers") }
func revisionsPath(name string) string {
	return path.Join(repositoriesRoot, name, "_manifests", "revisions")
}

func linkPath(root string, d digest.Digest) string {
	return path.Join(root, d.Algorithm().String(), d.Encoded(), "link")
}

// named is what the manifests of a name name.
type named struct {
	blobs map[digest.Digest]bool
	read  map[digest.Digest]bool // manifests
	added int64                  // guard.added at that time
}

// readManifests brings n up to what the name has now. A manifest that cannot be
// read ends it: what it names is not known.
func (j *janitor) readManifests(ctx context.Context, name string, n *named) error {
	n.added = j.g.addedTo(name).Load()
	return j.links(ctx, revisionsPath(name), func(_, kept digest.Digest) error {
		if n.read[kept] {
			return nil
		}
		body, err := j.g.driver.GetContent(ctx, blobPath(kept))
		if err != nil {
			return fmt.Errorf("manifest %s: %w", kept, err)
		}
		found, err := digestsIn(body)
		if err != nil {
			return fmt.Errorf("manifest %s: %w", kept, err)
		}
		for d := range found {
			n.blobs[d] = true
		}
		n.read[kept] = true
		return nil
	})
}

// unlink lets a name go of the blobs that no manifest of it names.
func (j *janitor) unlink(ctx context.Context, name string) (count int, err error) {
	n := &named{blobs: map[digest.Digest]bool{}, read: map[digest.Digest]bool{}}
	if err := j.readManifests(ctx, name, n); err != nil {
		return 0, err
	}
	var list [][2]digest.Digest
	err = j.links(ctx, layersPath(name), func(as, kept digest.Digest) error {
		if !n.blobs[as] && !n.blobs[kept] {
			list = append(list, [2]digest.Digest{as, kept})
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	for _, l := range list {
		gone, err := j.unlinkOne(ctx, name, l[0], l[1], n)
		if err != nil {
			return count, err
		}
		if gone {
			count++
		}
	}
	return count, nil
}

func (j *janitor) unlinkOne(ctx context.Context, name string, as, kept digest.Digest, n *named) (bool, error) {
	link := linkPath(layersPath(name), as)
	if young, err := j.young(ctx, link); young || err != nil {
		return false, err
	}
	unlock, ok := j.alone(kept)
	if !ok {
		return false, nil
	}
	defer unlock()
	defer j.g.names.lock(name)()
	if j.g.addedTo(name).Load() != n.added {
		if err := j.readManifests(ctx, name, n); err != nil {
			return false, err
		}
	}
	if n.blobs[as] || n.blobs[kept] {
		return false, nil
	}
	if young, err := j.young(ctx, link); young || err != nil { // uploaded again meanwhile
		return false, err
	}
	return true, j.g.driver.Delete(ctx, path.Dir(link))
}

// alone takes the locks under which bytes are removed; false where somebody is
// storing them, so that they are no rubbish.
func (j *janitor) alone(d digest.Digest) (unlock func(), ok bool) {
	other, ok := j.g.digests.tryLock(otherDigests)
	if !ok {
		return nil, false
	}
	own, ok := j.g.digests.tryLock(d.String())
	if !ok {
		other()
		return nil, false
	}
	return func() { own(); other() }, true
}

// young reports whether a file was written within the grace, or is gone.
func (j *janitor) young(ctx context.Context, p string) (bool, error) {
	fi, err := j.g.driver.Stat(ctx, p)
	if isMissing(err) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	return time.Since(fi.ModTime()) < j.grace, nil
}

// removeFiles removes the files that no name holds.
func (j *janitor) removeFiles(ctx context.Context, c *Collected) error {
	others := j.g.others.Load()
	held := map[digest.Digest]bool{}
	names, err := j.names(ctx, repositoriesRoot, nil)
	if err != nil {
		return err
	}
	for _, name := range names {
		for _, root := range []string{layersPath(name), revisionsPath(name)} {
			err := j.links(ctx, root, func(_, kept digest.Digest) error { held[kept] = true; return nil })
			if err != nil {
				return err
			}
		}
	}
	algorithms, err := j.list(ctx, blobsRoot)
	if err != nil {
		return err
	}
	for _, a := range algorithms {
		parts, err := j.list(ctx, a)
		if err != nil {
			return err
		}
		for _, part := range parts {
			files, err := j.list(ctx, part)
			if err != nil {
				return err
			}
			for _, f := range files {
				d := digest.NewDigestFromEncoded(digest.Algorithm(path.Base(a)), path.Base(f))
				if d.Validate() != nil || held[d] {
					continue
				}
				if err := j.removeFile(ctx, d, others, c); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// removeFile removes one file, unless a name holds it by now. A file that a name
// holds by another digest is only found by reading all links, so the whole waits
// for the next time if one was uploaded since they were read.
func (j *janitor) removeFile(ctx context.Context, d digest.Digest, others int64, c *Collected) error {
	unlock, ok := j.alone(d)
	if !ok {
		return nil
	}
	defer unlock()
	if j.g.others.Load() != others {
		return nil
	}
	names, err := j.names(ctx, repositoriesRoot, nil)
	if err != nil {
		return err
	}
	for _, name := range names {
		for _, root := range []string{layersPath(name), revisionsPath(name)} {
			_, err := j.g.driver.Stat(ctx, linkPath(root, d))
			if err == nil {
				return nil
			}
			if !isMissing(err) {
				return err
			}
		}
	}
	fi, err := j.g.driver.Stat(ctx, blobPath(d))
	if isMissing(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := j.g.driver.Delete(ctx, path.Dir(blobPath(d))); err != nil {
		return err
	}
	c.Blobs++
	c.Bytes += fi.Size()
	return nil
}
