package repo_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/dr"
	"lifeboat/internal/fence"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/repotest"
	"lifeboat/internal/store"
	"lifeboat/internal/store/faults"
)

func claim(r *repo.Repo, epoch dr.Epoch, base *repo.Snapshot) fence.Claim {
	c := fence.Claim{Format: 1, System: "shop", Epoch: epoch, Site: "main", Host: r.HostID(), Reason: fence.ReasonProtect, Created: time.Unix(int64(epoch), 0).UTC()}
	if base != nil {
		c.Base = &base.ID
	}
	return c
}

func TestRecords(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	r, other := b.Host("main"), b.Host("other")
	if _, err := r.Latest(t.Context(), repo.ClassEpoch, "shop"); !errors.Is(err, dr.ErrNotFound) {
		t.Fatalf("no record yet: %v", err)
	}
	for range 2 { // the same again succeeds
		if err := r.PutRecord(t.Context(), "e.shop.1", claim(r, 1, nil)); err != nil {
			t.Fatal(err)
		}
	}
	elsewhere := claim(r, 1, nil)
	elsewhere.Site = "elsewhere"
	if err := r.PutRecord(t.Context(), "e.shop.1", elsewhere); !errors.Is(err, dr.ErrHeld) || errors.Is(err, repo.ErrSquatted) {
		t.Errorf("another record under the tag: %v", err)
	}
	for tag, c := range map[string]fence.Claim{"e.shop.2": claim(r, 7, nil), "e.blog.1": claim(r, 1, nil), "w.blog.1": claim(r, 1, nil)} {
		if err := r.PutRecord(t.Context(), tag, c); !errors.Is(err, dr.ErrUsage) {
			t.Errorf("a record under the tag %s of another: %v", tag, err)
		}
	}
	if err := other.PutRecord(t.Context(), "e.shop.1", claim(other, 1, nil)); !errors.Is(err, dr.ErrHeld) {
		t.Errorf("another host's record under the tag: %v", err)
	}
	if err := other.PutRecord(t.Context(), "e.shop.2", claim(r, 2, nil)); err == nil {
		t.Error("a record in the name of another host was signed")
	}
	for _, tag := range []string{"s.shop.1", "key.1", "host.9", "e.shop", "e.shop.0", "x.shop.1"} {
		if err := r.PutRecord(t.Context(), tag, claim(r, 1, nil)); !errors.Is(err, dr.ErrUsage) {
			t.Errorf("tag %s: %v", tag, err)
		}
	}
	if err := other.PutRecord(t.Context(), "e.shop.2", claim(other, 2, nil)); err != nil {
		t.Fatal(err)
	}
	for _, host := range []*repo.Repo{r, other, b.Host("third")} {
		recs, err := host.ListRecords(t.Context(), "e.shop.")
		if err != nil || len(recs) != 2 || recs[0].Host != r.HostID() || recs[1].Number != 2 {
			t.Fatalf("records %v, %v", recs, err)
		}
		last, err := host.Latest(t.Context(), repo.ClassEpoch, "shop")
		if err != nil || last.Tag != "e.shop.2" {
			t.Fatalf("latest %v, %v", last, err)
		}
		var c fence.Claim
		if err := json.Unmarshal(last.Body, &c); err != nil || c.Epoch != 2 || c.Host != other.HostID() {
			t.Fatalf("body %s, %v", last.Body, err)
		}
	}
	// A replay under the next number is no record.
	m, err := b.Store.GetManifest(t.Context(), "e.shop.1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Store.PutManifest(t.Context(), "e.shop.3", m.MediaType, m.Body); err != nil {
		t.Fatal(err)
	}
	if last, err := r.Latest(t.Context(), repo.ClassEpoch, "shop"); err != nil || last.Tag != "e.shop.2" {
		t.Fatalf("after a replay: %v, %v", last, err)
	}
	if problems, err := r.Check(t.Context()); err != nil || len(problems) != 1 || problems[0].Tag != "e.shop.3" {
		t.Fatalf("check: %v, %v", problems, err)
	}
}

