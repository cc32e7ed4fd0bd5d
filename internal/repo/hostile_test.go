package repo_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"lifeboat/internal/dr"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/repotest"
	"lifeboat/internal/store"
	"lifeboat/internal/store/faults"
)

func blobBytes(t testing.TB, st store.Store, d digest.Digest, size int64) []byte {
	t.Helper()
	r, err := st.GetBlob(t.Context(), d, size, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func manifestOf(t testing.TB, st store.Store, ref string) ocispec.Manifest {
	t.Helper()
	m, err := st.GetManifest(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	var out ocispec.Manifest
	if err := json.Unmarshal(m.Body, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// Invariant 10: whatever is altered in a pack or an index is noticed by reading,
// by check where it is structure, and by verify always; the error names the
// blob and the snapshot.
func TestDamagedBlobsAreNoticed(t *testing.T) {
	t.Parallel()
	units := content(21, 60)
	for _, tc := range []struct {
		name  string
		layer int // 0 is the index
		spoil func(b, other []byte) []byte
		drop  bool
		check bool // Check notices, too
	}{
		{name: "pack bit flipped", layer: 1, spoil: flip(1000)},
		{name: "pack header flipped", layer: 1, spoil: flip(20)},
		{name: "pack cut off", layer: 1, spoil: func(b, _ []byte) []byte { return b[:len(b)/2] }, check: true},
		{name: "pack replaced by another", layer: 1, spoil: func(_, o []byte) []byte { return o }, check: true},
		{name: "pack lost", layer: 1, drop: true, check: true},
		{name: "index bit flipped", layer: 0, spoil: flip(100), check: true},
		{name: "index cut off", layer: 0, spoil: func(b, _ []byte) []byte { return b[:len(b)-20] }, check: true},
		{name: "index replaced by another", layer: 0, spoil: func(_, o []byte) []byte { return o }, check: true},
		{name: "index lost", layer: 0, drop: true, check: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := repotest.NewBed(t)
			main := b.Host("main")
			s := mustSnapshot(t, main, "shop", nil, units)
			o := mustSnapshot(t, main, "blog", nil, content(22, 50))
			l := manifestOf(t, b.Store, s.Needs[0].String()).Layers[tc.layer]
			ol := manifestOf(t, b.Store, o.Needs[0].String()).Layers[tc.layer]
			if tc.drop {
				b.Store.Drop(l.Digest)
			} else {
				b.Store.Corrupt(l.Digest, tc.spoil(blobBytes(t, b.Store, l.Digest, l.Size), blobBytes(t, b.Store, ol.Digest, ol.Size)))
			}
			fresh := b.Host("fresh") // without index cache
			_, err := readAll(t.Context(), fresh, s)
			if tc.name != "pack header flipped" { // which a read of groups does not need
				if !errors.Is(err, dr.ErrTampered) && !errors.Is(err, store.ErrNotFound) {
					t.Errorf("read: %v", err)
				} else if !strings.Contains(err.Error(), s.ID.Short()) {
					t.Errorf("the error does not name the snapshot: %v", err)
				}
			}
			problems, err := fresh.Verify(t.Context(), nil)
			if err != nil || !names(problems, s.ID, l.Digest) {
				t.Errorf("verify: %v, %v", problems, err)
			}
			for _, p := range problems {
				if p.Snapshot == o.ID {
					t.Errorf("the other snapshot is whole, yet %v", p)
				}
			}
			if tc.check {
				if problems, err = b.Host("checker").Check(t.Context()); err != nil || len(problems) == 0 {
					t.Errorf("check: %v, %v", problems, err)
				}
			}
			mustHold(t, fresh, o, content(22, 50))
			// What was found lost is sent again by the next snapshot.
			if _, err := fresh.NewWriter(t.Context(), repo.WriterOptions{System: "shop", Parent: s}); !errors.Is(err, repo.ErrParentDamaged) {
				t.Errorf("building on a damaged snapshot: %v", err)
			}
			healed, _, err := snapshot(t.Context(), fresh, repo.WriterOptions{System: "shop"}, "main", units)
			if err != nil {
				t.Fatal(err)
			}
			mustHold(t, b.Host("third"), healed, units)
		})
	}
}

// flipFrom flips a bit, also in a file that an earlier damage has shortened.
func flipFrom(at int) func([]byte) []byte {
	return func(b []byte) []byte {
		if at < len(b) {
			b[at] ^= 1
		}
		return b
	}
}

func flip(at int) func(b, _ []byte) []byte {
	return func(b, _ []byte) []byte {
		b = bytes.Clone(b)
		b[at] ^= 1
		return b
	}
}

// names reports whether a problem names the snapshot and the blob.
func names(ps []repo.Problem, id dr.SnapshotID, d digest.Digest) bool {
	for _, p := range ps {
		if p.Snapshot == id && (p.Blob == d.String() || strings.Contains(p.String(), d.String())) {
			return true
		}
	}
	return false
}

// Garbage under tags is named and keeps nothing else from working; a number
// that somebody squats on does not make numbers jump.
func TestSquattedAndForeignTags(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	r := b.Host("main")
	units := content(31, 20)
	first := mustSnapshot(t, r, "shop", nil, units)
	other := repotest.NewBed(t)
	theirs := mustSnapshot(t, other.Host("main"), "shop", nil, units)

	put := func(tag, media string, body []byte) {
		t.Helper()
		if _, err := b.Store.PutManifest(t.Context(), tag, media, body); err != nil {
			t.Fatal(err)
		}
	}
	own, err := b.Store.GetManifest(t.Context(), first.Tag)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := other.Store.GetManifest(t.Context(), theirs.Tag)
	if err != nil {
		t.Fatal(err)
	}
	foreign.Body = bytes.ReplaceAll(foreign.Body, []byte(theirs.Needs[0]), []byte(first.Needs[0]))
	record := func(annotation string) []byte {
		m := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"artifactType":"application/vnd.lifeboat.snapshot.v1","manifests":[{"mediaType":%q,"digest":%q,"size":700}],"annotations":{"dev.lifeboat.record":%q}}`,
			ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, first.Needs[0], annotation)
		return []byte(m)
	}
	extra := mustSnapshot(t, r, "blog", nil, content(32, 3))
	more := bytes.Replace(own.Body, []byte(`"manifests":[`), fmt.Appendf(nil, `"manifests":[{"mediaType":%q,"digest":%q,"size":700},`, ocispec.MediaTypeImageManifest, extra.Needs[0]), 1)
	put("s.shop.2", ocispec.MediaTypeImageIndex, record("garbage!"))
	put("s.shop.3", ocispec.MediaTypeImageIndex, record("AAAA"))
	put("s.shop.4", ocispec.MediaTypeImageIndex, own.Body) // a replay under another number
	put("s.other.1", ocispec.MediaTypeImageIndex, own.Body)
	put("s.shop.5", ocispec.MediaTypeImageIndex, foreign.Body) // of another repository
	put("s.shop.6", ocispec.MediaTypeImageIndex, more)         // lists more than it needs
	put("s.shop.999999", ocispec.MediaTypeImageIndex, record(""))
	put("s.shop.07", ocispec.MediaTypeImageIndex, record(""))
	put("s.Shop.1", ocispec.MediaTypeImageIndex, record(""))
	config := ocispec.DescriptorEmptyJSON
	put("s.shop.7", ocispec.MediaTypeImageManifest, fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"x","digest":%q,"size":2},"layers":[]}`, ocispec.MediaTypeImageManifest, config.Digest))

	snaps, problems, err := r.Snapshots(t.Context(), "")
	if err != nil || len(snaps) != 2 {
		t.Fatalf("%d snapshots, %v", len(snaps), err)
	}
	bad := map[string]bool{}
	for _, p := range problems {
		bad[p.Tag] = true
		if !errors.Is(p.Err, dr.ErrTampered) || !strings.Contains(p.String(), p.Tag) {
			t.Errorf("problem %v", p)
		}
	}
	for _, tag := range []string{"s.shop.2", "s.shop.3", "s.shop.4", "s.other.1", "s.shop.5", "s.shop.6", "s.shop.999999", "s.shop.07", "s.Shop.1", "s.shop.7"} {
		if !bad[tag] {
			t.Errorf("%s is no problem", tag)
		}
	}
	if len(bad) != 10 {
		t.Errorf("problems %v", problems)
	}
	got, err := r.Find(t.Context(), "shop", "latest")
	if err != nil || got.Tag != "s.shop.1" {
		t.Fatalf("found %v, %v", got, err)
	}
	if _, err := r.Find(t.Context(), "shop", "#4"); !errors.Is(err, dr.ErrTampered) {
		t.Errorf("a replayed number: %v", err)
	}
	next := mustSnapshot(t, r, "shop", got, units)
	if next.Tag != "s.shop.8" {
		t.Errorf("the next snapshot is %s, want the next free number", next.Tag)
	}
}

// Proof by reading: a hostile host that holds the key publishes an index whose
// units are not what they are said to be. Who deduplicates against it stores
// its own copy (docs/adr/0002).
func TestLyingHostDoesNotPoison(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	evil, main := b.Host("evil"), b.Host("main")
	units := content(41, 50)
	w, err := evil.NewWriter(t.Context(), repo.WriterOptions{System: "evil"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	var refs []dr.UnitRef
	for i, u := range units {
		ref := dr.UnitRef{ID: evil.UnitID(u), Len: uint32(len(u))}
		lie := bytes.Clone(u)
		if i%2 == 0 {
			lie[0] ^= 1
		}
		w.PutAs(ref, lie)
		refs = append(refs, ref)
	}
	theirs, err := w.Commit(t.Context(), rootOf(refs, "main"), repo.CommitInfo{})
	if err != nil {
		t.Fatal(err)
	}
	s, st, err := snapshot(t.Context(), main, repo.WriterOptions{System: "shop"}, "main", units)
	if err != nil {
		t.Fatal(err)
	}
	if st.BytesRead == 0 {
		t.Error("nothing was read to prove the other host's units")
	}
	mustHold(t, main, s, units)
	mustHold(t, b.Host("third"), s, units)
	// Reading the liar's own snapshot is an error, not wrong bytes.
	if _, err := readAll(t.Context(), main, theirs); !errors.Is(err, dr.ErrTampered) {
		t.Errorf("reading the liar's snapshot: %v", err)
	}
	problems, err := main.Verify(t.Context(), nil)
	if err != nil || len(problems) == 0 {
		t.Fatalf("verify: %v, %v", problems, err)
	}
	for _, p := range problems {
		if p.Snapshot != theirs.ID && !slices.Contains(s.Needs, theirs.Needs[0]) {
			t.Errorf("the lie reaches further than the liar's snapshot: %v", p)
		}
	}
}

// An honest other host's units are read once and not sent; what a reader has
// read needs no reading again, also after a restart.
func TestProofByReadingHappensOnce(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	units := content(42, 80)
	theirs := mustSnapshot(t, b.Host("main"), "shop", nil, units)
	_, st, err := snapshot(t.Context(), b.Host("second"), repo.WriterOptions{System: "blog"}, "main", units)
	if err != nil || st.UnitsNew != 1 || st.BytesRead == 0 {
		t.Fatalf("first: %+v, %v", st, err)
	}
	_, st, err = snapshot(t.Context(), b.Host("second"), repo.WriterOptions{System: "wiki"}, "main", units)
	if err != nil || st.UnitsNew != 1 || st.BytesRead != 0 {
		t.Fatalf("again: %+v, %v", st, err)
	}
	third := b.Host("third")
	mustHold(t, third, theirs, units) // a restore
	w, err := b.Host("third").NewWriter(t.Context(), repo.WriterOptions{System: "shop", Parent: theirs})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	refs := make([]dr.UnitRef, len(units))
	for i, u := range units {
		refs[i] = dr.UnitRef{ID: third.UnitID(u), Len: uint32(len(u))}
	}
	if !w.HaveAll(refs) || !w.Have(refs[0].ID) {
		t.Fatal("what was restored is not relied upon")
	}
	if w.HaveAll(append(refs, dr.UnitRef{Len: 1})) || w.Have(dr.UnitID{}) {
		t.Fatal("a unit that is nowhere is relied upon")
	}
	fourth, err := b.Host("fourth").NewWriter(t.Context(), repo.WriterOptions{System: "shop", Parent: theirs})
	if err != nil {
		t.Fatal(err)
	}
	defer fourth.Close()
	if fourth.HaveAll(refs) {
		t.Fatal("what was never read is relied upon")
	}
	if ok, err := fourth.Reuse(t.Context(), refs); !ok || err != nil {
		t.Fatalf("reuse: %v, %v", ok, err)
	}
	if fourth.Stats().BytesRead == 0 || !fourth.HaveAll(refs) {
		t.Fatal("reuse did not read")
	}
}

// Taking over a snapshot of another host that lists many manifests: what has to
// be merged is read first, and what does not verify is not vouched for.
func TestMergeOfForeignManifests(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	theirs := b.Host("theirs")
	var units [][]byte
	w, err := theirs.NewWriter(t.Context(), repo.WriterOptions{System: "shop"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	var refs []dr.UnitRef
	for i := range 6 {
		more := content(uint64(i), 10)
		rs, err := putAll(t.Context(), w, more)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		refs, units = append(refs, rs...), append(units, more...)
	}
	first, err := w.Commit(t.Context(), rootOf(refs, "main"), repo.CommitInfo{})
	if err != nil {
		t.Fatal(err)
	}
	if len(first.Needs) != 7 {
		t.Fatalf("%d manifests", len(first.Needs))
	}
	take := func(host string) (*repo.Snapshot, repo.Stats, error) {
		t.Helper()
		w, err := b.Host(host).NewWriter(t.Context(), repo.WriterOptions{System: "shop", Parent: first})
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		w.SetLimits(1<<40, 1<<30, 4, 1<<40)
		// References are taken over, nothing but the root record is put.
		s, err := w.Commit(t.Context(), rootOf(refs, "stand-in"), repo.CommitInfo{})
		return s, w.Stats(), err
	}
	s, st, err := take("stand-in")
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Needs) > 4 || st.UnitsNew != 1 || st.Packs != 1 {
		t.Fatalf("%d manifests, %+v", len(s.Needs), st)
	}
	mustHold(t, b.Host("observer"), s, units)
	if problems, err := b.Host("observer").Verify(t.Context(), nil); err != nil || len(problems) != 0 {
		t.Fatalf("verify: %v, %v", problems, err)
	}
	for _, d := range first.Needs[:6] { // now all of it is damaged
		l := manifestOf(t, b.Store, d.String()).Layers[1]
		b.Store.Corrupt(l.Digest, noise(9, int(l.Size)))
	}
	if _, _, err := take("another"); !errors.Is(err, dr.ErrTampered) {
		t.Fatalf("merging what does not verify: %v", err)
	}
}

// A commit whose tag did not get through is tried again with the same writer.
func TestCommitAgain(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	st := faults.New(t, b.Store, faults.Fault{Op: faults.PutManifest, Arg: "s.shop.1", Kind: faults.Before})
	r := b.HostOn("main", st)
	w, err := r.NewWriter(t.Context(), repo.WriterOptions{System: "shop"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	units := content(1, 10)
	refs, err := putAll(t.Context(), w, units)
	if err != nil {
		t.Fatal(err)
	}
	root := rootOf(refs, "main")
	if _, err := w.Commit(t.Context(), root, repo.CommitInfo{}); !errors.Is(err, store.ErrUnreachable) {
		t.Fatalf("error %v, want ErrUnreachable", err)
	}
	s, err := w.Commit(t.Context(), root, repo.CommitInfo{})
	if err != nil || s.Tag != "s.shop.1" {
		t.Fatalf("%v, %v", s, err)
	}
	mustHold(t, r, s, units)
}

// A unit that two manifests have is read from the other when one fails.
func TestUnitIsReadFromWhereItIsWhole(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	r := b.Host("main")
	units := content(51, 20)
	first := mustSnapshot(t, r, "shop", nil, units)
	w, err := r.NewWriter(t.Context(), repo.WriterOptions{System: "shop", Parent: first})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	var refs []dr.UnitRef
	for _, u := range units {
		ref := dr.UnitRef{ID: r.UnitID(u), Len: uint32(len(u))}
		w.PutAs(ref, u) // once more
		refs = append(refs, ref)
	}
	s, err := w.Commit(t.Context(), rootOf(refs, "main"), repo.CommitInfo{})
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Needs) != 2 {
		t.Fatalf("needs %v", s.Needs)
	}
	// Damage the first manifest's packs: the root record is in the second.
	l := manifestOf(t, b.Store, first.Needs[0].String()).Layers[1]
	raw := blobBytes(t, b.Store, l.Digest, l.Size)
	for name, spoil := range map[string]func(){
		"altered": func() { b.Store.Corrupt(l.Digest, bytes.Repeat([]byte{7}, len(raw))) },
		"cut off": func() { b.Store.Corrupt(l.Digest, raw[:100]) },
		"lost":    func() { b.Store.Drop(l.Digest) },
	} {
		spoil()
		mustHold(t, b.Host(name), s, units)
		rd, err := b.Host(name).NewReader(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		for i, ref := range refs {
			if u, err := rd.Unit(t.Context(), ref); err != nil || !bytes.Equal(u, units[i]) {
				t.Fatalf("%s: unit %d: %v", name, i, err)
			}
		}
		rd.Close()
	}
}

// A damaged or missing index cache is made anew without anybody noticing.
func TestIndexCacheIsDisposable(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	units := content(61, 200)
	s := mustSnapshot(t, b.Host("main"), "shop", nil, units)
	dir := b.Options("reader").CacheDir
	mustHold(t, b.Host("reader"), s, units)
	for name, spoil := range map[string]func(b []byte) []byte{
		"empty":      func([]byte) []byte { return nil },
		"cut":        func(b []byte) []byte { return b[:len(b)/2] },
		"header":     flipFrom(40),
		"units":      flipFrom(4096 + 500),
		"every byte": func(b []byte) []byte { return bytes.Repeat([]byte{0x55}, len(b)) },
	} {
		spoilFiles(t, dir, spoil)
		mustHold(t, b.Host("reader"), s, units)
		spoilFiles(t, dir, spoil)
		if _, st, err := snapshot(t.Context(), b.Host("reader"), repo.WriterOptions{System: "shop", Parent: s}, "main", units); err != nil {
			t.Fatalf("%s: %+v, %v", name, st, err)
		}
	}
}

// Fetch ends when its context does, and gives the caller's own error back.
func TestFetchEnds(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	units := content(71, 100)
	s := mustSnapshot(t, b.Host("main"), "shop", nil, units)
	rd, err := b.Host("main").NewReader(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	root, err := rd.Root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	boom := errors.New("disk full")
	if err := rd.Fetch(t.Context(), listOf(root), func(int, []byte) error { return boom }); err != boom {
		t.Errorf("the caller's error came back as %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	hang := faults.New(t, b.Store, faults.Fault{Op: faults.GetBlob, Call: 2, Kind: faults.Hang, Do: cancel})
	slow, err := b.HostOn("slow", hang).NewReader(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	if err := slow.Fetch(ctx, listOf(root), func(int, []byte) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled fetch: %v", err)
	}
	// A pack that ends too early once is asked for again.
	short := faults.New(t, b.Store, faults.Fault{Op: faults.GetBlob, Call: 2, Kind: faults.Short, At: 100})
	mustHold(t, b.HostOn("shaky", short), s, units)
	// Bytes altered on the way are not used.
	altered := faults.New(t, b.Store, faults.Fault{Op: faults.GetBlob, Call: 2, Kind: faults.Corrupt, At: 100})
	noisy := b.HostOn("noisy", altered)
	mustHold(t, noisy, s, units)
	if n := noisy.FoundBad(); n != 0 {
		t.Errorf("%d packs are remembered as damaged that were altered on the way once", n)
	}
	// What is altered each time is remembered, once, and until it is read and sound.
	l := manifestOf(t, b.Store, s.Needs[0].String()).Layers[1]
	sound := bytes.Clone(blobBytes(t, b.Store, l.Digest, l.Size))
	b.Store.Corrupt(l.Digest, noise(4, len(sound)))
	if err := rd.Fetch(t.Context(), listOf(root), func(int, []byte) error { return nil }); !errors.Is(err, dr.ErrTampered) {
		t.Errorf("a damaged pack: %v", err)
	}
	main := b.Host("main")
	if n := main.FoundBad(); n != 1 {
		t.Errorf("%d damaged packs are remembered", n)
	}
	if x := mustCheck(t, main); !slices.ContainsFunc(x.Problems, func(p repo.Problem) bool { return p.Blob == l.Digest.String() }) {
		t.Errorf("%v", x.Problems)
	}
	b.Store.Corrupt(l.Digest, sound)
	if x := mustCheck(t, main); len(x.Problems) != 0 || main.FoundBad() != 0 {
		t.Errorf("%v, %d packs", x.Problems, main.FoundBad())
	}
}
