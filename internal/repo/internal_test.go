package repo

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"lifeboat/internal/dr"
	"lifeboat/internal/store"
)

func TestTags(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]Tag{
		"key.1": {ClassKey, "", 1, 0}, "host.12": {ClassHost, "", 12, 0}, "s.shop.7": {ClassSnapshot, "shop", 7, 0},
		"e.a-b_c.9223372036854775807": {ClassEpoch, "a-b_c", 1<<63 - 1, 0}, "w.x.3": {ClassSwitch, "x", 3, 0},
		"r.shop.7.12": {ClassRelocation, "shop", 7, 12}, "l.shop.7.1": {ClassLock, "shop", 7, 1},
	} {
		got, err := ParseTag(name)
		if err != nil || got != want || got.String() != name {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	for _, name := range []string{"", "s", "s.", "s.shop", "s.shop.", "s.shop.0", "s.shop.01", "s.shop.+1", "s.shop.1.2", "s.Shop.1", "r.shop.1", "r.shop.1.0", "r.shop.0.1", "r.shop.1.01", "r.shop.1.2.3", "l.shop.1", "key.x.1", "key.-1", "m.abc", "latest", "s.shop.9223372036854775808"} {
		if _, err := ParseTag(name); !errors.Is(err, dr.ErrTampered) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// TestForgottenIsNotSeenAnew: what one process of a host takes away another one that
// saw it before does not remember as there; what is there much later was put back.
func TestForgottenIsNotSeenAnew(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	process := func() *state {
		s := newState(base)
		if err := errors.Join(s.use(dr.RepoID{1}), s.recall()); err != nil {
			t.Fatal(err)
		}
		return s
	}
	first, second := Tag{Class: ClassSnapshot, System: "shop", Number: 1}, Tag{Class: ClassSnapshot, System: "shop", Number: 2}
	seen := func(s *state, n dr.Number) string {
		t.Helper()
		s.witness(first, digest.FromString("1"))
		s.witness(second, digest.FromString("2"))
		if err := s.raise(map[string]dr.Number{first.prefix(): n}); err != nil {
			t.Fatal(err)
		}
		m, err := s.remembered("shop")
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(slices.Sorted(maps.Keys(m.digests)))
	}
	a := process()
	if got := seen(a, 2); got != "[1 2]" {
		t.Errorf("seen: %s", got)
	}
	b := process()
	if err := process().unsee([]Tag{first}); err != nil {
		t.Fatal(err)
	}
	for n, s := range []*state{a, b, process()} {
		if got := seen(s, dr.Number(3+n)); got != "[2]" {
			t.Errorf("process %d: %s", n, got)
		}
	}
	later := process()
	later.began = later.began.Add(2 * takingAway)
	if got := seen(later, 9); got != "[1 2]" {
		t.Errorf("put back: %s", got)
	}
}

// The local state survives a restart, a second process, and its own damage.
func TestState(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	newOne := func(base string) *state {
		s := newState(base)
		if err := s.use(dr.RepoID{1}); err != nil {
			t.Fatal(err)
		}
		return s
	}
	d := digest.FromString("x")
	for _, dir := range []string{base, ""} {
		a := newOne(dir)
		b := a
		if dir != "" {
			b = newOne(dir) // another process
		}
		check := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		check(a.raise(map[string]dr.Number{"s.a.": 3}))
		check(b.raise(map[string]dr.Number{"s.a.": 2, "s.b.": 1}))
		if m, err := a.allMarks(); err != nil || m["s.a."] != 3 || m["s.b."] != 1 {
			t.Fatalf("marks %v, %v", m, err)
		}
		check(a.addPending(d, "shop"))
		if p, err := b.listPending(); err != nil || len(p) != 1 || p[d] != "shop" {
			t.Fatalf("pending %v, %v", p, err)
		}
		check(b.dropPending(d))
		check(b.dropPending(d))
		if p, err := a.listPending(); err != nil || len(p) != 0 {
			t.Fatalf("pending %v, %v", p, err)
		}
		check(a.mergeReadBits(d, 100, []uint64{5, 1}))
		check(b.mergeReadBits(d, 100, []uint64{2, 0}))
		if bits, err := a.readBits(d, 100); err != nil || bits[0] != 7 || bits[1] != 1 {
			t.Fatalf("bits %v, %v", bits, err)
		}
		if bits, err := a.readBits(d, 1000); err != nil || bits[0] != 0 {
			t.Fatalf("bits of another index %v, %v", bits, err)
		}
		check(a.setLost(d, true))
		if l, err := b.listLost(); err != nil || !l[d] {
			t.Fatalf("lost %v, %v", l, err)
		}
		check(a.setLost(d, false))
		if l, err := b.listLost(); err != nil || l[d] {
			t.Fatalf("lost %v, %v", l, err)
		}
	}
	s := newOne(base)
	bits := filepath.Join(s.dir, "read", d.Encoded())
	raw, err := os.ReadFile(bits)
	if err != nil {
		t.Fatal(err)
	}
	raw[0] ^= 8 // a bit that flips must not count a group as read
	if err := os.WriteFile(bits, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := s.readBits(d, 100); err != nil || got[0] != 0 {
		t.Fatalf("damaged bits %v, %v", got, err)
	}
	if err := os.WriteFile(filepath.Join(s.dir, "marks.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.mark("s.a."); err == nil || !strings.Contains(err.Error(), "marks.json") {
		t.Fatalf("damaged marks: %v", err)
	}
	if err := s.savePin(pin{Location: "l"}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.pinFile("l"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.loadPin("l"); err == nil || !strings.Contains(err.Error(), "fingerprint") {
		t.Fatalf("damaged pin: %v", err)
	}
}

func FuzzManifests(f *testing.F) {
	pm, err := encodePackManifest(blob{digest.FromString("i"), 10}, []blob{{digest.FromString("p"), 20}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(pm.raw)
	rec, err := encodeRecordManifest(ClassEpoch, []byte("record"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(rec)
	snap, err := encodeSnapshotIndex(ClassSnapshot, []byte("record"), []need{pm.need})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(snap)
	f.Fuzz(func(t *testing.T, body []byte) {
		if p, err := decodePackManifest(body); err == nil {
			again, err := encodePackManifest(p.index, p.packs)
			if err != nil || len(again.packs) == 0 {
				t.Fatal(err)
			}
		}
		if r, err := decodeRecordManifest(store.Manifest{MediaType: ocispec.MediaTypeImageManifest, Body: body}, ClassEpoch); err == nil && len(r) == 0 {
			t.Fatal("an empty record")
		}
		if _, needs, err := decodeSnapshotIndex(ClassSnapshot, store.Manifest{MediaType: ocispec.MediaTypeImageIndex, Body: body}); err == nil && (len(needs) == 0 || len(needs) > maxNeeds) {
			t.Fatalf("%d needs", len(needs))
		}
	})
}

func FuzzTag(f *testing.F) {
	f.Add("s.shop.1")
	f.Fuzz(func(t *testing.T, s string) {
		if tag, err := ParseTag(s); err == nil && tag.String() != s {
			t.Fatalf("%q became %q", s, tag)
		}
	})
}

// Memory that was lent to a store is not read any more once it was taken back.
func TestLentBytes(t *testing.T) {
	t.Parallel()
	l := &lentBytes{b: []byte("pack")}
	r, err := l.open()
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 2)
	if n, err := r.Read(p); n != 2 || err != nil || !bytes.Equal(p, []byte("pa")) {
		t.Fatalf("%d, %v", n, err)
	}
	l.takeBack()
	if _, err := r.Read(p); err == nil {
		t.Fatal("memory that was taken back was read")
	}
	if _, err := l.open(); err == nil {
		t.Fatal("memory that was taken back was lent")
	}
}

// What a manifest of the largest size makes of itself in memory is bounded,
// whatever stands in it. Not parallel: it counts what is allocated.
func TestManifestsAreBounded(t *testing.T) {
	fill := func(head, member, tail string) []byte {
		n := (store.MaxManifest - len(head) - len(tail)) / len(member)
		return []byte(head + strings.Repeat(member, n-1) + strings.TrimSuffix(member, ",") + tail)
	}
	image := `{"mediaType":"` + ocispec.MediaTypeImageManifest + `","artifactType":"`
	index := `{"mediaType":"` + ocispec.MediaTypeImageIndex + `","artifactType":"` + recordType(ClassSnapshot) + `",`
	for name, body := range map[string][]byte{
		"layers":             fill(image+typePacks+`","layers":[`, `{},`, `]}`),
		"manifests":          fill(index+`"manifests":[`, `{},`, `]}`),
		"annotations":        fill(image+recordType(ClassHost)+`","annotations":{`, `"":"",`, `}}`),
		"unknown member":     fill(image+typePacks+`","x":[`, `[],`, `]}`),
		"long artifact type": fill(image, `a`, `"}`),
		"deep":               []byte(strings.Repeat("[", store.MaxManifest)),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err1 := decodePackManifest(body)
		_, _, err2 := decodeSnapshotIndex(ClassSnapshot, store.Manifest{MediaType: ocispec.MediaTypeImageIndex, Body: body})
		_, err3 := decodeRecordManifest(store.Manifest{MediaType: ocispec.MediaTypeImageManifest, Body: body}, ClassHost)
		runtime.ReadMemStats(&after)
		for _, err := range []error{err1, err2, err3} {
			if !errors.Is(err, dr.ErrTampered) || len(err.Error()) > 1000 {
				t.Errorf("%s: %.300v", name, err)
			}
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 10*store.MaxManifest {
			t.Errorf("%s: %d bytes were allocated for a manifest of %d", name, n, len(body))
		}
	}
}
