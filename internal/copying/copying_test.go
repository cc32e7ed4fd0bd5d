package copying_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"lifeboat/internal/catalog"
	"lifeboat/internal/copying"
	"lifeboat/internal/cut"
	"lifeboat/internal/dr"
	"lifeboat/internal/fence"
	"lifeboat/internal/layer"
	"lifeboat/internal/ledger"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/repotest"
	"lifeboat/internal/store"
	"lifeboat/internal/store/faults"
)

func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)}).Read(b)
	return b
}

// write is a file's content in pieces; nil is a hole of 64 KiB.
type write [][]byte

// system is what a test's system holds: file paths and their contents.
type system map[string]write

// some is a tree with small files, a large one with many units, and holes.
func some(seed uint64) system {
	s := system{}
	for i := range 300 {
		s[fmt.Sprintf("dir%02d/file%d", i%20, i)] = write{noise(uint64(i), 200+i)}
	}
	var large write
	for i := range 100 {
		large = append(large, noise(1000+uint64(i), 32<<10))
		if i%50 == 7 {
			large = append(large, nil)
		}
	}
	s["large"] = large
	s["new"] = write{noise(seed, 5000)}
	s["empty"] = nil
	return s
}

const holeLen = 64 << 10

// commit takes a snapshot of a system with an image.
func commit(ctx context.Context, r *repo.Repo, parent *repo.Snapshot, epoch dr.Epoch, kind dr.Kind, s system) (*repo.Snapshot, error) {
	w, err := r.NewWriter(ctx, repo.WriterOptions{System: "shop", Parent: parent})
	if err != nil {
		return nil, err
	}
	defer w.Close()
	root := &dr.Root{
		Site: "main", Epoch: epoch, Kind: kind, Consistency: dr.ConsistentCrash, Created: time.Now(),
		Containers: []dr.Container{{Name: "web", Config: json.RawMessage(`{"a":1}`)}},
	}
	if parent != nil {
		root.Parent = &parent.ID
	}
	b := catalog.NewBuilder(w, r.CutKey(), r.UnitID)
	if err := add(ctx, w, b, s); err != nil {
		return nil, err
	}
	sum, err := b.Close(ctx)
	if err != nil {
		return nil, err
	}
	root.Trees = []dr.Tree{{Key: "volume:data", Kind: dr.TreeVolume, Catalog: sum.Table, Entries: sum.Entries, Bytes: sum.Bytes, Hash: sum.Hash}}
	compose, err := w.Put(ctx, []byte("services: {}"))
	if err != nil {
		return nil, err
	}
	root.Files = []dr.ProjectFile{{Role: "compose", Path: "/srv/compose.yaml", Content: []dr.UnitRef{compose}, Size: int64(compose.Len)}}
	save, id := image()
	got, err := layer.Capture(ctx, bytes.NewReader(save), layer.CaptureOptions{Want: []layer.Digest{id}, Sink: w, Cutter: cut.New(r.CutKey()), Platform: layer.Platform{OS: "linux", Arch: "amd64"}})
	if err != nil {
		return nil, err
	}
	if got[0].Err != nil {
		return nil, got[0].Err
	}
	rec, err := layer.Encode(ctx, w, cut.New(r.CutKey()), got[0].Record)
	if err != nil {
		return nil, err
	}
	root.Images = []dr.Image{{ID: string(id), Record: rec, Bytes: got[0].Record.Bytes()}}
	return w.Commit(ctx, root, repo.CommitInfo{FreezeMicros: 4000})
}

func add(ctx context.Context, w *repo.Writer, b *catalog.Builder, s system) error {
	paths := []string{"", "dir-link"}
	for p := range s {
		paths = append(paths, p)
		if dir, _, ok := strings.Cut(p, "/"); ok && !slices.Contains(paths, dir) {
			paths = append(paths, dir)
		}
	}
	slices.SortFunc(paths, catalog.ComparePaths)
	for _, p := range paths {
		e := catalog.Entry{Path: p, Type: catalog.Directory, Mode: 0o755, UID: 3, MtimeSec: 77, MtimeNsec: 5, Xattrs: []catalog.Xattr{{Name: "user.x", Value: []byte("y")}}}
		if p == "dir-link" {
			e.Type, e.Target = catalog.Symlink, "dir00"
		}
		if parts, ok := s[p]; ok {
			e.Type = catalog.File
			for _, part := range parts {
				ref := catalog.Ref{Hole: true, Len: holeLen}
				if part != nil {
					u, err := w.Put(ctx, part)
					if err != nil {
						return err
					}
					ref = catalog.Ref{ID: u.ID, Len: int64(u.Len)}
				}
				e.Refs = append(e.Refs, ref)
				e.Size += ref.Len
			}
		}
		if err := b.Add(ctx, e); err != nil {
			return err
		}
	}
	return nil
}

