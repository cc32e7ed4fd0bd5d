package repo_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"lifeboat/internal/dr"
	"lifeboat/internal/fence"
	"lifeboat/internal/kit"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/readlog"
	"lifeboat/internal/repo/repotest"
	"lifeboat/internal/seal"
	"lifeboat/internal/store/memstore"
)

var update = flag.Bool("update", false, "write the stored repository of format 1 anew")

// golden is a stored repository of format 1. It is written once; every later
// version of the code must read it.
const golden = "testdata/format1"

// goldenFacts is what must be found in it.
type goldenFacts struct {
	Repo        dr.RepoID             `json:"repo"`
	Fingerprint seal.Fingerprint      `json:"fingerprint"`
	Hosts       map[string]dr.HostID  `json:"hosts"`
	Snapshots   map[string]goldenSnap `json:"snapshots"` // by tag
	// Trees are those of the snapshots of goldenSystem, by tag.
	Trees map[string][]goldenTree `json:"trees"`
	// Places are the tags under which relocated snapshots lie.
	Places map[string]string `json:"places"`
}

type goldenSnap struct {
	ID    dr.SnapshotID `json:"id"`
	Host  dr.HostID     `json:"host"`
	Seeds []uint64      `json:"seeds"` // of goldenUnits
}

// goldenUnits makes a few units of both kinds for each seed.
func goldenUnits(seeds []uint64) (out [][]byte) {
	for _, seed := range seeds {
		out = append(out, noise(seed, 700), text(seed, 3000), noise(seed+1, 9000))
	}
	return out
}

