package repo_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"lifeboat/internal/casetest"
	"lifeboat/internal/dr"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/repotest"
	"lifeboat/internal/store"
	"lifeboat/internal/store/faults"
	"lifeboat/internal/store/memstore"
	"lifeboat/internal/store/mirror"
)

// mirrored is a repository with something of everything in it.
type mirrored struct {
	*repotest.Bed
	held map[string][][]byte // tag of a snapshot and its units
}

func newMirrored(t *testing.T) *mirrored {
	t.Helper()
	b := repotest.NewBed(t)
	m := &mirrored{Bed: b, held: map[string][][]byte{}}
	main, standby := b.Host("main"), b.Host("standby")
	add := func(r *repo.Repo, system dr.System, parent *repo.Snapshot, epoch dr.Epoch, units [][]byte) *repo.Snapshot {
		s := snapshotIn(t, r, system, parent, epoch, units)
		m.held[s.Tag] = units
		return s
	}
	units := content(1, 30)
	one := add(main, "shop", nil, 1, units)
	putClaim(t, main, 1, nil)
	two := add(main, "shop", one, 1, append(bytes2(units), noise(7, 2000)))
	add(standby, "mail", nil, 0, append(bytes2(units[:10]), content(2, 10)...))
	if err := main.RotateKey(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	putClaim(t, b.Host("standby"), 2, two)
	add(b.Host("standby"), "shop", two, 2, append(bytes2(units), noise(8, 2000)))
	return m
}

// snapshotIn is mustSnapshot in an epoch.
func snapshotIn(t *testing.T, r *repo.Repo, system dr.System, parent *repo.Snapshot, epoch dr.Epoch, units [][]byte) *repo.Snapshot {
	t.Helper()
	w, err := r.NewWriter(t.Context(), repo.WriterOptions{System: system, Parent: parent})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	refs, err := putAll(t.Context(), w, units)
	if err != nil {
		t.Fatal(err)
	}
	root := rootOf(refs, "main")
	root.Epoch = epoch
	s, err := w.Commit(t.Context(), root, repo.CommitInfo{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// mustMirror is a run of MirrorTo without trouble.
func mustMirror(t *testing.T, r *repo.Repo, dst store.Store) *repo.MirrorResult {
	t.Helper()
	res, err := r.MirrorTo(t.Context(), dst, repo.MirrorOptions{})
	if err != nil || len(res.Problems) != 0 {
		t.Fatalf("%v, problems %v", err, res.Problems)
	}
	return res
}

func mirrorStates(res *repo.MirrorResult) map[string]repo.MirrorState {
	out := map[string]repo.MirrorState{}
	for _, row := range res.Rows {
		out[row.Tag] = row.State
	}
	return out
}

// mustMirrorAll opens dst as a host that knows the repository and reads all.
func (m *mirrored) mustHoldAll(t *testing.T, name string, dst store.Store) {
	t.Helper()
	r := m.HostOn(name, dst)
	snaps, problems, err := r.Snapshots(t.Context(), "")
	if err != nil || len(problems) != 0 || len(snaps) != len(m.held) {
		t.Fatalf("%d snapshots, %v, %v", len(snaps), problems, err)
	}
	for i := range snaps {
		mustHold(t, r, &snaps[i], m.held[snaps[i].Tag])
	}
}

func TestMirrorTo(t *testing.T) {
	t.Parallel()
	m := newMirrored(t)
	main, dst := m.Host("main"), memstore.New()
	dry, err := main.MirrorTo(t.Context(), dst, repo.MirrorOptions{DryRun: true})
	if tags, _ := dst.Tags(t.Context(), ""); err != nil || len(tags) != 0 {
		t.Fatalf("a dry run wrote %v: %v", tags, err)
	}
	res := mustMirror(t, main, dst)
	if dry.Packs != res.Packs || dry.Records != res.Records || res.Packs == 0 || res.Records != 2+2+2 {
		t.Errorf("dry run %d packs and %d records, done %d and %d", dry.Packs, dry.Records, res.Packs, res.Records)
	}
	want := map[string]repo.MirrorState{"s.shop.1": repo.MirrorCopied, "s.shop.2": repo.MirrorCopied, "s.shop.3": repo.MirrorCopied, "s.mail.1": repo.MirrorCopied}
	if diff := cmp.Diff(want, mirrorStates(res)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(tagsOf(t, m.Store), tagsOf(t, dst)); diff != "" {
		t.Errorf("not the same tags: %s", diff)
	}
	m.mustHoldAll(t, "main", dst)
	if problems, err := m.HostOn("main", dst).Verify(t.Context(), nil); err != nil || len(problems) != 0 {
		t.Fatalf("%v %v", problems, err)
	}
	head, err := m.HostOn("elsewhere", dst).Find(t.Context(), "shop", "latest")
	if err != nil || head.Tag != "s.shop.3" {
		t.Fatalf("the line goes on there: %v, %v", head, err)
	}

	// Again: nothing is sent. After a snapshot: what it added.
	if again := mustMirror(t, main, dst); again.Packs != 0 || again.Bytes != 0 || again.BytesRead != 0 || again.Records != 0 {
		t.Errorf("sent again: %+v", again)
	}
	units := append(content(1, 30), noise(9, 100_000))
	m.held["s.shop.4"] = units
	mustSnapshot(t, m.Host("standby"), "shop", head, units)
	more := mustMirror(t, main, dst)
	if more.Packs != 1 || more.Bytes > 150_000 {
		t.Errorf("an increment of 100 kB took %d packs and %d bytes", more.Packs, more.Bytes)
	}
	m.mustHoldAll(t, "main", dst)
}

// counting counts the bytes that arrive.
type counting struct {
	store.Store
	mu   sync.Mutex
	sent int64
}

func (c *counting) PutBlob(ctx context.Context, d digest.Digest, size int64, open opener) (int64, error) {
	n, err := c.Store.PutBlob(ctx, d, size, open)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sent += n
	return n, err
}

// TestMirrorInterrupted fails each call at the mirror, before and after its
// effect. Whatever is visible there is whole at that moment (invariant 1), the
// next run completes it, and no byte arrives twice.
func TestMirrorInterrupted(t *testing.T) {
	t.Parallel()
	first := newMirrored(t)
	if err := first.Host("main").Lock(t.Context(), first.find(t, "shop", "#1"), "stays"); err != nil {
		t.Fatal(err)
	}
	probe := faults.New(t, memstore.New())
	whole := &counting{Store: probe}
	mustMirror(t, first.Host("main"), whole)
	for _, m := range mirrorMishaps(t, probe.Calls()) {
		t.Run(m.String(), func(t *testing.T) {
			t.Parallel()
			b := &mirrored{Bed: first.ForkFor(t), held: first.held}
			inner := memstore.New()
			dst := &counting{Store: inner}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if _, err := b.Host("main").MirrorTo(ctx, faults.New(t, dst, m.fault(cancel)), repo.MirrorOptions{}); err == nil && m.op != faults.ResolveTag {
				t.Error("the fault was not noticed") // but a tag that is not there is not there, whatever else went wrong
			}
			visible(t, b, inner)
			mustMirror(t, b.Host("main"), dst)
			b.mustHoldAll(t, "main", inner)
			if dst.sent != whole.sent {
				t.Errorf("%d bytes arrived, %d are needed", dst.sent, whole.sent)
			}
		})
	}
}

// mirrorMishaps are those that a copy cannot but notice, or some of them.
func mirrorMishaps(t *testing.T, calls []faults.Call) []mishap {
	var all []mishap
	count := map[faults.Op]int{}
	for _, c := range calls {
		count[c.Op]++
		for _, m := range []mishap{{name: "fails before", kind: faults.Before}, {name: "fails after", kind: faults.After}, {name: "killed after", kind: faults.HangAfter}} {
			m.op, m.call = c.Op, count[c.Op]
			all = append(all, m)
		}
	}
	return casetest.Spread(t, 30, all, func(m mishap) faults.Op { return m.op })
}

// visible reads everything that a half-made mirror shows.
func visible(t *testing.T, m *mirrored, dst *memstore.Store) {
	t.Helper()
	if tags, _ := dst.Tags(t.Context(), "key.2"); len(tags) == 0 {
		return // no repository yet, or not the newest key
	}
	o := m.Options("visitor")
	o.StateDir, o.Location = "", "" // who has seen nothing before
	r, err := open(t, dst, o)
	if err != nil {
		t.Fatal(err)
	}
	snaps, problems, err := r.Snapshots(t.Context(), "")
	if err != nil || len(problems) != 0 {
		t.Fatalf("%v %v", problems, err)
	}
	for i := range snaps {
		mustHold(t, r, &snaps[i], m.held[snaps[i].Tag])
	}
	for _, sys := range []dr.System{"shop", "mail"} {
		if s, err := r.Find(t.Context(), sys, "latest"); err == nil {
			mustHold(t, r, s, m.held[s.Tag])
		} else if !errors.Is(err, dr.ErrNotFound) || strings.Contains(err.Error(), "builds on") {
			t.Errorf("the line of %s: %v", sys, err)
		}
	}
}

func TestMirrorRefuses(t *testing.T) {
	t.Parallel()
	m := newMirrored(t)
	main := m.Host("main")
	if _, err := main.MirrorTo(t.Context(), repotest.NewBed(t).Store, repo.MirrorOptions{}); !errors.Is(err, repo.ErrOtherRepository) {
		t.Errorf("another repository: %v", err)
	}
	dst := memstore.New()
	mustMirror(t, main, dst)
	if err := m.HostOn("main", dst).RotateKey(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := main.MirrorTo(t.Context(), dst, repo.MirrorOptions{}); !errors.Is(err, repo.ErrOtherRepository) {
		t.Errorf("keys changed there: %v", err)
	}
}

// TestMirrorWentItsOwnWay: what was written to the mirror on its own stays, is
// named, and keeps nothing else from being copied.
func TestMirrorWentItsOwnWay(t *testing.T) {
	t.Parallel()
	m := newMirrored(t)
	main, dst := m.Host("main"), memstore.New()
	mustMirror(t, main, dst)
	theirs := mustSnapshot(t, m.HostOn("promoted", dst), "shop", nil, content(5, 3))
	mustSnapshot(t, m.Host("standby"), "shop", nil, content(6, 3))
	mail := mustSnapshot(t, m.Host("standby"), "mail", nil, content(7, 3))
	putClaim(t, m.HostOn("promoted", dst), 3, theirs)
	putClaim(t, main, 3, nil)
	res, err := main.MirrorTo(t.Context(), dst, repo.MirrorOptions{})
	if err != nil {
		t.Fatal(err)
	}
	got := mirrorStates(res)
	if got["s.shop.4"] != repo.MirrorConflict || got[mail.Tag] != repo.MirrorCopied {
		t.Errorf("%v", got)
	}
	hosts := 0
	for _, p := range res.Problems {
		switch {
		case !errors.Is(p.Err, dr.ErrHeld):
			t.Errorf("%v", p)
		case p.Tag == "host.3":
			hosts++
		case p.Tag != "e.shop.3":
			t.Errorf("%v", p)
		}
	}
	if len(res.Problems) == hosts {
		t.Error("the two claims of epoch 3 were not noticed")
	}
	mustHold(t, m.HostOn("promoted", dst), theirs, content(5, 3))
}

// TestMirrorOfDamage: what is damaged is left out and named; the rest is copied.
func TestMirrorOfDamage(t *testing.T) {
	t.Parallel()
	m := newMirrored(t)
	dst := memstore.New()
	mustMirror(t, m.Host("main"), dst)
	s := mustSnapshot(t, m.Host("main"), "shop", nil, content(9, 3))
	good := mustSnapshot(t, m.Host("main"), "mail", nil, content(10, 3))
	raw, err := m.Store.GetManifest(t.Context(), s.Needs[len(s.Needs)-1].String())
	if err != nil {
		t.Fatal(err)
	}
	pack := layersOf(t, raw.Body)[1]
	m.Store.Corrupt(pack, bytes.Repeat([]byte{1}, blobSize(t, raw.Body, 1)))
	res, err := m.Host("main").MirrorTo(t.Context(), dst, repo.MirrorOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range res.Rows {
		switch row.Tag {
		case s.Tag:
			if row.State != repo.MirrorDamaged || !errors.Is(row.Err, dr.ErrTampered) || !strings.Contains(row.Err.Error(), pack.String()) {
				t.Errorf("damaged: %s, %v", row.State, row.Err)
			}
		case good.Tag:
			if row.State != repo.MirrorCopied {
				t.Errorf("whole: %s, %v", row.State, row.Err)
			}
		}
	}
	if _, err := dst.ResolveTag(t.Context(), s.Tag); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a damaged snapshot is visible: %v", err)
	}
}

// TestMirrorKeepsMore: what is forgotten here stays in the mirror.
func TestMirrorKeepsMore(t *testing.T) {
	t.Parallel()
	m := newMirrored(t)
	dst := memstore.New()
	mustMirror(t, m.Host("main"), dst)
	if err := m.Store.DeleteTag(t.Context(), "s.shop.1"); err != nil {
		t.Fatal(err)
	}
	if got := mirrorStates(mustMirror(t, m.Host("main"), dst)); len(got) != 3 {
		t.Errorf("%v", got)
	}
	m.mustHoldAll(t, "main", dst)
}

// over reads the repository from its own registry and a mirror.
func (m *mirrored) over(primary store.Store, notice func(string), mirrors ...store.Store) *mirror.Store {
	list := []mirror.Copy{{Name: "first", Store: primary}}
	for i, s := range mirrors {
		list = append(list, mirror.Copy{Name: fmt.Sprintf("mirror %d", i+1), Store: s})
	}
	return mirror.New(primary, list, mirror.Options{Notice: notice, Rest: time.Hour})
}

// TestReadThroughMirrors: with blobs lost, damaged and altered at the primary and
// others at the first mirror, every snapshot reads back.
func TestReadThroughMirrors(t *testing.T) {
	t.Parallel()
	m := newMirrored(t)
	one, two := memstore.New(), memstore.New()
	mustMirror(t, m.Host("main"), one)
	mustMirror(t, m.Host("main"), two)
	var blobs []digest.Digest
	var sizes []int
	for tag := range tagsOf(t, m.Store) {
		if !strings.HasPrefix(tag, "m.") {
			continue
		}
		raw, err := m.Store.GetManifest(t.Context(), tag)
		if err != nil {
			t.Fatal(err)
		}
		for i, d := range layersOf(t, raw.Body) {
			blobs, sizes = append(blobs, d), append(sizes, blobSize(t, raw.Body, i))
		}
	}
	for i, d := range blobs { // packs and indexes alike
		switch i % 3 {
		case 0:
			m.Store.Drop(d)
			one.Corrupt(d, noise(uint64(i), sizes[i]))
		case 1:
			m.Store.Corrupt(d, noise(uint64(i), sizes[i]))
			one.Drop(d)
		case 2:
			m.Store.Corrupt(d, noise(uint64(i), sizes[i]-1))
		}
	}
	var mu sync.Mutex
	var told []string
	st := m.over(m.Store, func(s string) { mu.Lock(); told = append(told, s); mu.Unlock() }, one, two)
	m.mustHoldAll(t, "fresh", st)
	if text := strings.Join(told, "\n"); !strings.Contains(text, "damaged") || !strings.Contains(text, "lacks") {
		t.Errorf("told:\n%s", text)
	}
	// Unit by unit, too.
	r := m.HostOn("fresh2", st)
	s, err := r.Find(t.Context(), "shop", "#1")
	if err != nil {
		t.Fatal(err)
	}
	rd, err := r.NewReader(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	root, err := rd.Root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, ref := range listOf(root) {
		if data, err := rd.Unit(t.Context(), ref); err != nil || !bytes.Equal(data, m.held[s.Tag][i]) {
			t.Fatalf("unit %d: %v", i, err)
		}
	}
}

// TestPrimaryDown: with the primary out of reach everything is read from the
// mirror; one that is behind is told, not taken for an attack; nothing can be
// written, so nothing is claimed on an old state.
func TestPrimaryDown(t *testing.T) {
	t.Parallel()
	m := newMirrored(t)
	dst := memstore.New()
	main := m.Host("main")
	mustMirror(t, main, dst)
	newest := snapshotIn(t, m.Host("standby"), "shop", nil, 2, content(20, 4)) // the mirror lacks it
	if err := main.RotateKey(t.Context(), nil); err != nil {                   // and this
		t.Fatal(err)
	}
	if _, err := main.Find(t.Context(), "shop", "latest"); err != nil {
		t.Fatal(err)
	}
	var told []string
	o := m.Options("main")
	o.Notice = func(s string) { told = append(told, s) }
	st := m.over(down{m.Store}, nil, dst)
	r, err := open(t, st, o)
	if err != nil {
		t.Fatal(err)
	}
	head, err := r.Find(t.Context(), "shop", "latest")
	if err != nil || head.Tag != "s.shop.3" {
		t.Fatalf("%v %v", head, err)
	}
	mustHold(t, r, head, m.held["s.shop.3"])
	if text := strings.Join(told, "\n"); !strings.Contains(text, "behind") {
		t.Errorf("told %q", text)
	}
	if _, problems, err := r.Snapshots(t.Context(), ""); err != nil || len(problems) != 0 {
		t.Errorf("%v %v", problems, err)
	}
	if err := r.PutRecord(t.Context(), "e.shop.3", map[string]any{"system": "shop", "epoch": 3, "host": r.HostID()}); !errors.Is(err, store.ErrUnreachable) {
		t.Errorf("claim: %v", err)
	}
	if _, err := r.NewWriter(t.Context(), repo.WriterOptions{System: "shop"}); err == nil {
		if _, _, err := snapshot(t.Context(), r, repo.WriterOptions{System: "shop"}, "main", content(1, 3)); !errors.Is(err, store.ErrUnreachable) {
			t.Errorf("snapshot: %v", err)
		}
	}
	// The marks are as they were: the mirror alone is an older state, and so it is
	// told, with how old.
	o.Notice = nil
	if alone, err := open(t, dst, o); err == nil {
		if _, err := alone.Find(t.Context(), "shop", "latest"); !errors.Is(err, dr.ErrTampered) || !strings.Contains(err.Error(), "number 3") || !strings.Contains(err.Error(), fmt.Sprint("number ", newest.Number)) {
			t.Errorf("the mirror alone: %v", err)
		}
	} else if !errors.Is(err, dr.ErrTampered) {
		t.Error(err)
	}
	// With the primary back everything is as before.
	if s, err := m.HostOn("main", m.over(m.Store, nil, dst)).Find(t.Context(), "shop", "latest"); err != nil || s.Tag != newest.Tag {
		t.Errorf("%v %v", s, err)
	}
}

// down is a registry that does not answer.
type down struct{ store.Store }

func (down) Tags(context.Context, string) ([]string, error) { return nil, store.ErrUnreachable }
func (down) ResolveTag(context.Context, string) (digest.Digest, error) {
	return "", store.ErrUnreachable
}

func (down) GetManifest(context.Context, string) (store.Manifest, error) {
	return store.Manifest{}, store.ErrUnreachable
}

func (down) PutManifest(context.Context, string, string, []byte) (digest.Digest, error) {
	return "", store.ErrUnreachable
}

func (down) PutBlob(context.Context, digest.Digest, int64, opener) (int64, error) {
	return 0, store.ErrUnreachable
}

// TestWriterTrustsThePrimaryAlone: what only a mirror has is no reason not to
// send a unit, and no snapshot rests on it (invariant 1).
func TestWriterTrustsThePrimaryAlone(t *testing.T) {
	t.Parallel()
	m := newMirrored(t)
	dst := memstore.New()
	mustMirror(t, m.Host("main"), dst)
	units := m.held["s.mail.1"]
	mail, err := m.Host("third").Find(t.Context(), "mail", "latest")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range mail.Needs { // the standby's packs are gone at the primary
		raw, err := m.Store.GetManifest(t.Context(), d.String())
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range layersOf(t, raw.Body)[1:] {
			m.Store.Drop(b)
		}
	}
	r := m.HostOn("third", m.over(m.Store, nil, dst))
	mustHold(t, r, mail, units) // reads all of it through the mirror
	s, _, err := snapshot(t.Context(), r, repo.WriterOptions{System: "copy"}, "main", units)
	if err != nil {
		t.Fatal(err)
	}
	mustHold(t, m.Host("alone"), s, units) // the primary has it

	for _, d := range mail.Needs { // now the manifests as well
		m.Store.Vanish(d)
	}
	if s, _, err := snapshot(t.Context(), m.HostOn("standby", m.over(m.Store, nil, dst)), repo.WriterOptions{System: "mail", Parent: mail}, "main", units); err == nil {
		mustHold(t, m.Host("alone"), s, units)
	} else if !errors.Is(err, repo.ErrParentDamaged) {
		t.Errorf("%v", err)
	}
}

// TestMirrorAfterForgetAndCollect: keys that rotated, a mirror that is completed while
// gc ran at either side.
func TestMirrorAfterForgetAndCollect(t *testing.T) {
	t.Parallel()
	m := newMirrored(t)
	dst := memstore.New()
	main := m.Host("main")
	mustMirror(t, main, dst)
	if err := m.Store.DeleteTag(t.Context(), "s.shop.1"); err != nil {
		t.Fatal(err)
	}
	for _, st := range []*memstore.Store{m.Store, dst} {
		r := m.HostOn("main", st)
		for range 2 {
			if _, err := r.Collect(t.Context(), repo.CollectOptions{Grace: -1}); err != nil {
				t.Fatal(err)
			}
		}
		st.Collect()
	}
	if err := main.RotateKey(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	units := content(30, 5)
	s := mustSnapshot(t, main, "shop", nil, units)
	m.held[s.Tag] = units
	res := mustMirror(t, main, dst)
	if res.Records != 1 {
		t.Errorf("%d records, want the new key record", res.Records)
	}
	m.mustHoldAll(t, "main", dst)
	delete(m.held, "s.shop.1")
	m.mustHoldAll(t, "main", m.Store)
	if mirrorStates(res)[s.Tag] != repo.MirrorCopied {
		t.Error("the newest is not copied")
	}
}