// Every call of PutRecord fails in each way; then the record is there or is
// not, and putting it again succeeds (invariant 8).
func TestRecordFaults(t *testing.T) {
	t.Parallel()
	put := func(b *repotest.Bed, plan ...faults.Fault) (*faults.Store, error) {
		st := faults.New(t, b.Store, plan...)
		r, err := repo.Open(t.Context(), st, b.Options("main"))
		if err != nil {
			return st, err
		}
		defer func() { _ = r.Close() }()
		return st, r.PutRecord(t.Context(), "e.shop.1", claim(r, 1, nil))
	}
	probe, err := put(repotest.NewBed(t))
	if err != nil {
		t.Fatal(err)
	}
	for call := 1; call <= len(probe.Calls()); call++ {
		for _, kind := range []faults.Kind{faults.Before, faults.After, faults.Duplicate} {
			b := repotest.NewBed(t)
			_, first := put(b, faults.Fault{Call: call, Kind: kind})
			seen, err := b.Host("observer").ListRecords(t.Context(), "e.shop.")
			if err != nil || (first == nil && len(seen) != 1) {
				t.Fatalf("call %d kind %d: %v, then %d records, %v", call, kind, first, len(seen), err)
			}
			if _, err := put(b); err != nil {
				t.Fatalf("call %d kind %d: %v, again: %v", call, kind, first, err)
			}
		}
	}
	// The answer lost three times over: unknown, and said so.
	b := repotest.NewBed(t)
	_, err = put(b, faults.Fault{Op: faults.PutManifest, Arg: "e.shop.1", Kind: faults.After},
		faults.Fault{Op: faults.GetManifest, Arg: "e.shop.1", Kind: faults.Before})
	if !errors.Is(err, dr.ErrOutcomeUnknown) {
		t.Fatalf("error %v, want ErrOutcomeUnknown", err)
	}
}

// Find follows the line of the newest epoch (docs/format.md, Lines).
func TestFind(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	main, standIn := b.Host("main"), b.Host("stand-in")
	if _, err := main.Find(t.Context(), "shop", ""); !errors.Is(err, dr.ErrNotFound) {
		t.Fatalf("no snapshot yet: %v", err)
	}
	take := func(r *repo.Repo, epoch dr.Epoch, kind dr.Kind) *repo.Snapshot {
		t.Helper()
		w, err := r.NewWriter(t.Context(), repo.WriterOptions{System: "shop"})
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		root := rootOf(nil, "main")
		root.Epoch, root.Kind = epoch, kind
		s, err := w.Commit(t.Context(), root, repo.CommitInfo{})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	latest := func(want *repo.Snapshot) {
		t.Helper()
		for _, r := range []*repo.Repo{main, standIn} {
			got, err := r.Find(t.Context(), "shop", "latest")
			if err != nil || got.ID != want.ID {
				t.Fatalf("latest is %v, %v; want %s", got, err, want.Tag)
			}
		}
	}
	put := func(r *repo.Repo, c fence.Claim) {
		t.Helper()
		if err := r.PutRecord(t.Context(), fmt.Sprintf("e.shop.%d", c.Epoch), c); err != nil {
			t.Fatal(err)
		}
	}
	put(main, claim(main, 1, nil))
	s1 := take(main, 1, dr.KindCurrent)
	latest(s1)
	s2 := take(main, 1, dr.KindCurrent)
	take(main, 1, dr.KindDivergent)
	latest(s2)
	put(standIn, claim(standIn, 2, s2))
	latest(s2)
	for range 10 {
		take(main, 1, dr.KindCurrent) // stale
	}
	latest(s2)
	s14 := take(standIn, 2, dr.KindCurrent)
	latest(s14)

	for ref, want := range map[string]*repo.Snapshot{"#1": s1, "#2": s2, s1.ID.String(): s1, s2.ID.Short(): s2, s14.ID.String()[:20]: s14} {
		if got, err := main.Find(t.Context(), "shop", ref); err != nil || got.ID != want.ID {
			t.Errorf("%s: %v, %v", ref, got, err)
		}
	}
	if got, err := main.Find(t.Context(), "", s1.ID.Short()); err != nil || got.ID != s1.ID {
		t.Errorf("in all systems: %v, %v", got, err)
	}
	for ref, want := range map[string]error{
		"#99": dr.ErrNotFound, "#0": dr.ErrUsage, "#x": dr.ErrUsage, "ffffffffffff": dr.ErrNotFound, "abc": dr.ErrUsage, "zzzz": dr.ErrUsage,
	} {
		if _, err := main.Find(t.Context(), "shop", ref); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", ref, err, want)
		}
	}
	if _, err := main.Find(t.Context(), "", ""); !errors.Is(err, dr.ErrUsage) {
		t.Errorf("latest of no system: %v", err)
	}
}

