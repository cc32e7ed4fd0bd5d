package repo_test

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/readlog"
	"lifeboat/internal/repo/repotest"
	"lifeboat/internal/store/memstore"
)

// ward is a small repository to be damaged: three snapshots of shop by one host,
// one of blog by another, and what their files hold. copy is an exact copy of its
// registry from before.
type ward struct {
	t     testing.TB
	bed   *repotest.Bed
	copy  *memstore.Store
	snaps map[string]*repo.Snapshot // by tag
	files map[string][]file
	known bool // only the host "main" is used
}

// host opens the repository as a host of that name.
func (w *ward) host(name string) *repo.Repo {
	w.t.Helper()
	if w.known {
		name = "main"
	}
	return w.bed.Host(name)
}

func newWard(t testing.TB) *ward {
	t.Helper()
	w := &ward{t: t, bed: repotest.NewBed(t), snaps: map[string]*repo.Snapshot{}, files: map[string][]file{}}
	unit := func(n uint64) [][]byte { return [][]byte{noise(n, 600<<10+int(n)*1000)} }
	take := func(host string, system dr.System, parent *repo.Snapshot, files ...file) *repo.Snapshot {
		s := treeSnapshot(t, w.bed.Host(host), system, parent, files...)
		w.snaps[s.Tag], w.files[s.Tag] = s, files
		return s
	}
	a, b, c, d := file{"a", unit(1)}, file{"b", unit(2)}, file{"c", unit(3)}, file{"d", [][]byte{noise(4, 100), noise(5, 2000)}}
	first := take("main", "shop", nil, a, b)
	second := take("main", "shop", first, a, b, c)
	take("main", "shop", second, b, c, d)
	take("second", "blog", nil, d, file{"x", unit(6)})
	w.copy = w.bed.Store.Clone()
	return w
}

// fork is the same ward anew.
func (w *ward) fork(t testing.TB) *ward {
	f := *w
	f.t, f.bed, f.copy = t, w.bed.ForkFor(t), w.copy.Clone()
	f.snaps, f.files = maps.Clone(w.snaps), maps.Clone(w.files)
	return &f
}

// layer is a layer of the manifest of which a snapshot is the first to need it:
// 0 is the index.
func (w *ward) layer(tag string, n int) ocispec.Descriptor {
	w.t.Helper()
	return manifestOf(w.t, w.bed.Store, w.own(tag).String()).Layers[n]
}

// own is that manifest.
func (w *ward) own(tag string) digest.Digest {
	w.t.Helper()
	older := map[digest.Digest]bool{}
	for have, s := range w.snaps {
		if have < tag && strings.HasPrefix(have, "s.shop") {
			for _, d := range s.Needs {
				older[d] = true
			}
		}
	}
	for _, d := range w.snaps[tag].Needs {
		if !older[d] {
			return d
		}
	}
	w.t.Fatalf("%s has no manifest of its own", tag)
	return ""
}

func (w *ward) spoil(l ocispec.Descriptor, fn func([]byte) []byte) {
	w.t.Helper()
	w.bed.Store.Corrupt(l.Digest, fn(bytes.Clone(blobBytes(w.t, w.bed.Store, l.Digest, l.Size))))
}

func (w *ward) spoilManifest(ref string) digest.Digest {
	w.t.Helper()
	m, err := w.bed.Store.GetManifest(w.t.Context(), ref)
	if err != nil {
		w.t.Fatal(err)
	}
	w.bed.Store.CorruptManifest(m.Digest, flipFrom(60)(m.Body))
	return m.Digest
}

// tagTo lets a tag name what another tag of a store names.
func (w *ward) tagTo(tag string, from *memstore.Store, other string) {
	w.t.Helper()
	m, err := from.GetManifest(w.t.Context(), other)
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.bed.Store.PutManifest(w.t.Context(), "aside", m.MediaType, m.Body); err != nil {
		w.t.Fatal(err)
	}
	w.bed.Store.MoveTag(tag, m.Digest)
	if err := w.bed.Store.DeleteTag(w.t.Context(), "aside"); err != nil {
		w.t.Fatal(err)
	}
}