// image is what `docker save` gives for an image of one layer.
func image() ([]byte, layer.Digest) {
	pack := func(files ...any) []byte {
		var b bytes.Buffer
		t := tar.NewWriter(&b)
		for i := 0; i < len(files); i += 2 {
			data := files[i+1].([]byte)
			_ = t.WriteHeader(&tar.Header{Name: files[i].(string), Mode: 0o644, Size: int64(len(data)), Typeflag: tar.TypeReg})
			_, _ = t.Write(data)
		}
		_ = t.Close()
		return b.Bytes()
	}
	content := pack("bin/sh", noise(70, 300_000), "etc/zero", make([]byte, 200_000), "etc/a", noise(5, 205))
	config := fmt.Appendf(nil, `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[%q]}}`, digest.FromBytes(content))
	id := digest.FromBytes(config)
	manifest := fmt.Appendf(nil, `[{"Config":"%s.json","RepoTags":["shop:1"],"Layers":["l/layer.tar"]}]`, id.Encoded())
	return pack(id.Encoded()+".json", config, "l/layer.tar", content, "manifest.json", manifest), layer.Digest(id)
}

// contents reads everything of a snapshot: each path with its metadata and
// bytes, the image's layer, the project's files.
func contents(t *testing.T, r *repo.Repo, s *repo.Snapshot) map[string]string {
	t.Helper()
	rd, err := r.NewReader(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	root, err := rd.Root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{"containers": fmt.Sprint(root.Containers), "created": root.Created.String()}
	for _, f := range root.Files {
		data, err := rd.Unit(t.Context(), f.Content[0])
		if err != nil {
			t.Fatal(err)
		}
		out["project "+f.Path] = string(data)
	}
	for _, im := range root.Images {
		rec, err := layer.Decode(t.Context(), rd, im.Record)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := layer.WriteLayer(t.Context(), rd, &rec.Layers[0], &b); err != nil {
			t.Fatal(err)
		}
		config, err := layer.ReadObject(t.Context(), rd, &rec.Config)
		if err != nil {
			t.Fatal(err)
		}
		out["image "+im.ID] = string(digest.FromBytes(b.Bytes())) + string(config)
	}
	c, err := catalog.Open(t.Context(), rd, root.Trees[0].Catalog)
	if err != nil {
		t.Fatal(err)
	}
	for {
		e, err := c.Next(t.Context())
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		err = c.Content(t.Context(), &e, func(_ int64, ref catalog.Ref) error {
			if ref.Hole {
				b.Write(make([]byte, ref.Len))
				return nil
			}
			data, err := rd.Unit(t.Context(), ref.Unit())
			b.Write(data)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		e.Refs, e.Indirect = nil, false
		out["/"+e.Path] = fmt.Sprintf("%+v %s", e, digest.FromBytes(b.Bytes()))
	}
}

// pair is a repository, one with other keys, and a host that copies.
type pair struct {
	from, to *repotest.Bed
	memory   string
}

func (p *pair) copier(t *testing.T, dst store.Store, edit ...func(*copying.Options)) *copying.Copier {
	t.Helper()
	return p.copierAs(t, "copier", dst, edit...)
}

func (p *pair) copierAs(t *testing.T, host string, dst store.Store, edit ...func(*copying.Options)) *copying.Copier {
	t.Helper()
	from, to := p.from.Host("main"), p.to.HostOn(host, dst)
	o := copying.Options{From: from, To: to, FromLedger: ledger.New(from, 0, ledger.Here{}), ToLedger: ledger.New(to, 0, ledger.Here{}), Memory: p.memory}
	for _, f := range edit {
		f(&o)
	}
	c, err := copying.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func mustCopy(t *testing.T, c *copying.Copier) *copying.Result {
	t.Helper()
	res, err := c.Copy(t.Context(), "shop")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range res.Rows {
		if r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	return res
}

func mustCommit(t *testing.T, r *repo.Repo, parent *repo.Snapshot, epoch dr.Epoch, kind dr.Kind, s system) *repo.Snapshot {
	t.Helper()
	snap, err := commit(t.Context(), r, parent, epoch, kind, s)
	if err != nil {
		t.Fatal(err)
	}
	return snap
}

func claim(t *testing.T, r *repo.Repo, epoch int, base *repo.Snapshot) {
	t.Helper()
	c := fence.Claim{Format: 1, System: "shop", Epoch: dr.Epoch(epoch), Site: "main", Host: r.HostID(), Reason: fence.ReasonFailover, Created: time.Now().UTC()}
	if base != nil {
		c.Base = &base.ID
	}
	if err := r.PutRecord(t.Context(), fmt.Sprintf("e.shop.%d", epoch), c); err != nil {
		t.Fatal(err)
	}
}

func newPair(t *testing.T) *pair {
	return &pair{from: repotest.NewBed(t), to: repotest.NewBed(t), memory: t.TempDir()}
}

func TestCopy(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	main, standby := p.from.Host("main"), p.from.Host("standby")
	claim(t, main, 1, nil)
	one := mustCommit(t, main, nil, 1, dr.KindCurrent, some(1))
	two := mustCommit(t, main, one, 1, dr.KindCurrent, some(2))
	claim(t, standby, 2, one)
	mustCommit(t, standby, one, 2, dr.KindDivergent, some(3))
	four := mustCommit(t, standby, two, 2, dr.KindCurrent, some(4))

	first := mustCopy(t, p.copier(t, p.to.Store))
	to := p.to.Host("reader")
	for i, want := range []dr.Kind{dr.KindCurrent, dr.KindDivergent, dr.KindDivergent, dr.KindCurrent} {
		row := first.Rows[i]
		if row.To.Kind != want || !row.Copied || row.To.Epoch != 1 || row.To.Origin == nil || row.To.Origin.Snapshot != row.From.ID || row.To.Site != "main" || !row.To.Created.Equal(row.From.Created) {
			t.Errorf("%s became %+v, want kind %s", row.From.Tag, row.To, want)
		}
		if diff := cmp.Diff(contents(t, main, &row.From), contents(t, to, row.To)); diff != "" {
			t.Errorf("%s: %s", row.From.Tag, diff)
		}
	}
	head, err := to.Find(t.Context(), "shop", "latest")
	if err != nil || head.Origin.Snapshot != four.ID || *head.Parent != first.Rows[1].To.ID {
		t.Errorf("the line there: %+v, %v", head, err)
	}
	if problems, err := to.Check(t.Context()); err != nil || len(problems) != 0 {
		t.Errorf("%+v, %v", problems, err)
	}

	// Again nothing happens; an increment costs what is new.
	if res := mustCopy(t, p.copier(t, p.to.Store)); res.Sent != 0 || res.Read != 0 {
		t.Errorf("again: sent %d, read %d", res.Sent, res.Read)
	}
	mustCommit(t, standby, four, 2, dr.KindCurrent, some(5))
	if res := mustCopy(t, p.copier(t, p.to.Store)); res.Rows[4].To == nil || res.Read > 10_000 || res.Sent > 120_000 {
		t.Errorf("an increment: sent %d, read %d", res.Sent, res.Read)
	}
	// Without its memory everything is read again, and nothing sent again.
	mustCommit(t, standby, four, 2, dr.KindCurrent, some(6))
	p.memory = t.TempDir()
	if res := mustCopy(t, p.copier(t, p.to.Store)); res.Read < 2_500_000 || res.Sent > 120_000 {
		t.Errorf("without memory: sent %d, read %d", res.Sent, res.Read)
	}
}

// TestCopyInterrupted fails each call that writes at the other repository. What
// is visible there is whole, the next run completes it, and little is sent again.
func TestCopyInterrupted(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	main := p.from.Host("main")
	one := mustCommit(t, main, nil, 0, dr.KindCurrent, some(1))
	mustCommit(t, main, one, 0, dr.KindCurrent, some(2))
	probe := &pair{from: p.from.Fork(), to: p.to.Fork(), memory: t.TempDir()}
	counter := faults.New(t, probe.to.Store)
	mustCopy(t, probe.copier(t, counter))
	count := map[faults.Op]int{}
	for _, c := range counter.Calls() {
		count[c.Op]++
	}
	for _, op := range []faults.Op{faults.PutBlob, faults.PutManifest} {
		for call := 1; call <= count[op]; call++ {
			for _, kind := range []faults.Kind{faults.Before, faults.After, faults.HangAfter} {
				t.Run(fmt.Sprintf("%s %d %d", op, call, kind), func(t *testing.T) {
					t.Parallel()
					q := &pair{from: p.from.Fork(), to: p.to.Fork(), memory: t.TempDir()}
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					f := faults.Fault{Op: op, Call: call, Kind: kind}
					if kind == faults.HangAfter {
						f.Do = cancel
					}
					c := q.copier(t, faults.New(t, q.to.Store, f))
					_, err := c.Copy(ctx, "shop")
					if err := c.Close(); err != nil {
						t.Fatal(err)
					}
					q.mustBeWhole(t, err)
					mustCopy(t, q.copier(t, q.to.Store))
					if n := q.mustBeWhole(t, nil); n != 2 && err == nil || n < 2 {
						t.Errorf("after %v: %d snapshots", err, n)
					}
				})
			}
		}
	}
}

// mustBeWhole compares every copy with what it is a copy of.
func (p *pair) mustBeWhole(t *testing.T, failed error) int {
	t.Helper()
	to := p.to.Host("reader")
	snaps, problems, err := to.Snapshots(t.Context(), "shop")
	if err != nil || len(problems) != 0 {
		t.Fatalf("after %v: %v, %v", failed, problems, err)
	}
	from := p.from.Host("main")
	for i := range snaps {
		was, err := from.Find(t.Context(), "shop", snaps[i].Origin.Snapshot.String())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(contents(t, from, was), contents(t, to, &snaps[i])); diff != "" {
			t.Errorf("after %v: %s", failed, diff)
		}
	}
	return len(snaps)
}

// TestFenced: once somebody brought the system up from the copy nothing is added
// to it; another host goes on only where it is told to.
func TestFenced(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	main := p.from.Host("main")
	one := mustCommit(t, main, nil, 0, dr.KindCurrent, some(1))
	mustCopy(t, p.copier(t, p.to.Store))
	two := mustCommit(t, main, one, 0, dr.KindCurrent, some(2))

	other := p.copierAs(t, "other", p.to.Store)
	if _, err := other.Copy(t.Context(), "shop"); !errors.Is(err, dr.ErrFenced) || !strings.Contains(err.Error(), "--adopt") {
		t.Errorf("another host: %v", err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	res := mustCopy(t, p.copierAs(t, "other", p.to.Store, func(o *copying.Options) { o.Adopt = true }))
	if got := res.Rows[1].To; got.Epoch != 2 || got.Origin.Snapshot != two.ID || res.Rows[1].From.ID != two.ID {
		t.Errorf("%+v", got)
	}
	if head, err := p.to.Host("reader").Find(t.Context(), "shop", ""); err != nil || head.Origin.Snapshot != two.ID {
		t.Errorf("%v %v", head, err)
	}

	claim(t, p.to.Host("standby"), 3, res.Rows[1].To) // a failover there
	mustCommit(t, main, two, 0, dr.KindCurrent, some(3))
	for _, name := range []string{"copier", "other"} {
		c := p.copierAs(t, name, p.to.Store, func(o *copying.Options) { o.Adopt = true })
		if _, err := c.Copy(t.Context(), "shop"); !errors.Is(err, dr.ErrFenced) || !strings.Contains(err.Error(), "brought up") {
			t.Errorf("%s after a failover: %v", name, err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDamaged: a snapshot that is not whole is named, the others are copied.
func TestDamaged(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	main := p.from.Host("main")
	one := mustCommit(t, main, nil, 0, dr.KindCurrent, some(1))
	mustCopy(t, p.copier(t, p.to.Store))
	two := mustCommit(t, main, one, 0, dr.KindCurrent, some(2))
	var packs []digest.Digest
	for _, d := range two.Needs {
		if slices.Contains(one.Needs, d) {
			continue
		}
		m, err := p.from.Store.GetManifest(t.Context(), d.String())
		if err != nil {
			t.Fatal(err)
		}
		var x ocispec.Manifest
		if err := json.Unmarshal(m.Body, &x); err != nil {
			t.Fatal(err)
		}
		for _, l := range x.Layers[1:] {
			packs = append(packs, l.Digest)
			p.from.Store.Corrupt(l.Digest, noise(9, int(l.Size)))
		}
	}
	mustCommit(t, main, nil, 0, dr.KindCurrent, some(3))
	c := p.copier(t, p.to.Store)
	res, err := c.Copy(t.Context(), "shop")
	if err != nil || len(packs) == 0 {
		t.Fatal(err)
	}
	if res.Rows[1].Err == nil || !errors.Is(res.Rows[1].Err, dr.ErrTampered) || res.Rows[1].To != nil {
		t.Errorf("damaged: %v", res.Rows[1].Err)
	}
	if res.Rows[2].Err != nil || res.Rows[2].To == nil {
		t.Errorf("whole: %v", res.Rows[2].Err)
	}
}

func TestSameRepository(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	r := b.Host("main")
	l := ledger.New(r, 0, ledger.Here{})
	if _, err := copying.New(copying.Options{From: r, To: b.Host("other"), FromLedger: l, ToLedger: l, Memory: t.TempDir()}); !errors.Is(err, dr.ErrUsage) {
		t.Errorf("%v", err)
	}
}
