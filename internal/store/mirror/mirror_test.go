package mirror_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"lifeboat/internal/store"
	"lifeboat/internal/store/faults"
	"lifeboat/internal/store/memstore"
	"lifeboat/internal/store/mirror"
	"lifeboat/internal/store/storetest"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(*testing.T) store.Store {
		primary := memstore.New()
		return mirror.New(primary, []mirror.Copy{{Name: "a", Store: primary}, {Name: "b", Store: memstore.New()}}, mirror.Options{})
	})
}

// clock is moved by hand.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// notices gathers what the operator is told.
type notices struct {
	mu   sync.Mutex
	list []string
}

func (n *notices) add(s string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.list = append(n.list, s)
}

func (n *notices) text() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return strings.Join(n.list, "\n")
}

// pair is a primary and a mirror that hold the same blob.
type pair struct {
	a, b   *memstore.Store
	blob   []byte
	d      digest.Digest
	clock  *clock
	told   *notices
	copies *mirror.Store
}

func newPair(t *testing.T, faultsA, faultsB []faults.Fault) (*pair, *faults.Store, *faults.Store) {
	t.Helper()
	p := &pair{a: memstore.New(), b: memstore.New(), blob: storetest.Random(100_000), clock: &clock{t: time.Unix(1000, 0)}, told: &notices{}}
	storetest.PutBytes(t, p.a, "x", p.blob)
	p.d = storetest.PutBytes(t, p.b, "x", p.blob).Digest
	fa, fb := faults.New(t, p.a, faultsA...), faults.New(t, p.b, faultsB...)
	p.copies = mirror.New(p.a, []mirror.Copy{{Name: "a", Store: fa}, {Name: "b", Store: fb}}, mirror.Options{Notice: p.told.add, Now: p.clock.now, Rest: time.Minute})
	return p, fa, fb
}

func (p *pair) read(t *testing.T, off, length int64) ([]byte, error) {
	t.Helper()
	r, err := p.copies.GetBlob(t.Context(), p.d, int64(len(p.blob)), off, length)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(r)
	return b, errors.Join(err, r.Close())
}

func count(s *faults.Store, op faults.Op) int {
	n := 0
	for _, c := range s.Calls() {
		if c.Op == op {
			n++
		}
	}
	return n
}

// TestBlobFromTheNext: whatever goes wrong at the primary, the bytes come.
func TestBlobFromTheNext(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		fault faults.Fault
	}{
		{"out of reach", faults.Fault{Op: faults.GetBlob}},
		{"gone", faults.Fault{Op: faults.GetBlob, Err: store.ErrNotFound}},
		{"wrong size", faults.Fault{Op: faults.GetBlob, Err: store.ErrDigestMismatch}},
		{"login refused", faults.Fault{Op: faults.GetBlob, Err: store.ErrUnauthorized}},
		{"cut off at once", faults.Fault{Op: faults.GetBlob, Kind: faults.Short, At: 0}},
		{"cut off half way", faults.Fault{Op: faults.GetBlob, Kind: faults.Short, At: 30_000}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p, _, fb := newPair(t, []faults.Fault{c.fault}, nil)
			got, err := p.read(t, 1000, 90_000)
			if err != nil || !bytes.Equal(got, p.blob[1000:91_000]) {
				t.Fatalf("read %d bytes: %v", len(got), err)
			}
			if n := count(fb, faults.GetBlob); n != 1 {
				t.Errorf("the mirror was asked %d times", n)
			}
			if p.told.text() == "" {
				t.Error("the operator was not told")
			}
		})
	}
}

// TestDeadOneRests: a registry that is out of reach is asked once, not for each
// blob; after its rest it is asked again, and resting doubles.
func TestDeadOneRests(t *testing.T) {
	t.Parallel()
	p, fa, _ := newPair(t, []faults.Fault{{Op: faults.GetBlob, Call: 1}, {Op: faults.GetBlob, Call: 2}}, nil)
	read := func(times, asked int) {
		t.Helper()
		for range times {
			if _, err := p.read(t, 0, -1); err != nil {
				t.Fatal(err)
			}
		}
		if n := count(fa, faults.GetBlob); n != asked {
			t.Fatalf("the primary was asked %d times, want %d", n, asked)
		}
	}
	read(5, 1)
	p.clock.add(59 * time.Second)
	read(2, 1)
	p.clock.add(time.Second)
	read(2, 2) // fails again: rests two minutes
	p.clock.add(119 * time.Second)
	read(2, 2)
	p.clock.add(time.Second)
	read(2, 4) // answers
	if n := strings.Count(p.told.text(), "does not answer"); n != 1 {
		t.Errorf("told %d times:\n%s", n, p.told.text())
	}
	if !strings.Contains(p.told.text(), "registry a answers again") {
		t.Errorf("told:\n%s", p.told.text())
	}
}