// holds reads a snapshot in full, as its catalog says, and compares each file; it
// returns the files that cannot be read.
func (w *ward) holds(r *repo.Repo, tag string) (bad []string) {
	w.t.Helper()
	want := w.snaps[tag]
	s, err := r.Find(w.t.Context(), want.System, want.ID.String())
	if err != nil {
		return []string{err.Error()}
	}
	rd, err := r.NewReader(w.t.Context(), s)
	if err != nil {
		return []string{err.Error()}
	}
	defer rd.Close()
	root, err := rd.Root(w.t.Context())
	if err != nil {
		return []string{err.Error()}
	}
	cat, err := catalog.Open(w.t.Context(), rd, root.Trees[0].Catalog)
	if err != nil {
		return []string{err.Error()}
	}
	for _, f := range w.files[tag] {
		e, err := cat.Lookup(w.t.Context(), f.path)
		var have []byte
		for _, ref := range e.Refs {
			u, uerr := rd.Unit(w.t.Context(), ref.Unit())
			if uerr != nil {
				err = uerr
			}
			have = append(have, u...)
		}
		if err != nil || !bytes.Equal(have, bytes.Join(f.units, nil)) {
			bad = append(bad, f.path)
		}
	}
	return bad
}

// losses are told as "s.shop.2 volume:data /c", sorted.
func losses(t testing.TB, x *repo.Examination) []string {
	t.Helper()
	var out []string
	err := x.Losses(t.Context(), func(s *repo.Snapshot, l repo.Loss) error {
		switch l.Kind {
		case repo.LossFile:
			out = append(out, fmt.Sprintf("%s %s /%s", s.Tag, l.Object, l.Path))
		default:
			out = append(out, fmt.Sprintf("%s %s", s.Tag, l.Kind))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return out
}

func problemText(ps []repo.Problem) string {
	var b strings.Builder
	for _, p := range ps {
		fmt.Fprintln(&b, p)
	}
	return b.String()
}

// damaged is a row of the table of damages.
type damaged struct {
	name string
	// do damages, and returns what problems must name.
	do func(w *ward) []string
	// check: the quick look sees it; else only reading does.
	check bool
	// lost is what is told as lost; files by their path where it is known which.
	lost []string
	// foreign: it harms nothing.
	foreign bool
	// stays: no copy heals it, because there is nothing to heal.
	stays bool
	// known: who has not seen the repository before does not open it.
	known bool
}

func damages() []damaged {
	return []damaged{
		{
			name: "missing pack", check: true, lost: []string{"s.shop.1 description"},
			do: func(w *ward) []string {
				l := w.layer("s.shop.1", 1)
				w.bed.Store.Drop(l.Digest)
				return []string{l.Digest.String(), "s.shop.1", "s.shop.2", "s.shop.3"}
			},
		},
		{
			name: "truncated pack", check: true, lost: []string{"s.shop.3 description"},
			do: func(w *ward) []string {
				l := w.layer("s.shop.3", 1)
				w.spoil(l, func(b []byte) []byte { return b[:len(b)/3] })
				return []string{l.Digest.String(), "s.shop.3"}
			},
		},
		{
			name: "bit flipped in a pack",
			do: func(w *ward) []string {
				l := w.layer("s.shop.1", 1)
				w.spoil(l, flipFrom(2000))
				return []string{l.Digest.String(), "s.shop.1"}
			},
		},
		{
			name: "bit flipped in the padding", lost: []string{},
			do: func(w *ward) []string {
				l := w.layer("s.blog.1", 1)
				w.spoil(l, func(b []byte) []byte { return flipFrom(len(b) - 1)(b) })
				return []string{l.Digest.String(), "s.blog.1"}
			},
		},
		{
			name: "missing index", check: true, lost: []string{"s.blog.1 description"},
			do: func(w *ward) []string {
				l := w.layer("s.blog.1", 0)
				w.bed.Store.Drop(l.Digest)
				return []string{l.Digest.String(), "s.blog.1"}
			},
		},
		{
			name: "bit flipped in an index", check: true, lost: []string{"s.shop.2 description"},
			do: func(w *ward) []string {
				l := w.layer("s.shop.2", 0)
				w.spoil(l, flipFrom(80))
				return []string{l.Digest.String(), "s.shop.2"}
			},
		},
		{
			name: "index of another manifest", check: true, lost: []string{"s.shop.2 description"},
			do: func(w *ward) []string {
				l, other := w.layer("s.shop.2", 0), w.layer("s.shop.3", 0)
				w.spoil(l, func([]byte) []byte { return bytes.Clone(blobBytes(w.t, w.bed.Store, other.Digest, other.Size)) })
				return []string{l.Digest.String(), "s.shop.2"}
			},
		},
		{
			name: "missing pack manifest", check: true, lost: []string{"s.shop.1 description"},
			do: func(w *ward) []string {
				d := w.own("s.shop.1")
				w.bed.Store.Vanish(d)
				return []string{d.String(), "s.shop.1", "s.shop.2"}
			},
		},
		{
			name: "bit flipped in a pack manifest", check: true, lost: []string{"s.shop.1 description"},
			do: func(w *ward) []string {
				return []string{w.spoilManifest(w.own("s.shop.1").String()).String(), "s.shop.1"}
			},
		},
		{
			name: "pack manifest without its tag", check: true, lost: []string{},
			do: func(w *ward) []string {
				tag := "m." + w.own("s.shop.1").Encoded()[:32]
				if err := w.bed.Store.DeleteTag(w.t.Context(), tag); err != nil {
					w.t.Fatal(err)
				}
				return []string{tag}
			},
		},
		{
			name: "tags of two pack manifests swapped", check: true, lost: []string{},
			do: func(w *ward) []string {
				a, b := w.own("s.shop.1"), w.own("s.blog.1")
				w.bed.Store.MoveTag("m."+a.Encoded()[:32], b)
				w.bed.Store.MoveTag("m."+b.Encoded()[:32], a)
				return []string{"m." + a.Encoded()[:32], "m." + b.Encoded()[:32]}
			},
		},
		{
			name: "tags of two snapshots swapped", check: true, lost: []string{},
			do: func(w *ward) []string {
				w.bed.Store.MoveTag("s.shop.1", w.snaps["s.shop.2"].Digest)
				w.bed.Store.MoveTag("s.shop.2", w.snaps["s.shop.1"].Digest)
				return []string{"s.shop.1", "s.shop.2"}
			},
		},
		{
			name: "bit flipped in a snapshot", check: true, lost: []string{},
			do: func(w *ward) []string { w.spoilManifest("s.shop.2"); return []string{"s.shop.2"} },
		},
		{
			name: "missing newest snapshot", check: true, lost: []string{},
			do: func(w *ward) []string {
				w.bed.Store.Vanish(w.snaps["s.shop.3"].Digest)
				return []string{"s.shop.*", "older state"} // by who has seen it
			},
		},
		{
			name: "missing host record", check: true, lost: []string{"s.blog.1 volume:data /d"},
			do: func(w *ward) []string {
				if err := w.bed.Store.DeleteTag(w.t.Context(), "host.1"); err != nil {
					w.t.Fatal(err)
				}
				return []string{"host.1", "missing"}
			},
		},
		{
			name: "bit flipped in a host record", check: true, lost: []string{"s.blog.1 volume:data /d"},
			do: func(w *ward) []string { w.spoilManifest("host.1"); return []string{"host.1"} },
		},
		{
			name: "replayed old key record", check: true, lost: []string{},
			do: func(w *ward) []string {
				w.tagTo("key.2", w.bed.Store, "key.1")
				return []string{"key.2", "key record 1"}
			},
			foreign: true, stays: true, known: true,
		},
		{
			name: "snapshot of another repository", check: true, lost: []string{}, foreign: true, stays: true,
			do: func(w *ward) []string {
				other := repotest.NewBed(w.t)
				s := mustSnapshot(w.t, other.Host("main"), "shop", nil, content(1, 3))
				m, err := other.Store.GetManifest(w.t.Context(), s.Tag)
				if err != nil {
					w.t.Fatal(err)
				}
				m.Body = bytes.ReplaceAll(m.Body, []byte(s.Needs[0]), []byte(w.own("s.shop.1")))
				if _, err := w.bed.Store.PutManifest(w.t.Context(), "s.shop.4", m.MediaType, m.Body); err != nil {
					w.t.Fatal(err)
				}
				return []string{"s.shop.4"}
			},
		},
		{
			name: "pack tag that names something else", check: true, lost: []string{}, foreign: true, stays: true,
			do: func(w *ward) []string {
				tag := "m." + strings.Repeat("0", 32)
				w.bed.Store.MoveTag(tag, w.own("s.shop.1"))
				return []string{tag}
			},
		},
		{
			name: "squatted number", check: true, lost: []string{}, foreign: true, stays: true,
			do: func(w *ward) []string {
				w.tagTo("s.shop.9", w.bed.Store, "s.shop.2")
				return []string{"s.shop.9"}
			},
		},
	}
}

// The table of damages: what check says of each, that verify finds what check by
// its nature cannot, which files are told to be lost and that exactly those are,
// that repair heals it from an exact copy, and that a new snapshot is whole.
func TestDamages(t *testing.T) {
	t.Parallel()
	sound := newWard(t)
	for _, d := range damages() {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			w := sound.fork(t)
			named := d.do(w)
			quick := examine(t, w.bed.Host("main"), repo.ExamineOptions{})
			w.known = d.known
			fresh := examine(t, w.host("checker"), repo.ExamineOptions{})
			if seen := len(quick.Problems)+len(fresh.Problems) > 0; seen != d.check {
				t.Errorf("check: %v\n%v", quick.Problems, fresh.Problems)
			}
			// By one that has not seen it before: who has seen host records that are
			// missing judges nothing that is signed until they are back.
			reader := "reads all"
			if d.known {
				reader = "main"
			}
			full := examine(t, w.bed.Host(reader), repo.ExamineOptions{Read: &readlog.Subset{}})
			all := slices.Concat(quick.Problems, fresh.Problems, full.Problems)
			text := problemText(all)
			for _, n := range named {
				if !strings.Contains(text, n) {
					t.Errorf("verify does not name %s:\n%s", n, text)
				}
			}
			ours := slices.ContainsFunc(all, func(p repo.Problem) bool { return !p.Foreign() })
			if ours == d.foreign {
				t.Errorf("damage of what Lifeboat stored: %v\n%s", ours, text)
			}
			lost := losses(t, full)
			if d.lost != nil && (len(d.lost) == 0) != (len(lost) == 0) {
				t.Errorf("lost: %v", lost)
			}
			for _, l := range d.lost {
				if !slices.Contains(lost, l) {
					t.Errorf("%s is not told as lost: %v", l, lost)
				}
			}
			w.exactly(lost)
			w.heal(d)
		})
	}
}

// exactly compares what is told as lost with what a host without any cache can
// read.
func (w *ward) exactly(lost []string) {
	w.t.Helper()
	r := w.host("reader")
	snaps, _, err := r.Snapshots(w.t.Context(), "")
	if err != nil {
		w.t.Fatal(err)
	}
	for _, s := range snaps {
		bad := w.holds(r, s.Tag)
		for _, path := range bad {
			if !slices.ContainsFunc(lost, func(l string) bool { return strings.HasPrefix(l, s.Tag+" ") }) {
				w.t.Errorf("%s: %s cannot be read, and is not told as lost: %v", s.Tag, path, lost)
			}
		}
		for _, l := range lost {
			tag, path, ok := strings.Cut(l, " volume:data /")
			if ok && tag == s.Tag && !slices.Contains(bad, path) && !strings.Contains(strings.Join(bad, " "), "sha256:") {
				w.t.Errorf("%s can be read: %v", l, bad)
			}
		}
	}
}

func (w *ward) repair(host string, o repo.RepairOptions) *repo.Repaired {
	w.t.Helper()
	res, err := w.host(host).Repair(w.t.Context(), o)
	if err != nil {
		w.t.Fatalf("repair: %v\n%+v", err, res.Steps)
	}
	return res
}

// heal repairs from the exact copy by a host that has seen nothing, after a dry
// run that changes nothing.
func (w *ward) heal(d damaged) {
	t := w.t
	t.Helper()
	from := []repo.RepairSource{{Name: "copy", Exact: w.copy}}
	before := tagsOf(t, w.bed.Store)
	dry := w.repair("healer", repo.RepairOptions{From: from, Read: true, DryRun: true})
	if len(dry.Steps) == 0 && !d.stays {
		t.Errorf("the dry run plans nothing")
	}
	if after := tagsOf(t, w.bed.Store); !maps.Equal(before, after) {
		t.Errorf("the dry run changed tags")
	}
	res := w.repair("healer", repo.RepairOptions{From: from, Read: true})
	if d.stays {
		for _, p := range res.After.Problems {
			if !p.Foreign() {
				t.Errorf("%v", p)
			}
		}
	} else if ps := examine(t, w.host("witness"), repo.ExamineOptions{Read: &readlog.Subset{}}).Problems; len(ps) > 0 || !res.Healed() {
		t.Errorf("after repair (%+v): %v", res.Steps, ps)
	}
	for _, s := range res.Steps {
		if s.Err != nil {
			t.Errorf("step %+v", s)
		}
	}
	w.whole()
}

// whole: every snapshot can be read by a host without any cache, and a new one is.
func (w *ward) whole() {
	t := w.t
	t.Helper()
	for tag := range w.snaps {
		if bad := w.holds(w.host("another"), tag); len(bad) > 0 {
			t.Errorf("%s: %v", tag, bad)
		}
	}
	main := w.host("main")
	if _, err := main.Check(t.Context()); err != nil { // what it had found lost is found again
		t.Fatal(err)
	}
	head, err := main.Find(t.Context(), "shop", "")
	if err != nil {
		t.Fatal(err)
	}
	s := treeSnapshot(t, main, "shop", head, w.files["s.shop.3"]...)
	w.snaps[s.Tag], w.files[s.Tag] = s, w.files["s.shop.3"]
	if bad := w.holds(w.host("yet another"), s.Tag); len(bad) > 0 {
		t.Errorf("the new %s: %v", s.Tag, bad)
	}
	delete(w.snaps, s.Tag)
}

// Without any copy the live system heals: the next snapshot sends again what is
// damaged, and what the older ones need of it is found there; what is nowhere any
// more is told, and only that.
func TestRepairFromLiveSystem(t *testing.T) {
	t.Parallel()
	sound := newWard(t)
	for name, tc := range map[string]struct {
		do   func(w *ward)
		left []string // told as lost in the end
	}{
		// a and b, and the description of the first snapshot; b is in the new one.
		"missing pack": {
			do:   func(w *ward) { w.bed.Store.Drop(w.layer("s.shop.1", 1).Digest) },
			left: []string{"s.shop.1 description", "s.shop.2 volume:data /a"},
		},
		"missing pack manifest": {
			do:   func(w *ward) { w.bed.Store.Vanish(w.own("s.shop.1")) },
			left: nil, // the host that wrote it keeps what is in it
		},
		"missing index": {
			do:   func(w *ward) { w.bed.Store.Drop(w.layer("s.shop.1", 0).Digest) },
			left: nil,
		},
		"bit flipped in a pack": {
			do:   func(w *ward) { w.spoil(w.layer("s.shop.2", 1), flipFrom(3000)) },
			left: nil, // the only content in it is c
		},
		"bit flipped in the padding": {
			do: func(w *ward) {
				w.spoil(w.layer("s.shop.2", 1), func(b []byte) []byte { return flipFrom(len(b) - 1)(b) })
			},
			left: nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := sound.fork(t)
			tc.do(w)
			main := w.bed.Host("main")
			if x := examine(t, main, repo.ExamineOptions{Read: &readlog.Subset{}}); len(x.Problems) == 0 {
				t.Fatal("nothing was found")
			}
			next := treeSnapshot(t, main, "shop", nil, w.files["s.shop.3"]...)
			w.snaps[next.Tag], w.files[next.Tag] = next, w.files["s.shop.3"]
			res := w.repair("main", repo.RepairOptions{})
			if diff := cmp.Diff(tc.left, losses(t, res.After)); diff != "" {
				t.Errorf("%s\n%+v", diff, res.Steps)
			}
			fresh := examine(t, w.bed.Host("fresh"), repo.ExamineOptions{Read: &readlog.Subset{}})
			if diff := cmp.Diff(tc.left, losses(t, fresh)); diff != "" {
				t.Errorf("a host without a cache: %s\n%s", diff, problemText(fresh.Problems))
			}
			w.exactly(losses(t, fresh))
			// Once more heals nothing more, and does nothing.
			again := w.repair("main", repo.RepairOptions{})
			if diff := cmp.Diff(tc.left, losses(t, again.After)); diff != "" || len(again.Steps) > 0 {
				t.Errorf("again: %s %+v", diff, again.Steps)
			}
			if tc.left == nil {
				return
			}
			// What is left can be forgotten, when it is asked for; nothing else goes.
			res = w.repair("main", repo.RepairOptions{DropDamaged: true})
			snaps, _, err := main.Snapshots(t.Context(), "shop")
			if err != nil || !res.Healed() || len(snaps) != 2 {
				t.Errorf("%d snapshots are left, %v\n%+v\n%s", len(snaps), err, res.Steps, problemText(res.After.Problems))
			}
		})
	}
}
