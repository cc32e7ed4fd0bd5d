package repo_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"lifeboat/internal/dr"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/repotest"
	"lifeboat/internal/seal"
	"lifeboat/internal/store"
	"lifeboat/internal/store/memstore"
)

// dropKept removes the key records that a host keeps.
func dropKept(t *testing.T, o repo.OpenOptions) {
	t.Helper()
	for _, name := range keptOf(t, o) {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
}

// keptOf lists the files of the key records that a host keeps.
func keptOf(t *testing.T, o repo.OpenOptions) (names []string) {
	t.Helper()
	err := filepath.WalkDir(o.StateDir, func(name string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && filepath.Base(filepath.Dir(name)) == "keys" {
			names = append(names, name)
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return names
}

func spoilTag(t *testing.T, st *memstore.Store, tag string) {
	t.Helper()
	m, err := st.GetManifest(t.Context(), tag)
	if err != nil {
		t.Fatal(err)
	}
	if !st.CorruptManifest(m.Digest, flipFrom(60)(m.Body)) {
		t.Fatal("nothing was damaged")
	}
}

func vanishTag(t *testing.T, st *memstore.Store, tag string) {
	t.Helper()
	if err := st.DeleteTag(t.Context(), tag); err != nil {
		t.Fatal(err)
	}
}

// The only key record is damaged or gone: repair opens the repository with that of
// an exact copy, or with what this host keeps, and puts the same bytes back.
func TestRepairOfTheOnlyKeyRecord(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name  string
		harm  func(*testing.T, *memstore.Store, string)
		known bool // the host has used the repository
		kept  bool // and keeps its key records
		from  bool // an exact copy is named
		want  error
	}{
		{"damaged, from a mirror", spoilTag, true, false, true, nil},
		{"damaged, from a mirror, a new host", spoilTag, false, false, true, nil},
		{"gone, from a mirror", vanishTag, true, false, true, nil},
		{"damaged, from this host", spoilTag, true, true, false, nil},
		{"gone, from this host", vanishTag, true, true, false, nil},
		{"damaged, from nowhere", spoilTag, true, false, false, repo.ErrKeysDamaged},
		{"damaged, from nowhere, a new host", spoilTag, false, false, false, repo.ErrKeysDamaged},
		{"gone, from nowhere", vanishTag, true, false, false, repo.ErrKeysDamaged},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := repotest.NewBed(t)
			units := content(1, 5)
			s := mustSnapshot(t, b.Host("main"), "shop", nil, units)
			copied := b.Store.Clone()
			tc.harm(t, b.Store, "key.1")
			o := b.Options("main")
			if !tc.known {
				o = b.Options("new")
			}
			if !tc.kept {
				dropKept(t, o)
			}
			var from []repo.RepairSource
			if tc.from {
				if _, err := open(t, b.Store, o); !errors.Is(err, repo.ErrKeysDamaged) || !errors.Is(err, dr.ErrTampered) {
					t.Fatalf("without repair: %v", err)
				}
				o.KeysFrom = []repo.KeySource{{Location: "mem://copy", Store: copied}}
				from = []repo.RepairSource{{Name: "copy", Exact: copied}}
			}
			var notices []string
			o.Notice = func(s string) { notices = append(notices, s) }
			r, err := open(t, b.Store, o)
			if !errors.Is(err, tc.want) {
				t.Fatalf("%v, want %v", err, tc.want)
			}
			if err != nil {
				return
			}
			if !strings.Contains(strings.Join(notices, "\n"), "lifeboat repair") || !strings.Contains(notices[0], "key.1") {
				t.Errorf("told %q", notices)
			}
			if problems, err := r.Check(t.Context()); err != nil || len(problems) != 1 || problems[0].Tag != "key.1" || problems[0].Foreign() {
				t.Errorf("check: %v, %v", problems, err)
			}
			res, err := r.Repair(t.Context(), repo.RepairOptions{From: from})
			if err != nil || !res.Healed() || len(res.Steps) == 0 {
				t.Fatalf("%+v, %v", res, err)
			}
			want, _ := copied.GetManifest(t.Context(), "key.1")
			if have, err := b.Store.GetManifest(t.Context(), "key.1"); err != nil || cmp.Diff(want, have) != "" {
				t.Fatalf("not what it was: %v", err)
			}
			mustHold(t, b.Host("another"), s, units)
		})
	}
}

// What this host keeps of key records is private, is what the registry has, and
// hides nothing newer.
func TestKeptKeyRecords(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	main := b.Host("main")
	mustSnapshot(t, main, "shop", nil, content(1, 3))
	b.Host("other")
	if err := main.RotateKey(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	for _, name := range keptOf(t, b.Options("main")) {
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	if n := len(keptOf(t, b.Options("main"))); n != 2 {
		t.Errorf("%d are kept", n)
	}
	// A host that keeps key.1 alone opens with key.2, also where key.1 is damaged.
	spoilTag(t, b.Store, "key.1")
	_, gen, err := b.Host("other").Keys(t.Context())
	if err != nil || gen != 2 {
		t.Fatalf("generation %d, %v", gen, err)
	}
	// One that has seen key.2 takes no older one for it where it is not listed.
	vanishTag(t, b.Store, "key.2")
	if _, err := open(t, b.Store, b.Options("main")); !errors.Is(err, repo.ErrKeysDamaged) {
		t.Fatalf("%v", err)
	}
	// It is not given up while this host keeps it. Accepted, it does not come back.
	fork := b.Fork()
	o := fork.Options("main")
	dropKept(t, fork.Options("other"))
	o.AcceptOlder = true
	if _, err := open(t, fork.Store, o); !errors.Is(err, repo.ErrKeyKept) {
		t.Fatalf("%v", err)
	}
	for _, name := range keptOf(t, o) {
		if filepath.Base(name) == "key.2" {
			if err := os.Remove(name); err != nil {
				t.Fatal(err)
			}
		}
	}
	r, err := open(t, fork.Store, o)
	if err != nil {
		t.Fatal(err)
	}
	if res, err := r.Repair(t.Context(), repo.RepairOptions{}); err != nil || !res.Healed() {
		t.Fatalf("%v", err)
	}
	if _, err := fork.Store.ResolveTag(t.Context(), "key.2"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a record that was given up is there again: %v", err)
	}
}

// Key records of another place that are not of this repository open nothing.
func TestForeignKeysOpenNothing(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	mustSnapshot(t, b.Host("main"), "shop", nil, content(1, 3))
	other := memstore.New()
	forged := encodeKey(t, seal.NewSecret(), 1, b.Recipient)
	if _, err := other.PutBlob(t.Context(), ocispec.DescriptorEmptyJSON.Digest, 2, openerOf([]byte("{}"))); err != nil {
		t.Fatal(err)
	}
	putKeyTag(t, other, 1, forged)
	spoilTag(t, b.Store, "key.1")
	for _, name := range []string{"main", "new"} {
		o := b.Options(name)
		dropKept(t, o)
		o.KeysFrom = []repo.KeySource{{Location: "mem://other", Store: other}}
		if _, err := open(t, b.Store, o); !errors.Is(err, repo.ErrKeysDamaged) || !errors.Is(err, dr.ErrTampered) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What is damaged may be a newer key record: the keys are not changed beyond it.
func TestKeysAreNotChangedBeyondDamage(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	main := b.Host("main")
	b.Host("other")
	if err := main.RotateKey(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	spoilTag(t, b.Store, "key.2")
	err := b.Host("other").RotateKey(t.Context(), nil)
	if !errors.Is(err, dr.ErrHeld) || !strings.Contains(err.Error(), "lifeboat repair") {
		t.Fatalf("%v", err)
	}
}

// Tags of the class that are ordinary are ignored, and what squats on a number far
// away makes nothing before it missing.
func TestSquattedKeyTags(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	mustSnapshot(t, b.Host("main"), "shop", nil, content(1, 3))
	m, err := b.Store.GetManifest(t.Context(), "host.1")
	if err != nil {
		t.Fatal(err)
	}
	for _, tag := range []string{"key.0", "key.x", "key.9"} {
		b.Store.MoveTag(tag, m.Digest)
	}
	for _, name := range []string{"main", "new"} {
		problems, err := b.Host(name).Check(t.Context())
		if err != nil || len(problems) != 1 || problems[0].Tag != "key.9" || !problems[0].Foreign() {
			t.Errorf("%s: %v, %v", name, problems, err)
		}
	}
	// A record that is missing is, also below one that somebody squats on.
	main := b.Host("main")
	for range 2 {
		if err := main.RotateKey(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
	}
	vanishTag(t, b.Store, "key.2")
	problems, err := main.Check(t.Context())
	if err != nil || len(problems) != 2 {
		t.Fatalf("%v, %v", problems, err)
	}
	// Somebody's that claims to be a key record: a new host cannot tell, and says so.
	putKeyTag(t, b.Store, 12, encodeKey(t, seal.NewSecret(), 12, b.Recipient))
	if _, err := open(t, b.Store, b.Options("third")); !errors.Is(err, repo.ErrContradicting) || !errors.Is(err, dr.ErrTampered) {
		t.Errorf("%v", err)
	}
}

// The newest key record is gone from the registry. Everything refuses and says that
// this host keeps it; repair opens with what this host keeps, or with what a mirror
// has, and puts the same bytes back. (Invariants 5 and 11.)
func TestRepairOfTheNewestKeyRecord(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		change func(*testing.T, *repo.Repo)
		kept   bool // the host keeps its key records
		from   bool // an exact copy is named
		accept bool // and the operator accepts an older state at once
	}{
		{"added, this host", addOne, true, false, false},
		{"added, a mirror", addOne, false, true, false},
		{"added, this host, accepting", addOne, true, false, true},
		{"rotated, this host", rotateOnce, true, false, false},
		{"rotated, a mirror", rotateOnce, false, true, false},
		{"rotated, this host, accepting", rotateOnce, true, false, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := repotest.NewBed(t)
			main := b.Host("main")
			tc.change(t, main)
			units := content(1, 5)
			s := mustSnapshot(t, main, "shop", nil, units)
			copied := b.Store.Clone()
			vanishTag(t, b.Store, "key.2")
			o := b.Options("main")
			if !tc.kept {
				dropKept(t, o)
			}
			_, err := open(t, b.Store, o)
			if !errors.Is(err, repo.ErrKeysDamaged) || !errors.Is(err, dr.ErrTampered) || errors.Is(err, repo.ErrKeyKept) != tc.kept {
				t.Fatalf("without repair: %v", err)
			}
			o.ForRepair, o.AcceptOlder = true, tc.accept
			var from []repo.RepairSource
			if tc.from {
				o.KeysFrom = []repo.KeySource{{Location: "mem://copy", Store: copied}}
				from = []repo.RepairSource{{Name: "copy", Exact: copied}}
			}
			r, err := open(t, b.Store, o)
			if err != nil {
				t.Fatal(err)
			}
			res, err := r.Repair(t.Context(), repo.RepairOptions{From: from})
			if err != nil || !res.Healed() || len(res.Steps) != 1 || res.Steps[0].Tag != "key.2" {
				t.Fatalf("%+v, %v", res, err)
			}
			want, _ := copied.GetManifest(t.Context(), "key.2")
			if have, err := b.Store.GetManifest(t.Context(), "key.2"); err != nil || cmp.Diff(want, have) != "" {
				t.Fatalf("not what it was: %v", err)
			}
			mustHold(t, b.Host("another"), s, units)
		})
	}
}

func addOne(t *testing.T, r *repo.Repo) {
	t.Helper()
	if err := r.AddKey(t.Context(), passphraseOf(t, "spare")); err != nil {
		t.Fatal(err)
	}
}

func rotateOnce(t *testing.T, r *repo.Repo) {
	t.Helper()
	if err := r.RotateKey(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
}

// The host has never used the address, and knows the repository from another: what it
// keeps opens it all the same.
func TestRepairOfTheNewestKeyRecordAtAnotherAddress(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	rotateOnce(t, b.Host("main"))
	s := mustSnapshot(t, b.Host("main"), "shop", nil, content(1, 3))
	vanishTag(t, b.Store, "key.2")
	o := b.Options("main")
	o.Location = "mem://elsewhere"
	if _, err := open(t, b.Store, o); !errors.Is(err, repo.ErrKeyKept) {
		t.Fatalf("%v", err)
	}
	o.ForRepair = true
	r, err := open(t, b.Store, o)
	if err != nil {
		t.Fatal(err)
	}
	if res, err := r.Repair(t.Context(), repo.RepairOptions{}); err != nil || !res.Healed() {
		t.Fatalf("%+v, %v", res, err)
	}
	mustHold(t, b.Host("another"), s, content(1, 3))
}

// Accepting an older state gives up no key record that this host keeps. Where nothing
// has it any more, what is given up is told, and neither its number nor that of its
// key generation is given to another: who has it still is not contradicted.
func TestAcceptedKeyNumbersAreGivenToNobodyElse(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	main := b.Host("main")
	addOne(t, main) // key.2
	if err := main.RemoveKey(t.Context(), "spare", nil); err != nil {
		t.Fatal(err) // key.3, generation 2
	}
	mustSnapshot(t, main, "shop", nil, content(1, 3))
	mirror := b.Store.Clone()
	vanishTag(t, b.Store, "key.2")
	vanishTag(t, b.Store, "key.3")

	o := b.Options("main")
	o.AcceptOlder = true
	if _, err := open(t, b.Store, o); !errors.Is(err, repo.ErrKeyKept) || !errors.Is(err, repo.ErrKeysDamaged) || !strings.Contains(err.Error(), "lifeboat repair") {
		t.Fatalf("%v", err)
	}
	if n := len(keptOf(t, o)); n != 3 {
		t.Fatalf("%d are kept", n)
	}
	dropKept(t, o)
	b.HostOn("old", mirror) // has seen generation 2
	var notices []string
	o.Notice = func(s string) { notices = append(notices, s) }
	r, err := open(t, b.Store, o)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(strings.Join(notices, "\n"), "key records after number 1 are given up") {
		t.Errorf("told %q", notices)
	}
	// The snapshot is named as what it is, and not left out in silence.
	if problems, err := r.Check(t.Context()); err != nil || !strings.Contains(joined(problems), "newer") {
		t.Errorf("%v, %v", problems, err)
	}
	rotateOnce(t, r)
	if _, err := b.Store.ResolveTag(t.Context(), "key.4"); err != nil {
		t.Fatalf("the next key record: %v", err)
	}
	_, gen, err := b.Host("main").Keys(t.Context())
	if err != nil || gen != 3 {
		t.Fatalf("generation %d, %v", gen, err)
	}
	rotateOnce(t, b.Host("main"))
	for _, name := range []string{"main", "newcomer"} {
		problems, err := b.Host(name).Check(t.Context())
		if err != nil || strings.Contains(joined(problems), "key.") && strings.Contains(joined(problems), "the record is missing") {
			t.Errorf("%s: %v, %v", name, problems, err)
		}
	}
	// A process that was running when the older state was accepted follows.
	if _, gen, err := r.Keys(t.Context()); err != nil || gen != 4 {
		t.Errorf("generation %d, %v", gen, err)
	}

	// The mirror's old records contradict nothing: they come back, and it goes on.
	from := []repo.RepairSource{{Name: "mirror", Exact: mirror}}
	last := b.Host("main")
	if _, err := last.Repair(t.Context(), repo.RepairOptions{From: from}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Store.ResolveTag(t.Context(), "key.3"); err != nil {
		t.Error(err)
	}
	if _, err := last.MirrorTo(t.Context(), mirror, repo.MirrorOptions{}); err != nil {
		t.Error(err)
	}

	// A host that has seen what was given up does not go its own way in silence.
	old := b.Options("old")
	old.Notice = func(s string) { notices = append(notices, s) }
	if _, err := open(t, b.Store, old); err != nil {
		t.Fatal(err)
	}
	if told := strings.Join(notices, "\n"); !strings.Contains(told, "key record key.5 is passed over") || !strings.Contains(told, "--accept-older") {
		t.Errorf("told %q", notices)
	}
	old.AcceptOlder = true
	follows, err := open(t, b.Store, old)
	if err != nil {
		t.Fatal(err)
	}
	if _, gen, err := follows.Keys(t.Context()); err != nil || gen != 4 {
		t.Errorf("generation %d, %v", gen, err)
	}
}

func joined(problems []repo.Problem) string {
	var out []string
	for _, p := range problems {
		out = append(out, p.String())
	}
	return strings.Join(out, "\n")
}
