package registry

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/distribution/distribution/v3"
	"github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ledger answers what the guard must know about tags: what they name, which
// numbers were used and deleted, who claimed an epoch. The last two are small
// files next to Distribution's own, through the same driver:
//
//	/lifeboat/v1/names/<name>/_retired/<tag>   the digest that the tag was given first
//	/lifeboat/v1/names/<name>/_claims/<tag>    the user that wrote the epoch
//
// Callers hold the lock of the tag's series.
type ledger struct {
	driver   driver.StorageDriver
	registry distribution.Namespace
}

const recordsRoot = "/lifeboat/v1/names"

// tagHistory is where Distribution keeps a link for each manifest that a tag ever
// named; see its storage/paths.go.
func tagHistory(name, tag string) string {
	return path.Join(repositoriesRoot, name, "_manifests", "tags", tag, "index", digest.SHA256.String())
}

func (l *ledger) tags(ctx context.Context, name string) (distribution.TagService, error) {
	named, err := reference.WithName(name)
	if err != nil {
		return nil, fmt.Errorf("name %q: %w", name, err)
	}
	repo, err := l.registry.Repository(ctx, named)
	if err != nil {
		return nil, fmt.Errorf("name %q: %w", name, err)
	}
	return repo.Tags(ctx), nil
}

// resolve returns what a tag names, "" where it does not exist. The error wraps
// errDamaged where it cannot be read what it names.
func (l *ledger) resolve(ctx context.Context, name, tag string) (digest.Digest, error) {
	tags, err := l.tags(ctx, name)
	if err != nil {
		return "", err
	}
	desc, err := tags.Get(ctx, tag)
	var unknown distribution.ErrTagUnknown
	if errors.As(err, &unknown) {
		return "", nil
	}
	if isNoDigest(err) {
		err = errDamaged
	}
	if err != nil {
		return "", fmt.Errorf("read tag %s: %w", tag, err)
	}
	return desc.Digest, nil
}

// named is resolve, and where that cannot be read what the tag was given first.
func (l *ledger) named(ctx context.Context, name, tag string) (digest.Digest, error) {
	d, err := l.resolve(ctx, name, tag)
	if errors.Is(err, errDamaged) {
		return l.given(ctx, name, parseTag(tag))
	}
	return d, err
}

// listers returns the tags of Lifeboat's grammar that name d. The error wraps
// errDamaged where a tag may name it.
func (l *ledger) listers(ctx context.Context, name string, d digest.Digest) ([]string, error) {
	tags, err := l.tags(ctx, name)
	if err != nil {
		return nil, err
	}
	all, err := tags.Lookup(ctx, ocispec.Descriptor{Digest: d})
	if isNoDigest(err) {
		all, err = l.lookup(ctx, name, tags, d)
	}
	if err != nil {
		return nil, fmt.Errorf("look for tags of %s: %w", d, err)
	}
	var out []string
	for _, t := range all {
		if !parseTag(t).ordinary() {
			out = append(out, t)
		}
	}
	return out, nil
}

// lookup is Distribution's Lookup, which ends at the first tag that is damaged.
func (l *ledger) lookup(ctx context.Context, name string, tags distribution.TagService, d digest.Digest) (out []string, err error) {
	all, err := tags.All(ctx)
	if err != nil {
		return nil, err
	}
	for _, t := range all {
		have, err := l.named(ctx, name, t)
		if err != nil {
			return nil, err
		}
		if have == d {
			out = append(out, t)
		}
	}
	return out, nil
}

// used reports whether a number of a series was ever given out.
func (l *ledger) used(ctx context.Context, name string, t tag) (bool, error) {
	d, err := l.resolve(ctx, name, t.text)
	if errors.Is(err, errDamaged) {
		return true, nil
	}
	if err != nil || d != "" {
		return d != "", err
	}
	old, err := l.retired(ctx, name, t)
	return old != "", err
}

// given returns what a tag was given first, "" where it was never given anything:
// what was noted when it was deleted, else what Distribution's list of all that a
// tag ever named holds, which is not more than one. Where there is no such list, or
// a crash left more in it, it is what the tag names. A link that was damaged, or
// moved beside the registry, says nothing about that.
func (l *ledger) given(ctx context.Context, name string, t tag) (digest.Digest, error) {
	if t.numbered() {
		if old, err := l.retired(ctx, name, t); err != nil || old != "" {
			return old, err
		}
	}
	all, err := l.driver.List(ctx, tagHistory(name, t.text))
	var missing driver.PathNotFoundError
	if err != nil && !errors.As(err, &missing) {
		return "", fmt.Errorf("read what tag %s named: %w", t.text, err)
	}
	if len(all) == 1 {
		if d := digest.NewDigestFromEncoded(digest.SHA256, path.Base(all[0])); d.Validate() == nil {
			return d, nil
		}
	}
	d, err := l.resolve(ctx, name, t.text)
	if err != nil || t.class == classPacks && d != "" && !strings.HasPrefix(d.Encoded(), t.prefix) {
		return "", err // nor was it what its name says
	}
	return d, nil
}

// retire notes that a tag's number is used up, before the tag is deleted.
func (l *ledger) retire(ctx context.Context, name string, t tag, d digest.Digest) error {
	return l.write(ctx, name, "_retired", t.text, d.String())
}

// retired returns what a deleted tag was given first, "" where it was never deleted.
func (l *ledger) retired(ctx context.Context, name string, t tag) (digest.Digest, error) {
	s, err := l.read(ctx, name, "_retired", t.text)
	return digest.Digest(s), err
}

// claim notes who writes an epoch, before it is written.
func (l *ledger) claim(ctx context.Context, name string, t tag, user string) error {
	return l.write(ctx, name, "_claims", t.text, user)
}

// holder returns the user who wrote the newest epoch of a system, "" where
// there is none or it was not written through this registry. from is a number
// known to exist, or 0; the newest is returned to start from next time.
func (l *ledger) holder(ctx context.Context, name, system string, from uint64) (user string, newest uint64, err error) {
	series := tag{text: string(classEpoch) + "." + system + ".1", class: classEpoch, system: system, number: 1}
	newest = from
	for {
		ok, err := l.used(ctx, name, series.with(newest+1))
		if err != nil {
			return "", newest, err
		}
		if !ok {
			break
		}
		newest++
	}
	if newest == 0 {
		return "", 0, nil
	}
	user, err = l.read(ctx, name, "_claims", series.with(newest).text)
	return user, newest, err
}

func (l *ledger) write(ctx context.Context, name, kind, tag, content string) error {
	if err := l.driver.PutContent(ctx, path.Join(recordsRoot, name, kind, tag), []byte(content)); err != nil {
		return fmt.Errorf("note %s: %w", strconv.Quote(tag), err)
	}
	return nil
}

func (l *ledger) read(ctx context.Context, name, kind, tag string) (string, error) {
	b, err := l.driver.GetContent(ctx, path.Join(recordsRoot, name, kind, tag))
	var missing driver.PathNotFoundError
	if errors.As(err, &missing) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read note on %s: %w", strconv.Quote(tag), err)
	}
	return string(b), nil
}
