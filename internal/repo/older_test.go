package repo_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"lifeboat/internal/dr"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/repotest"
	"lifeboat/internal/seal"
	"lifeboat/internal/store"
)

// view is what a hostile registry shows of a store: some tags are hidden from
// whoever asks, in lists and by name.
type view struct {
	store.Store
	mu   sync.Mutex
	hide func(tag string) bool
}

func (v *view) hides(tag string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.hide != nil && v.hide(tag)
}

// set changes what is hidden from now on.
func (v *view) set(hide func(tag string) bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.hide = hide
}

func without(tags ...string) func(string) bool {
	return func(tag string) bool { return slices.Contains(tags, tag) }
}

func (v *view) Tags(ctx context.Context, prefix string) ([]string, error) {
	tags, err := v.Store.Tags(ctx, prefix)
	return slices.DeleteFunc(tags, v.hides), err
}

func (v *view) ResolveTag(ctx context.Context, tag string) (digest.Digest, error) {
	if v.hides(tag) {
		return "", store.ErrNotFound
	}
	return v.Store.ResolveTag(ctx, tag)
}

func (v *view) GetManifest(ctx context.Context, ref string) (store.Manifest, error) {
	if v.hides(ref) {
		return store.Manifest{}, store.ErrNotFound
	}
	return v.Store.GetManifest(ctx, ref)
}