// A registry that shows an older state than this host has seen is noticed, and
// the operator may accept it.
func TestOlderStateIsNoticed(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	r := b.Host("main")
	mustSnapshot(t, r, "shop", nil, content(1, 3))
	mustSnapshot(t, r, "shop", nil, content(2, 3))
	for i := range 2 {
		if err := r.PutRecord(t.Context(), fmt.Sprintf("e.shop.%d", i+1), claim(r, dr.Epoch(i+1), nil)); err != nil {
			t.Fatal(err)
		}
	}
	marks, err := r.Marks()
	if err != nil || marks["s.shop."] != 2 || marks["e.shop."] != 2 {
		t.Fatalf("marks %v, %v", marks, err)
	}
	for _, tag := range []string{"s.shop.2", "e.shop.2"} {
		if err := b.Store.DeleteTag(t.Context(), tag); err != nil {
			t.Fatal(err)
		}
	}
	again := b.Host("main")
	older := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, dr.ErrTampered) || !strings.Contains(err.Error(), "older state") {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err = again.Find(t.Context(), "shop", "")
	older("find", err)
	_, err = again.ListRecords(t.Context(), "e.shop.")
	older("list", err)
	_, err = again.Latest(t.Context(), repo.ClassEpoch, "shop")
	older("latest", err)
	snaps, problems, err := again.Snapshots(t.Context(), "")
	if err != nil || len(snaps) != 1 || len(problems) != 1 {
		t.Fatalf("%d snapshots, problems %v, %v", len(snaps), problems, err)
	}
	older("snapshots", problems[0].Err)
	// A host that has not seen them but has a kit that did.
	o := b.Options("kit")
	o.Marks = marks
	kit, err := open(t, b.Store, o)
	if err != nil {
		t.Fatal(err)
	}
	_, err = kit.Find(t.Context(), "shop", "")
	older("with a kit", err)
	// A number is not used twice.
	if s := mustSnapshot(t, again, "shop", nil, content(3, 3)); s.Number != 3 {
		t.Errorf("the next snapshot is %s", s.Tag)
	}
	o = b.Options("kit")
	o.AcceptOlder = true
	accepted, err := open(t, b.Store, o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := accepted.ListRecords(t.Context(), "e.shop."); err != nil {
		t.Errorf("accepted: %v", err)
	}
}

func TestHosts(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	main, bad := b.Host("main"), b.Host("bad")
	units := content(1, 10)
	mustSnapshot(t, main, "shop", nil, units)
	kept := mustSnapshot(t, bad, "blog", nil, content(2, 10))
	doubted := mustSnapshot(t, bad, "blog", nil, content(3, 10))
	ofBlog := func(n dr.Epoch) fence.Claim {
		c := claim(bad, n, nil)
		c.System = "blog"
		return c
	}
	if err := bad.PutRecord(t.Context(), "e.blog.1", ofBlog(1)); err != nil {
		t.Fatal(err)
	}
	hosts, err := main.Hosts(t.Context())
	if err != nil || len(hosts) != 2 || hosts[0].Name != "bad" || hosts[1].ID != main.HostID() || !hosts[0].Revoked.IsZero() {
		t.Fatalf("hosts %v, %v", hosts, err)
	}
	if err := main.Revoke(t.Context(), main.HostID(), nil); !errors.Is(err, dr.ErrUsage) {
		t.Errorf("revoke oneself: %v", err)
	}
	if err := main.Revoke(t.Context(), dr.HostID{1}, nil); !errors.Is(err, dr.ErrNotFound) {
		t.Errorf("revoke who is not there: %v", err)
	}
	for range 2 { // again is nothing
		if err := main.Revoke(t.Context(), bad.HostID(), func(s *repo.Snapshot) bool { return s.ID == kept.ID }); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := bad.NewWriter(t.Context(), repo.WriterOptions{System: "blog"}); !errors.Is(err, repo.ErrRevoked) {
		t.Errorf("a revoked host writes: %v", err)
	}
	if err := bad.PutRecord(t.Context(), "e.blog.2", ofBlog(2)); !errors.Is(err, repo.ErrRevoked) {
		t.Errorf("a revoked host claims: %v", err)
	}
	// Software that does not ask whether it is revoked.
	if err := bad.PutRecordRaw(t.Context(), "e.blog.2", mustJSON(t, ofBlog(2))); err != nil {
		t.Fatal(err)
	}
	for _, r := range []*repo.Repo{main, b.Host("fresh")} {
		snaps, problems, err := r.Snapshots(t.Context(), "blog")
		if err != nil || len(snaps) != 1 || snaps[0].ID != kept.ID {
			t.Fatalf("snapshots %v, %v", snaps, err)
		}
		if len(problems) != 1 || problems[0].Tag != doubted.Tag || !errors.Is(problems[0].Err, repo.ErrRevoked) {
			t.Fatalf("problems %v", problems)
		}
		recs, err := r.ListRecords(t.Context(), "e.blog.")
		if err != nil || len(recs) != 1 || recs[0].Tag != "e.blog.1" {
			t.Fatalf("records %v, %v", recs, err)
		}
		mustHold(t, r, kept, content(2, 10))
	}
	// A host whose enrolment is gone counts for nothing.
	for _, tag := range []string{"host.1"} {
		if err := b.Store.DeleteTag(t.Context(), tag); err != nil {
			t.Fatal(err)
		}
	}
	snaps, problems, err := b.Host("newcomer").Snapshots(t.Context(), "shop")
	if err != nil || len(snaps) != 0 || len(problems) != 1 || !strings.Contains(problems[0].String(), "not enrolled") {
		t.Fatalf("snapshots %v, problems %v, %v", snaps, problems, err)
	}
}

// TestHostOnItsWay: a registry may list a tag before the tag can be read. It is waited
// for a little; longer than that, it is damage until it can be read.
func TestHostOnItsWay(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	mustSnapshot(t, b.Host("main"), "shop", nil, content(1, 10))
	mustSnapshot(t, b.Host("other"), "blog", nil, content(2, 10))
	for late, want := range map[int]int{3: 2, 4: 1} {
		var reads []faults.Fault
		for n := range late {
			reads = append(reads, faults.Fault{Op: faults.GetManifest, Arg: "host.2", Call: n + 1, Err: store.ErrNotFound})
		}
		b := b.ForkFor(t)
		r, err := repo.Open(t.Context(), faults.New(t, b.Store, reads...), b.Options("main"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = r.Close() })
		if hosts, err := r.Hosts(t.Context()); err != nil || len(hosts) != want {
			t.Errorf("%d reads later: hosts %v, %v; want %d", late, hosts, err, want)
		}
		if problems, err := r.Check(t.Context()); err != nil || len(problems) != 0 {
			t.Errorf("%d reads later: %v, %v", late, problems, err)
		}
		if hosts, err := r.Hosts(t.Context()); err != nil || len(hosts) != 2 {
			t.Errorf("%d reads later: hosts %v, %v", late, hosts, err)
		}
	}
}

// Where only an operator may enrol, a new host is told what to ask for, and
// writes once that was done.
func TestOperatorEnrols(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	key, err := repo.LoadOrCreateHostKey(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	o := b.Options("restricted")
	o.Host = key
	forbidden := faults.New(t, b.Store, faults.Fault{Op: faults.PutManifest, Kind: faults.Before, Err: store.ErrForbidden})
	r, err := open(t, forbidden, o)
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.NewWriter(t.Context(), repo.WriterOptions{System: "shop"})
	if !errors.Is(err, store.ErrForbidden) || !strings.Contains(err.Error(), "lifeboat host enroll "+key.ID().String()) {
		t.Fatalf("error %v", err)
	}
	operator := b.Host("operator")
	for range 2 {
		if err := operator.EnrolHost(t.Context(), key.ID(), "restricted"); err != nil {
			t.Fatal(err)
		}
	}
	s := mustSnapshot(t, r, "shop", nil, content(1, 3))
	mustHold(t, operator, s, content(1, 3))
	if err := operator.Revoke(t.Context(), key.ID(), nil); err != nil {
		t.Fatal(err)
	}
	if err := operator.EnrolHost(t.Context(), key.ID(), "restricted"); !errors.Is(err, dr.ErrHeld) {
		t.Fatalf("enrol a revoked host: %v", err)
	}
}

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// What stands under a tag and is no record is told apart from what may be one:
// only the first may be passed over.
func TestSquattedRecord(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	main, other := b.Host("main"), b.Host("other")
	if err := other.PutRecord(t.Context(), "e.shop.1", claim(other, 1, nil)); err != nil {
		t.Fatal(err)
	}
	first, err := b.Store.GetManifest(t.Context(), "e.shop.1")
	if err != nil {
		t.Fatal(err)
	}
	put := func(tag string) error {
		t.Helper()
		n, err := repo.ParseTag(tag)
		if err != nil {
			t.Fatal(err)
		}
		return main.PutRecord(t.Context(), tag, claim(main, dr.Epoch(n.Number), nil))
	}
	want := func(what, tag string, squatted bool) {
		t.Helper()
		if err := put(tag); !errors.Is(err, dr.ErrHeld) || errors.Is(err, repo.ErrSquatted) != squatted {
			t.Errorf("%s: %v, squatted should be %v", what, err, squatted)
		}
	}
	want("a record", "e.shop.1", false)
	if _, err := b.Store.PutManifest(t.Context(), "e.shop.2", first.MediaType, first.Body); err != nil {
		t.Fatal(err)
	}
	want("a replay", "e.shop.2", true)
	if _, err := b.Store.PutManifest(t.Context(), "e.shop.3", first.MediaType, []byte(`{"schemaVersion":2,"config":`+emptyJSON+`,"layers":[]}`)); err != nil {
		t.Fatal(err)
	}
	want("garbage", "e.shop.3", true)
	stranger := b.Host("stranger")
	if err := stranger.PutRecordRaw(t.Context(), "e.shop.4", mustJSON(t, claim(stranger, 4, nil))); err != nil {
		t.Fatal(err)
	}
	want("a record of a host that is not enrolled", "e.shop.4", true)
	if err := other.PutRecordRaw(t.Context(), "e.shop.5", mustJSON(t, claim(other, 9, nil))); err != nil {
		t.Fatal(err)
	}
	want("a record that speaks of another epoch", "e.shop.5", true)
	if err := other.PutRecord(t.Context(), "e.shop.6", claim(other, 6, nil)); err != nil {
		t.Fatal(err)
	}
	for _, damage := range []struct {
		what string
		err  error
		want error
	}{
		{"damaged bytes", store.ErrDigestMismatch, dr.ErrHeld},
		{"bytes that are not there yet", store.ErrNotFound, dr.ErrHeld},
		{"no answer", store.ErrUnreachable, dr.ErrOutcomeUnknown},
	} {
		r := b.HostOn("main", faults.New(t, b.Store, faults.Fault{Op: faults.GetManifest, Arg: "e.shop.6", Kind: faults.Before, Err: damage.err}))
		if err := r.PutRecord(t.Context(), "e.shop.6", claim(r, 6, nil)); !errors.Is(err, damage.want) || errors.Is(err, repo.ErrSquatted) {
			t.Errorf("%s: %v", damage.what, err)
		}
	}
	// Its number was given out and the tag deleted: it is nobody's.
	r := b.HostOn("main", faults.New(t, b.Store, faults.Fault{Op: faults.PutManifest, Arg: "e.shop.7", Kind: faults.Before, Err: store.ErrTagRetired}))
	if err := r.PutRecord(t.Context(), "e.shop.7", claim(r, 7, nil)); !errors.Is(err, repo.ErrSquatted) {
		t.Errorf("a retired number: %v", err)
	}
	recs, err := main.ListRecords(t.Context(), "e.shop.")
	if err != nil || len(recs) != 2 || recs[0].Number != 1 || recs[1].Number != 6 {
		t.Errorf("records %v, %v; want 1 and 6", recs, err)
	}
	problems, err := main.Check(t.Context())
	if err != nil || len(problems) != 4 {
		t.Fatalf("problems %v, %v", problems, err)
	}
	for _, p := range problems {
		if !p.Foreign() {
			t.Errorf("%v is not foreign", p)
		}
	}
}

const emptyJSON = `{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2}`