func TestGoldenRepository(t *testing.T) {
	t.Parallel()
	if *update {
		writeGolden(t)
	}
	var facts goldenFacts
	b, err := os.ReadFile(filepath.Join(golden, "facts.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &facts); err != nil {
		t.Fatal(err)
	}
	key, err := os.Open(filepath.Join(golden, "identity.txt"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = key.Close() }()
	ids, err := age.ParseIdentities(key)
	if err != nil {
		t.Fatal(err)
	}
	paper, err := os.Open(filepath.Join(golden, "kit.txt"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = paper.Close() }()
	k, err := kit.Parse(paper)
	if err != nil {
		t.Fatal(err)
	}
	fromKit := repo.OpenOptions{Expect: &repo.Expected{Repo: k.Repository, Witnesses: map[seal.Generation]string{}}, Marks: map[string]dr.Number{}}
	if err := fromKit.Expect.Fingerprint.UnmarshalText([]byte(k.Fingerprint)); err != nil {
		t.Fatal(err)
	}
	for g, w := range k.Generations {
		fromKit.Expect.Witnesses[seal.Generation(g)] = w
	}
	for prefix, n := range k.HighWater {
		fromKit.Marks[prefix] = dr.Number(n)
	}
	if fromKit.Identities, err = age.ParseIdentities(strings.NewReader(k.Identity)); err != nil || len(fromKit.Marks) < 7 {
		t.Fatalf("%v, %v", fromKit.Marks, err)
	}
	for name, o := range map[string]repo.OpenOptions{
		"identity":   {Identities: ids},
		"passphrase": {Passphrase: func() (string, error) { return "open sesame", nil }},
		"kit":        fromKit, // as recover --kit opens it
	} {
		if o.Expect == nil {
			o.Expect = &repo.Expected{Repo: facts.Repo, Fingerprint: facts.Fingerprint}
		}
		o.Host = seal.NewHostKey()
		r, err := open(t, loadGolden(t, golden), o)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		checkGolden(t, r, facts)
	}
}

func checkGolden(t *testing.T, r *repo.Repo, facts goldenFacts) {
	t.Helper()
	snaps, problems, err := r.Snapshots(t.Context(), "")
	if err != nil || len(problems) != 0 || len(snaps) != len(facts.Snapshots)+len(facts.Trees) || len(facts.Trees) < 2 {
		t.Fatalf("%d snapshots, %v, %v", len(snaps), problems, err)
	}
	for i := range snaps {
		s := &snaps[i]
		if at := facts.Places[s.Tag]; at != "" && s.Place != at || at == "" && s.Place != s.Tag {
			t.Fatalf("%s lies under %s, want %q", s.Tag, s.Place, at)
		}
		if s.System == goldenSystem {
			checkGoldenSystem(t, r, s, facts.Trees[s.Tag])
			continue
		}
		want := facts.Snapshots[s.Tag]
		if s.ID != want.ID || s.Host != want.Host || s.Freeze.Microseconds() != 1500 {
			t.Fatalf("%s: %+v", s.Tag, s)
		}
		mustHold(t, r, s, goldenUnits(want.Seeds))
	}
	whole := repo.ExamineOptions{Only: func(s *repo.Snapshot) bool { return s.System == goldenSystem }, Scope: string(goldenSystem), Read: &readlog.Subset{}}
	if x := examine(t, r, whole); len(x.Problems) != 0 {
		t.Fatalf("verify: %v", x.Problems)
	}
	if problems, err := r.ListsAsCatalogs().Verify(t.Context(), nil); err != nil || len(problems) != 0 {
		t.Fatalf("verify: %v, %v", problems, err)
	}
	last, err := r.Latest(t.Context(), repo.ClassEpoch, "shop")
	if err != nil || last.Tag != "e.shop.2" || last.Host != facts.Hosts["b"] {
		t.Fatalf("epoch: %v, %v", last, err)
	}
	head, err := r.Find(t.Context(), "shop", "")
	if err != nil || head.Tag != "s.shop.3" {
		t.Fatalf("head: %v, %v", head, err)
	}
	move, err := r.Latest(t.Context(), repo.ClassSwitch, "shop")
	if err != nil || move.Tag != "w.shop.1" || !strings.Contains(string(move.Body), "offer") {
		t.Fatalf("switch record: %v, %v", move, err)
	}
	hosts, err := r.Hosts(t.Context())
	if err != nil || len(hosts) != 4 {
		t.Fatalf("hosts: %v, %v", hosts, err)
	}
	for _, h := range hosts {
		if facts.Hosts[h.Name] != h.ID || h.Revoked.IsZero() != (h.Name != "c") {
			t.Fatalf("host: %+v", h)
		}
	}
	// It can be gone on with.
	next := mustSnapshot(t, r, "shop", head, goldenUnits([]uint64{5, 900}))
	mustHold(t, r, next, goldenUnits([]uint64{5, 900}))
}

// loadGolden reads a stored repository.
func loadGolden(t *testing.T, golden string) *memstore.Store {
	t.Helper()
	st := memstore.New()
	blobs, err := os.ReadDir(filepath.Join(golden, "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range blobs {
		b, err := os.ReadFile(filepath.Join(golden, "blobs", e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := st.PutBlob(t.Context(), digest.NewDigestFromEncoded(digest.SHA256, e.Name()), int64(len(b)), openerOf(b)); err != nil {
			t.Fatal(err)
		}
	}
	manifests, err := os.ReadDir(filepath.Join(golden, "manifests"))
	if err != nil {
		t.Fatal(err)
	}
	for _, indexes := range []bool{false, true} { // what is listed comes before what lists it
		for _, e := range manifests {
			b, err := os.ReadFile(filepath.Join(golden, "manifests", e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			tag := strings.TrimSuffix(e.Name(), ".json")
			if (strings.HasPrefix(tag, "s.") || strings.HasPrefix(tag, "r.")) != indexes {
				continue
			}
			media := ocispec.MediaTypeImageManifest
			if indexes {
				media = ocispec.MediaTypeImageIndex
			}
			if _, err := st.PutManifest(t.Context(), tag, media, b); err != nil {
				t.Fatal(err)
			}
		}
	}
	return st
}

// writeGolden makes the stored repository: tags of every class, two key
// generations, four hosts of which one is revoked, epochs and a move, merged pack
// manifests, snapshots that were relocated, trees with one of everything, and
// images.
func writeGolden(t *testing.T) {
	t.Helper()
	b := repotest.NewBed(t)
	if err := os.RemoveAll(golden); err != nil {
		t.Fatal(err)
	}
	hosts := map[string]*repo.Repo{"a": b.Host("a"), "b": b.Host("b"), "c": b.Host("c"), "d": b.Host("d")}
	facts := goldenFacts{Repo: hosts["a"].ID(), Fingerprint: hosts["a"].Fingerprint(), Hosts: map[string]dr.HostID{}, Snapshots: map[string]goldenSnap{}, Trees: map[string][]goldenTree{}, Places: map[string]string{}}
	take := func(host string, sys dr.System, epoch dr.Epoch, seeds ...uint64) *repo.Snapshot {
		t.Helper()
		r := hosts[host]
		facts.Hosts[host] = r.HostID()
		o := repo.WriterOptions{System: sys}
		if p, err := r.Find(t.Context(), sys, ""); err == nil {
			o.Parent = p
		}
		w, err := r.NewWriter(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		w.SetLimits(1<<40, 1<<30, 2, 1<<40)
		refs, err := putAll(t.Context(), w, goldenUnits(seeds))
		if err != nil {
			t.Fatal(err)
		}
		root := rootOf(refs, "main")
		root.Epoch = epoch
		s, err := w.Commit(t.Context(), root, repo.CommitInfo{FreezeMicros: 1500})
		if err != nil {
			t.Fatal(err)
		}
		facts.Snapshots[s.Tag] = goldenSnap{s.ID, s.Host, seeds}
		return s
	}
	put := func(host string, epoch dr.Epoch, base *repo.Snapshot, reason fence.Reason) {
		t.Helper()
		c := claim(hosts[host], epoch, base)
		c.Reason = reason
		if err := hosts[host].PutRecord(t.Context(), fmt.Sprintf("e.shop.%d", epoch), c); err != nil {
			t.Fatal(err)
		}
	}
	pass, err := seal.PassphraseRecipient("paper", "open sesame", 4)
	if err != nil {
		t.Fatal(err)
	}
	if err := hosts["a"].AddKey(t.Context(), pass); err != nil {
		t.Fatal(err)
	}
	put("a", 1, nil, fence.ReasonProtect)
	take("a", "shop", 1, 1, 2)
	second := take("a", "shop", 1, 1, 2, 3)
	take("c", "blog", 0, 1, 4)
	takeGoldenSystem(t, hosts["a"], &facts, 1)
	again := func(name string) (seal.Recipient, error) { return seal.PassphraseRecipient(name, "open sesame", 4) }
	if err := hosts["a"].RotateKey(t.Context(), again); err != nil {
		t.Fatal(err)
	}
	put("b", 2, second, fence.ReasonFailover)
	take("b", "shop", 2, 2, 5)
	if err := hosts["a"].Revoke(t.Context(), hosts["c"].HostID(), nil); err != nil {
		t.Fatal(err)
	}
	takeGoldenSystem(t, hosts["d"], &facts, 2) // enrols after the revocation and tells of it
	facts.Hosts["d"] = hosts["d"].HostID()
	offer := map[string]any{"format": 1, "host": hosts["b"].HostID(), "system": "shop", "step": "offer"}
	if err := hosts["b"].PutRecord(t.Context(), "w.shop.1", offer); err != nil {
		t.Fatal(err)
	}
	for _, drop := range []bool{false, true} {
		tag := map[bool]string{false: "s.shop.1", true: "s.shop.2"}[drop]
		s, err := hosts["a"].Find(t.Context(), "shop", "#"+tag[len(tag)-1:])
		if err != nil {
			t.Fatal(err)
		}
		moved := relocate(t, hosts["a"], s)
		facts.Places[tag] = moved.Place
		if drop {
			dropOlder(t, hosts["a"], moved, 1)
		}
	}
	saveGolden(t, b, facts)
}

// goldenKit is the recovery kit of the stored repository.
func goldenKit(t *testing.T, b *repotest.Bed) []byte {
	t.Helper()
	r := b.Host("a")
	if _, err := r.Check(t.Context()); err != nil { // so that it has seen everything
		t.Fatal(err)
	}
	for _, prefix := range []string{"e.shop.", "w.shop."} {
		if _, err := r.ListRecords(t.Context(), prefix); err != nil {
			t.Fatal(err)
		}
	}
	marks, err := r.Marks()
	if err != nil {
		t.Fatal(err)
	}
	k := kit.Kit{
		Created: time.Now().UTC().Truncate(time.Second), Repo: "oci://registry.example.org/golden", Repository: r.ID(), Fingerprint: r.Fingerprint().String(),
		Identity: b.Identity.String(), HighWater: map[string]uint64{}, Generations: map[uint32]string{},
	}
	for prefix, n := range marks {
		k.HighWater[prefix] = uint64(n)
	}
	for g, w := range r.Witnesses() {
		k.Generations[uint32(g)] = w
	}
	raw, err := k.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func saveGolden(t *testing.T, b *repotest.Bed, facts goldenFacts) {
	t.Helper()
	saveRepository(t, golden, b, facts, map[string][]byte{"kit.txt": goldenKit(t, b)})
}

// saveRepository stores a repository, what must be found in it, and other files.
func saveRepository(t *testing.T, golden string, b *repotest.Bed, facts any, others map[string][]byte) {
	t.Helper()
	write := func(name string, data []byte) {
		t.Helper()
		name = filepath.Join(golden, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, data := range others {
		write(name, data)
	}
	j, err := json.MarshalIndent(facts, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	write("facts.json", j)
	write("identity.txt", []byte("# The key of a repository that exists for tests only.\n"+b.Identity.String()+"\n"))
	for tag := range tagsOf(t, b.Store) {
		m, err := b.Store.GetManifest(t.Context(), tag)
		if err != nil {
			t.Fatal(err)
		}
		write("manifests/"+tag+".json", m.Body)
		if m.MediaType != ocispec.MediaTypeImageManifest {
			continue
		}
		var om ocispec.Manifest
		if err := json.Unmarshal(m.Body, &om); err != nil {
			t.Fatal(err)
		}
		for _, l := range append(om.Layers, om.Config) {
			write("blobs/"+l.Digest.Encoded(), blobBytes(t, b.Store, l.Digest, l.Size))
		}
	}
}