// history makes a repository with two of each: keys, hosts, snapshots, epochs,
// switch records.
func history(t *testing.T) *repotest.Bed {
	t.Helper()
	b := repotest.NewBed(t)
	main := b.Host("main")
	if err := main.AddKey(t.Context(), passphraseOf(t, "second")); err != nil {
		t.Fatal(err)
	}
	for i := range dr.Epoch(2) {
		if err := main.PutRecord(t.Context(), fmt.Sprintf("e.shop.%d", i+1), claim(main, i+1, nil)); err != nil {
			t.Fatal(err)
		}
		if err := main.PutRecord(t.Context(), fmt.Sprintf("w.shop.%d", i+1), map[string]any{"host": main.HostID(), "system": "shop"}); err != nil {
			t.Fatal(err)
		}
		mustSnapshot(t, main, "blog", nil, content(uint64(i)+10, 3))
		w, err := main.NewWriter(t.Context(), repo.WriterOptions{System: "shop"})
		if err != nil {
			t.Fatal(err)
		}
		root := rootOf(nil, "main")
		root.Epoch = i + 1
		_, err = w.Commit(t.Context(), root, repo.CommitInfo{})
		w.Close()
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.Host("other").Enrol(t.Context()); err != nil {
		t.Fatal(err)
	}
	return b
}

// TestHiddenNewest: a registry that hides the newest of one class or of one
// system only is noticed by each host that has seen it, whoever it is, at the
// work that needs it, and named; so is one that hides it for a moment.
func TestHiddenNewest(t *testing.T) {
	t.Parallel()
	find := func(ctx context.Context, r *repo.Repo) error { _, err := r.Find(ctx, "shop", ""); return err }
	list := func(prefix string) func(context.Context, *repo.Repo) error {
		return func(ctx context.Context, r *repo.Repo) error { _, err := r.ListRecords(ctx, prefix); return err }
	}
	latest := func(c repo.Class) func(context.Context, *repo.Repo) error {
		return func(ctx context.Context, r *repo.Repo) error { _, err := r.Latest(ctx, c, "shop"); return err }
	}
	check := func(ctx context.Context, r *repo.Repo) error {
		problems, err := r.Check(ctx)
		for _, p := range problems {
			if strings.HasSuffix(p.Tag, "*") {
				err = errors.Join(err, p.Err)
			}
		}
		return err
	}
	for _, tc := range []struct {
		hidden []string
		notice map[string]func(context.Context, *repo.Repo) error
	}{
		{[]string{"s.shop.2"}, map[string]func(context.Context, *repo.Repo) error{"find": find, "check": check}},
		{[]string{"s.shop.1", "s.shop.2"}, map[string]func(context.Context, *repo.Repo) error{"find": find, "check": check}},
		{[]string{"e.shop.2"}, map[string]func(context.Context, *repo.Repo) error{"find": find, "list": list("e.shop."), "latest": latest(repo.ClassEpoch), "check": check}},
		{[]string{"e.shop.1", "e.shop.2"}, map[string]func(context.Context, *repo.Repo) error{"find": find, "latest": latest(repo.ClassEpoch), "check": check}},
		{[]string{"e.shop.1"}, map[string]func(context.Context, *repo.Repo) error{"find": find, "list": list("e.shop."), "check": check}},
		{[]string{"w.shop.2"}, map[string]func(context.Context, *repo.Repo) error{"list": list("w.shop."), "latest": latest(repo.ClassSwitch), "check": check}},
		{[]string{"w.shop.1"}, map[string]func(context.Context, *repo.Repo) error{"list": list("w.shop."), "check": check}},
		{[]string{"host.2"}, map[string]func(context.Context, *repo.Repo) error{"find": find, "check": check}},
		{[]string{"host.1"}, map[string]func(context.Context, *repo.Repo) error{"find": find, "check": check}},
	} {
		for what, do := range tc.notice {
			t.Run(fmt.Sprint(what, tc.hidden), func(t *testing.T) {
				t.Parallel()
				b := history(t)
				v := &view{Store: b.Store}
				reads := b.Options("reader") // it has no key of its own and writes nothing
				reads.Host = nil
				for who, o := range map[string]repo.OpenOptions{"writer": b.Options("main"), "reader": reads} {
					v.set(nil)
					open := func() *repo.Repo {
						t.Helper()
						r, err := open(t, v, o)
						if err != nil {
							t.Fatalf("%s: %v", who, err)
						}
						return r
					}
					r := open()
					for _, see := range []func(context.Context, *repo.Repo) error{find, list("e.shop."), list("w.shop."), check} {
						if err := see(t.Context(), r); err != nil {
							t.Fatalf("%s: %v", who, err)
						}
					}
					v.set(without(tc.hidden...))
					for when, r := range map[string]*repo.Repo{"the same run": r, "the next run": open()} {
						err := do(t.Context(), r)
						if !errors.Is(err, dr.ErrTampered) || !strings.Contains(err.Error(), "older state") || !strings.Contains(err.Error(), "--accept-older") {
							t.Errorf("%s, %s: %v", who, when, err)
						}
						prefix := tc.hidden[0][:strings.LastIndex(tc.hidden[0], ".")]
						if err != nil && !strings.Contains(err.Error(), prefix) {
							t.Errorf("%s, %s: the error does not name %s: %v", who, when, prefix, err)
						}
					}
					o := o
					o.AcceptOlder = true
					accepted, err := openWith(t, v, o)
					if err != nil {
						t.Fatal(err)
					}
					if err := do(t.Context(), accepted); errors.Is(err, dr.ErrTampered) && strings.Contains(err.Error(), "older state") {
						t.Errorf("%s: accepted, and yet %v", who, err)
					}
				}
			})
		}
	}
}

func openWith(t *testing.T, st store.Store, o repo.OpenOptions) (*repo.Repo, error) {
	t.Helper()
	return open(t, st, o)
}

func passphraseOf(t *testing.T, name string) seal.Recipient {
	t.Helper()
	rc, err := seal.PassphraseRecipient(name, "open sesame", 4)
	if err != nil {
		t.Fatal(err)
	}
	return rc
}

// TestHiddenKeyRecord: an older key record is noticed by a host that has seen a
// newer one and by the holder of a kit, whether or not it began a generation.
func TestHiddenKeyRecord(t *testing.T) {
	t.Parallel()
	b := history(t) // key.2 adds a recipient, in the same generation
	marks, err := b.Host("main").Marks()
	if err != nil || marks["key."] != 2 {
		t.Fatalf("marks %v, %v", marks, err)
	}
	v := &view{Store: b.Store, hide: without("key.2")}
	refused := func(what string, o repo.OpenOptions) {
		t.Helper()
		if _, err := open(t, v, o); !errors.Is(err, dr.ErrTampered) || !strings.Contains(err.Error(), "older state") {
			t.Errorf("%s: %v", what, err)
		}
	}
	kit := func(host string) repo.OpenOptions {
		o, main := b.Options(host), b.Host("main")
		o.Expect = &repo.Expected{Repo: main.ID(), Fingerprint: main.Fingerprint(), Witnesses: main.Witnesses()}
		o.Marks = marks
		return o
	}
	refused("a host that has seen it", b.Options("main"))
	refused("a kit", kit("kit"))
	accept := kit("accepting")
	accept.AcceptOlder = true
	if _, err := open(t, v, accept); err != nil {
		t.Errorf("accepted: %v", err)
	}

	// Now a removed recipient, who knows the fixed keys, writes on from what he
	// knows. The kit was made after he was removed.
	before := secretOf(t, b, 2)
	if err := b.Host("main").RemoveKey(t.Context(), "second", nil); err != nil {
		t.Fatal(err)
	}
	after := kit("later kit")
	forged, err := before.Rotated()
	if err != nil {
		t.Fatal(err)
	}
	putKeyTag(t, b.Store, 4, encodeKey(t, forged, 4, b.Recipient))
	v.set(without("key.3"))
	if _, err := open(t, v, after); !errors.Is(err, dr.ErrTampered) || !strings.Contains(err.Error(), "generation 2") {
		t.Errorf("a generation of somebody who was removed: %v", err)
	}
	if r, err := open(t, b.Store, after); err != nil || len(r.Witnesses()) != 2 {
		t.Errorf("beside the true one: %v", err)
	}
}

// TestHiddenKeyRecordIsTold: a host that has never seen the key record that is
// withheld opens what there is, names what it cannot open and why, and is told that
// this may not be the newest state; who has seen the record refuses. Where the
// record is shown again, nothing is told.
func TestHiddenKeyRecordIsTold(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	main := b.Host("main")
	old := content(1, 3)
	s := mustSnapshot(t, main, "shop", nil, old)
	if err := main.RotateKey(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	mustSnapshot(t, main, "shop", s, content(2, 3))
	v := &view{Store: b.Store, hide: without("key.2")}
	if _, err := open(t, v, b.Options("main")); !errors.Is(err, dr.ErrTampered) || !strings.Contains(err.Error(), "older state") {
		t.Errorf("a host that has seen it: %v", err)
	}
	var told []string
	fresh := func(host string) *repo.Repo {
		t.Helper()
		told = nil
		o := b.Options(host)
		o.Notice = func(text string) { told = append(told, text) }
		r, err := open(t, v, o)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	r := fresh("fresh")
	snaps, problems, err := r.Snapshots(t.Context(), "shop")
	if err != nil || len(snaps) != 1 || len(problems) != 1 || problems[0].Tag != "s.shop.2" || !errors.Is(problems[0].Err, seal.ErrGeneration) {
		t.Fatalf("%d snapshots, %v, %v", len(snaps), problems, err)
	}
	for _, words := range []string{"generation 2", "key.1", "missing or withheld", "lifeboat key list"} {
		if !strings.Contains(problems[0].Err.Error(), words) {
			t.Errorf("the error does not say %q: %v", words, problems[0].Err)
		}
	}
	mustHold(t, r, &snaps[0], old)
	if _, err := r.Find(t.Context(), "shop", ""); err != nil {
		t.Fatal(err)
	}
	if len(told) != 1 || !strings.Contains(told[0], "may not be the newest state") {
		t.Errorf("told: %q", told)
	}
	v.set(nil)
	if snaps, problems, err := fresh("another").Snapshots(t.Context(), "shop"); err != nil || len(snaps) != 2 || len(problems) != 0 || len(told) != 0 {
		t.Errorf("%d snapshots, %v, %v; told %q", len(snaps), problems, err, told)
	}
	// The first one sees the newer key now, and from then on refuses the older state.
	if _, problems, err := r.Snapshots(t.Context(), "shop"); err != nil || len(problems) != 0 {
		t.Fatalf("%v, %v", problems, err)
	}
	v.set(without("key.2"))
	if _, err := open(t, v, b.Options("fresh")); !errors.Is(err, dr.ErrTampered) || !strings.Contains(err.Error(), "older state") {
		t.Errorf("once it has seen it: %v", err)
	}
}

// TestHiddenRevocation: a registry that hides a revocation has to hide every
// later host record, too; else the host stays revoked for everybody, and it is
// told which record is missing.
func TestHiddenRevocation(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	main, bad := b.Host("main"), b.Host("bad")
	mustSnapshot(t, main, "shop", nil, content(1, 3))
	mustSnapshot(t, bad, "blog", nil, content(2, 3))
	if err := main.Revoke(t.Context(), bad.HostID(), nil); err != nil {
		t.Fatal(err)
	}
	if err := b.Host("third").PutRecord(t.Context(), "e.shop.1", claim(b.Host("third"), 1, nil)); err != nil { // enrols as host.4
		t.Fatal(err)
	}
	v := &view{Store: b.Store, hide: without("host.3")}
	fresh := b.HostOn("fresh", v)
	snaps, problems, err := fresh.Snapshots(t.Context(), "")
	if err != nil || len(snaps) != 1 || snaps[0].System != "shop" {
		t.Fatalf("%v, %v", snaps, err)
	}
	if len(problems) != 1 || problems[0].Tag != "s.blog.1" || !errors.Is(problems[0].Err, repo.ErrRevoked) {
		t.Errorf("problems %v", problems)
	}
	problems, err = fresh.Check(t.Context())
	if err != nil || !slices.ContainsFunc(problems, func(p repo.Problem) bool {
		return p.Tag == "host.4" && strings.Contains(p.String(), bad.HostID().Short()) && strings.Contains(p.String(), "not there")
	}) {
		t.Errorf("check: %v, %v", problems, err)
	}
	v.set(nil)
	if snaps, _, err := b.HostOn("fresh", v).Snapshots(t.Context(), ""); err != nil || len(snaps) != 2 {
		t.Errorf("once it is back: %v, %v", snaps, err)
	}
}

// TestForkedTag: two records that both verify under one tag, because a registry
// has shown two hosts different states. Who has seen the one does not take the
// other.
func TestForkedTag(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	mustSnapshot(t, b.Host("a"), "shop", nil, content(1, 3))
	mustSnapshot(t, b.Host("b"), "blog", nil, content(2, 3))
	// Two lines of the same repository, each with a snapshot and a claim of its own.
	mine, theirs := b.Store, b.Store.Clone()
	put := func(name string, st store.Store) *repo.Repo {
		t.Helper()
		r := b.HostOn(name, st)
		if err := r.PutRecord(t.Context(), "e.shop.1", claim(r, 1, nil)); err != nil {
			t.Fatal(err)
		}
		mustSnapshot(t, r, "shop", nil, content(9, 3))
		return r
	}
	put("a", mine)
	put("b", theirs)
	a := b.HostOn("a", theirs)
	if _, err := a.ListRecords(t.Context(), "e.shop."); !errors.Is(err, dr.ErrTampered) {
		t.Errorf("claims: %v", err)
	}
	if _, err := a.Find(t.Context(), "shop", "#2"); !errors.Is(err, dr.ErrTampered) || !strings.Contains(err.Error(), "different states") {
		t.Errorf("snapshot: %v", err)
	}
	problems, err := b.HostOn("a", theirs).Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, tag := range []string{"e.shop.1", "s.shop.2"} {
		if !slices.ContainsFunc(problems, func(p repo.Problem) bool { return p.Tag == tag && strings.Contains(p.String(), "different states") }) {
			t.Errorf("check does not name %s: %v", tag, problems)
		}
	}
	// One that moves while a run looks is told.
	var told []string
	o := b.Options("watcher")
	o.Notice = func(s string) { told = append(told, s) }
	moving := mine.Clone()
	w, err := open(t, moving, o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Find(t.Context(), "shop", "#2"); err != nil {
		t.Fatal(err)
	}
	m, err := theirs.GetManifest(t.Context(), "s.shop.2")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range slices.Collect(needsOf(t, theirs, "s.shop.2")) {
		copyManifest(t, theirs, moving, d)
	}
	if err := moving.DeleteTag(t.Context(), "s.shop.2"); err != nil {
		t.Fatal(err)
	}
	if _, err := moving.PutManifest(t.Context(), "s.shop.2", m.MediaType, m.Body); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Find(t.Context(), "shop", "#2"); err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(told, func(s string) bool { return strings.Contains(s, "s.shop.2") && strings.Contains(s, m.Digest.String()) }) {
		t.Errorf("nobody was told: %q", told)
	}
}

// needsOf yields the pack manifests that a snapshot lists.
func needsOf(t *testing.T, st store.Store, tag string) func(yield func(digest.Digest) bool) {
	t.Helper()
	m, err := st.GetManifest(t.Context(), tag)
	if err != nil {
		t.Fatal(err)
	}
	return func(yield func(digest.Digest) bool) {
		for _, d := range listedIn(t, m.Body) {
			if !yield(d) {
				return
			}
		}
	}
}

// copyManifest brings a pack manifest and its blobs into another store.
func copyManifest(t *testing.T, from, to store.Store, d digest.Digest) {
	t.Helper()
	m, err := from.GetManifest(t.Context(), d.String())
	if err != nil {
		t.Fatal(err)
	}
	om := manifestOf(t, from, d.String())
	for _, l := range append(om.Layers, om.Config) {
		raw := blobBytes(t, from, l.Digest, l.Size)
		if _, err := to.PutBlob(t.Context(), l.Digest, l.Size, openerOf(raw)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := to.PutManifest(t.Context(), "m."+d.Encoded()[:32], ocispec.MediaTypeImageManifest, m.Body); err != nil {
		t.Fatal(err)
	}
}

// TestRevokedHostRaisesNothing: what a host writes after it was revoked is no
// state that anybody has to remember.
func TestRevokedHostRaisesNothing(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	main, bad := b.Host("main"), b.Host("bad")
	mustSnapshot(t, main, "shop", nil, content(1, 3))
	if err := bad.PutRecord(t.Context(), "e.shop.1", claim(bad, 1, nil)); err != nil {
		t.Fatal(err)
	}
	if err := main.Revoke(t.Context(), bad.HostID(), nil); err != nil {
		t.Fatal(err)
	}
	if err := bad.PutRecordRaw(t.Context(), "e.shop.1000", mustJSON(t, claim(bad, 1000, nil))); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"main", "newcomer"} {
		r := b.Host(name)
		if _, err := r.ListRecords(t.Context(), "e.shop."); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Latest(t.Context(), repo.ClassEpoch, "shop"); err != nil {
			t.Fatal(err)
		}
		if marks, err := r.Marks(); err != nil || marks["e.shop."] != 1 {
			t.Errorf("%s: marks %v, %v", name, marks, err)
		}
	}
	if err := b.Store.DeleteTag(t.Context(), "e.shop.1000"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Host("main").ListRecords(t.Context(), "e.shop."); err != nil {
		t.Errorf("after an operator has deleted it: %v", err)
	}
}

// everything is a registry in which each tag exists that somebody asks for.
type everything struct {
	store.Store
	asked int
}

func (e *everything) ResolveTag(ctx context.Context, tag string) (digest.Digest, error) {
	if d, err := e.Store.ResolveTag(ctx, tag); err == nil {
		return d, nil
	}
	e.asked++
	return digest.FromString(tag), ctx.Err()
}

func (e *everything) GetManifest(ctx context.Context, ref string) (store.Manifest, error) {
	if m, err := e.Store.GetManifest(ctx, ref); err == nil {
		return m, nil
	}
	body := []byte(`{"schemaVersion":2,"config":` + emptyJSON + `,"layers":[]}`)
	return store.Manifest{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(body), Body: body}, ctx.Err()
}

func (e *everything) PutManifest(context.Context, string, string, []byte) (digest.Digest, error) {
	return "", store.ErrTagTaken
}

// TestEveryNumberIsTaken: a registry that shows any tag that it is asked for
// makes no command run for ever.
func TestEveryNumberIsTaken(t *testing.T) {
	t.Parallel()
	b := history(t)
	e := &everything{Store: b.Store}
	main := b.HostOn("main", e)
	if rec, err := main.Latest(t.Context(), repo.ClassEpoch, "shop"); err != nil || rec.Number != 2 {
		t.Errorf("latest: %v, %v", rec, err)
	}
	if err := main.RotateKey(t.Context(), func(name string) (seal.Recipient, error) { return passphraseOf(t, name), nil }); !errors.Is(err, dr.ErrHeld) {
		t.Errorf("rotate: %v", err)
	}
	if _, err := b.HostOn("newcomer", e).Enrol(t.Context()); !errors.Is(err, dr.ErrHeld) {
		t.Errorf("enrol: %v", err)
	}
	w, err := main.NewWriter(t.Context(), repo.WriterOptions{System: "shop"})
	if err == nil {
		defer w.Close()
		_, err = w.Commit(t.Context(), rootOf(nil, "main"), repo.CommitInfo{})
	}
	if err == nil {
		t.Error("a snapshot was committed")
	}
}

// TestManySquattedKeyRecords: whoever has a login can fill numbers of the class
// key. Who has used the repository before still opens it.
func TestManySquattedKeyRecords(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	main := b.Host("main")
	s := mustSnapshot(t, main, "shop", nil, content(1, 3))
	for n := range 60 {
		if n%2 == 0 {
			putKeyTag(t, b.Store, n+2, []byte("garbage"))
		} else {
			putKeyTag(t, b.Store, n+2, encodeKey(t, seal.NewSecret(), dr.Number(n+2), b.Recipient))
		}
	}
	again, err := open(t, b.Store, b.Options("main"))
	if err != nil {
		t.Fatal(err)
	}
	mustHold(t, again, s, content(1, 3))
}

// TestNumbersAreUsedUp: a host that is trusted and hostile can take the highest
// number there is. Then the error says who to get rid of.
func TestNumbersAreUsedUp(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	main := b.Host("main")
	mustSnapshot(t, main, "shop", nil, content(1, 3))
	w, err := b.Host("evil").NewWriter(t.Context(), repo.WriterOptions{System: "shop"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := w.CommitAs(t.Context(), rootOf(nil, "main"), 1<<63-1); err != nil {
		t.Fatal(err)
	}
	_, _, err = snapshot(t.Context(), main, repo.WriterOptions{System: "shop"}, "main", content(2, 3))
	if !errors.Is(err, dr.ErrTampered) || !strings.Contains(err.Error(), "revoke the host") {
		t.Fatalf("%v", err)
	}
	if err := main.Revoke(t.Context(), b.Host("evil").HostID(), func(*repo.Snapshot) bool { return false }); err != nil {
		t.Fatal(err)
	}
	if err := b.Store.DeleteTag(t.Context(), "s.shop.9223372036854775807"); err != nil {
		t.Fatal(err)
	}
	o := b.Options("main")
	o.AcceptOlder = true
	again, err := open(t, b.Store, o)
	if err != nil {
		t.Fatal(err)
	}
	if s := mustSnapshot(t, again, "shop", nil, content(2, 3)); s.Number != 2 {
		t.Errorf("the next snapshot is %s", s.Tag)
	}
}

// TestLocalFilesArePrivate: nobody else reads what a host remembers and caches.
func TestLocalFilesArePrivate(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	s := mustSnapshot(t, b.Host("main"), "shop", nil, content(1, 20))
	mustHold(t, b.Host("other"), s, content(1, 20))
	for _, name := range []string{"main", "other"} {
		o := b.Options(name)
		for _, dir := range []string{o.StateDir, o.CacheDir} {
			n := 0
			err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
				if err != nil {
					return err
				}
				st, err := d.Info()
				if err == nil && st.Mode().Perm()&0o077 != 0 {
					t.Errorf("%s has mode %v", p, st.Mode())
				}
				n++
				return err
			})
			if err != nil || n < 3 {
				t.Errorf("%s: %d files, %v", dir, n, err)
			}
		}
	}
}

// TestTagServesAnOlderRecord: a numbered tag that names what another number
// named is no record, for a host that knows the repository and for one that
// does not; the tag is told by name.
func TestTagServesAnOlderRecord(t *testing.T) {
	t.Parallel()
	for _, class := range []string{"key.", "host.", "e.shop.", "w.shop.", "s.shop."} {
		t.Run(class, func(t *testing.T) {
			t.Parallel()
			b := history(t)
			old, err := b.Store.ResolveTag(t.Context(), class+"1")
			if err != nil {
				t.Fatal(err)
			}
			kit := b.Options("fresh")
			kit.Expect = &repo.Expected{Repo: b.Host("main").ID(), Fingerprint: b.Host("main").Fingerprint()}
			b.Store.MoveTag(class+"2", old)
			for who, o := range map[string]repo.OpenOptions{"known": b.Options("main"), "fresh": kit} {
				r, err := open(t, b.Store, o)
				if class == "key." {
					if who == "known" && (!errors.Is(err, dr.ErrTampered) || !strings.Contains(err.Error(), "older state")) {
						t.Errorf("%s: %v", who, err)
					}
					continue // with the kit of the first day nothing is wrong with key.1
				}
				if err != nil {
					t.Fatal(err)
				}
				problems, err := r.Check(t.Context())
				named := slices.ContainsFunc(problems, func(p repo.Problem) bool {
					return p.Tag == class+"2" && errors.Is(p.Err, dr.ErrTampered)
				})
				if !named && (err == nil || !strings.Contains(err.Error(), class)) {
					t.Errorf("%s: problems %v, %v", who, problems, err)
				}
			}
		})
	}
}