// TestAllDown: the primary's failure counts, the others' are told.
func TestAllDown(t *testing.T) {
	t.Parallel()
	p, _, _ := newPair(t, []faults.Fault{{Op: faults.GetBlob}}, []faults.Fault{{Op: faults.GetBlob, Err: store.ErrNotFound}})
	_, err := p.read(t, 0, -1)
	if !errors.Is(err, store.ErrUnreachable) || errors.Is(err, store.ErrNotFound) || !strings.Contains(err.Error(), "; b: ") {
		t.Fatalf("%v", err)
	}
	// Everybody rests: they are asked all the same.
	if _, err := p.read(t, 0, -1); err != nil {
		t.Fatal(err)
	}
}

// TestDoubt: bytes that do not authenticate are read elsewhere, this blob
// and no other.
func TestDoubt(t *testing.T) {
	t.Parallel()
	p, fa, fb := newPair(t, nil, nil)
	bad := bytes.Clone(p.blob)
	bad[5] ^= 1
	p.a.Corrupt(p.d, bad)
	other := storetest.Random(10)
	od := storetest.PutBytes(t, p.a, "x", other).Digest
	open := func(d digest.Digest, n int) ([]byte, io.ReadCloser) {
		t.Helper()
		r, err := p.copies.GetBlob(t.Context(), d, int64(n), 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		return b, r
	}
	got, r := open(p.d, len(p.blob))
	if !bytes.Equal(got, bad) || store.Elsewhere(r) {
		t.Fatal("the primary is asked first")
	}
	if !store.Doubt(r) {
		t.Fatal("there is another copy")
	}
	got, r = open(p.d, len(p.blob))
	if !bytes.Equal(got, p.blob) || !store.Elsewhere(r) {
		t.Fatal("the mirror is asked now")
	}
	if n := count(fa, faults.GetBlob); n != 1 {
		t.Errorf("the primary was asked %d times", n)
	}
	if store.Doubt(r) {
		t.Error("no copy is left to ask")
	}
	if _, r = open(od, len(other)); store.Elsewhere(r) || count(fb, faults.GetBlob) != 1 {
		t.Error("another blob is asked of the primary")
	}
	if !strings.Contains(p.told.text(), "damaged bytes") {
		t.Errorf("told:\n%s", p.told.text())
	}
}

// TestDoubtOfTwoHalves: of a blob that came from two registries the second is
// asked for all of it.
func TestDoubtOfTwoHalves(t *testing.T) {
	t.Parallel()
	p, _, _ := newPair(t, []faults.Fault{{Op: faults.GetBlob, Kind: faults.Short, At: 30_000}}, nil)
	bad := bytes.Clone(p.blob)
	bad[5] ^= 1
	p.a.Corrupt(p.d, bad)
	r, err := p.copies.GetBlob(t.Context(), p.d, int64(len(p.blob)), 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || bytes.Equal(got, p.blob) {
		t.Fatalf("want the damaged first half: %v", err)
	}
	if !store.Doubt(r) {
		t.Fatal("the mirror alone was not tried")
	}
	if got, err := p.read(t, 0, -1); err != nil || !bytes.Equal(got, p.blob) {
		t.Fatalf("read again: %v", err)
	}
}

func putTag(t *testing.T, s *memstore.Store, tag, note string) digest.Digest {
	t.Helper()
	d, err := s.PutManifest(t.Context(), tag, ocispec.MediaTypeImageManifest, storetest.ManifestOf(t, s, note))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestNewestOfAll: tags are those of all registries; where they disagree the
// primary counts.
func TestNewestOfAll(t *testing.T) {
	t.Parallel()
	p, _, _ := newPair(t, nil, nil)
	putTag(t, p.a, "s.shop.1", "1")
	putTag(t, p.b, "s.shop.1", "1")
	two := putTag(t, p.b, "s.shop.2", "2")
	mine := putTag(t, p.a, "s.shop.3", "primary's")
	putTag(t, p.b, "s.shop.3", "mirror's")
	tags, err := p.copies.Tags(t.Context(), "s.shop.")
	if diff := cmp.Diff([]string{"s.shop.1", "s.shop.2", "s.shop.3"}, tags); diff != "" || err != nil {
		t.Fatalf("%v %s", err, diff)
	}
	if d, err := p.copies.ResolveTag(t.Context(), "s.shop.2"); d != two || err != nil {
		t.Errorf("only at the mirror: %v, %v", d, err)
	}
	if d, err := p.copies.ResolveTag(t.Context(), "s.shop.3"); d != mine || err != nil {
		t.Errorf("at both: %v, %v", d, err)
	}
	if m, err := p.copies.GetManifest(t.Context(), two.String()); err != nil || m.Digest != two {
		t.Errorf("by digest: %v", err)
	}
	if _, err := p.copies.ResolveTag(t.Context(), "s.shop.4"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("at none: %v", err)
	}
	if p.copies.Lagging() {
		t.Error("the primary answered")
	}
}

// TestLagging: without the primary what is shown may be old, and an absence is
// none.
func TestLagging(t *testing.T) {
	t.Parallel()
	p, _, _ := newPair(t, []faults.Fault{{Op: faults.Tags}}, nil)
	putTag(t, p.b, "s.shop.1", "1")
	tags, err := p.copies.Tags(t.Context(), "")
	if !slices.Equal(tags, []string{"s.shop.1"}) || err != nil {
		t.Fatalf("%v %v", tags, err)
	}
	if !store.Lagging(p.copies) {
		t.Error("the primary did not answer")
	}
	if _, err := p.copies.ResolveTag(t.Context(), "s.shop.2"); !errors.Is(err, store.ErrUnreachable) || errors.Is(err, store.ErrNotFound) {
		t.Errorf("a tag that the mirror lacks: %v", err)
	}
	p.clock.add(time.Hour)
	if _, err := p.copies.Tags(t.Context(), ""); err != nil || store.Lagging(p.copies) {
		t.Errorf("the primary answers again: %v", err)
	}
}

// TestWritesGoToThePrimary also where it rests.
func TestWritesGoToThePrimary(t *testing.T) {
	t.Parallel()
	p, fa, fb := newPair(t, []faults.Fault{{Op: faults.Tags}}, nil)
	if _, err := p.copies.Tags(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	d := storetest.PutBytes(t, p.copies, "x", []byte("new")).Digest
	if ok, err := p.a.HasBlob(t.Context(), d); !ok || err != nil {
		t.Errorf("primary: %v %v", ok, err)
	}
	if ok, _ := p.b.HasBlob(t.Context(), d); ok {
		t.Error("the mirror was written to")
	}
	if ok, err := p.copies.HasBlob(t.Context(), d); !ok || err != nil {
		t.Errorf("has: %v %v", ok, err)
	}
	if n := count(fa, faults.PutBlob) + count(fb, faults.PutBlob) + count(fb, faults.HasBlob); n != 0 {
		t.Errorf("%d calls went to what is read from", n)
	}
}

// TestCapabilitiesOfADeadPrimary: one that does not answer at all is given up
// after the patience.
func TestCapabilitiesOfADeadPrimary(t *testing.T) {
	t.Parallel()
	a := faults.New(t, memstore.New(), faults.Fault{Op: faults.Capabilities, Kind: faults.Hang})
	s := mirror.New(a, []mirror.Copy{{Name: "a", Store: a}, {Name: "b", Store: memstore.New()}}, mirror.Options{Patience: time.Millisecond})
	if _, err := s.Capabilities(t.Context()); err != nil || !s.Lagging() {
		t.Errorf("lagging %v: %v", s.Lagging(), err)
	}
}

func TestCancelled(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	p, fa, fb := newPair(t, []faults.Fault{{Op: faults.GetBlob, Kind: faults.Hang, Do: cancel}}, nil)
	if _, err := p.copies.GetBlob(ctx, p.d, int64(len(p.blob)), 0, -1); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if n := count(fb, faults.GetBlob); n != 0 || count(fa, faults.GetBlob) != 1 {
		t.Errorf("the mirror was asked %d times for a read that was given up", n)
	}
	if p.told.text() != "" {
		t.Errorf("told: %s", p.told.text())
	}
}
