package repo_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"lifeboat/internal/dr"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/repotest"
	"lifeboat/internal/seal"
	"lifeboat/internal/store"
	"lifeboat/internal/store/faults"
	"lifeboat/internal/store/memstore"
)

func recipient(t testing.TB, name string) (seal.Recipient, *age.X25519Identity) {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	rc, err := seal.ParseRecipient(name, id.Recipient().String())
	if err != nil {
		t.Fatal(err)
	}
	return rc, id
}

func open(t testing.TB, st store.Store, o repo.OpenOptions) (*repo.Repo, error) {
	t.Helper()
	r, err := repo.Open(t.Context(), st, o)
	if err == nil {
		t.Cleanup(func() {
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	return r, err
}

func TestCreateAndOpen(t *testing.T) {
	t.Parallel()
	ops, opsID := recipient(t, "ops")
	pass, err := seal.PassphraseRecipient("paper", "correct horse", 5)
	if err != nil {
		t.Fatal(err)
	}
	st := memstore.New()
	if _, err := open(t, st, repo.OpenOptions{Identities: []age.Identity{opsID}}); !errors.Is(err, dr.ErrNotFound) {
		t.Fatalf("open where there is none: %v", err)
	}
	if _, err := repo.Create(t.Context(), st, repo.CreateOptions{}); !errors.Is(err, dr.ErrUsage) {
		t.Fatalf("create for nobody: %v", err)
	}
	var notices []string
	r, err := repo.Create(t.Context(), st, repo.CreateOptions{
		Recipients: []seal.Recipient{ops, pass}, Host: seal.NewHostKey(), HostName: "main",
		Notice: func(s string) { notices = append(notices, s) },
	})
	if err != nil {
		t.Fatal(err)
	}
	id, fp := r.ID(), r.Fingerprint()
	if len(notices) != 1 || !strings.Contains(notices[0], r.HostID().Short()) {
		t.Errorf("notices %q", notices)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := repo.Create(t.Context(), st, repo.CreateOptions{Recipients: []seal.Recipient{ops}}); !errors.Is(err, dr.ErrHeld) {
		t.Fatalf("create twice: %v", err)
	}
	_, stranger := recipient(t, "stranger")
	asked := 0
	ask := func(answer string) func() (string, error) {
		return func() (string, error) { asked++; return answer, nil }
	}
	for _, tc := range []struct {
		name string
		o    repo.OpenOptions
		want error
	}{
		{"identity", repo.OpenOptions{Identities: []age.Identity{opsID}, Passphrase: func() (string, error) { return "", errors.New("asked for nothing") }}, nil},
		{"passphrase", repo.OpenOptions{Passphrase: ask("correct horse")}, nil},
		{"right kit", repo.OpenOptions{Identities: []age.Identity{opsID}, Expect: &repo.Expected{Repo: id, Fingerprint: fp}}, nil},
		{"wrong kit", repo.OpenOptions{Identities: []age.Identity{opsID}, Expect: &repo.Expected{Repo: id}}, dr.ErrTampered},
		{"wrong identity", repo.OpenOptions{Identities: []age.Identity{stranger}}, dr.ErrWrongKey},
		{"wrong passphrase", repo.OpenOptions{Passphrase: ask("battery staple")}, dr.ErrWrongKey},
		{"nothing", repo.OpenOptions{}, dr.ErrWrongKey},
		{"state without a place", repo.OpenOptions{Local: repo.Local{StateDir: t.TempDir()}}, dr.ErrUsage},
	} {
		got, err := open(t, st, tc.o)
		if !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
		if err == nil && (got.ID() != id || got.Fingerprint() != fp) {
			t.Errorf("%s: another repository", tc.name)
		}
	}
	if asked != 2 {
		t.Errorf("a passphrase was asked for %d times", asked)
	}
}

// Each call that creates a repository fails in each way: afterwards there is
// either none, or one that its recipient opens (invariant 8).
func TestCreateFaults(t *testing.T) {
	t.Parallel()
	ops, id := recipient(t, "ops")
	create := func(st store.Store) error {
		r, err := repo.Create(t.Context(), st, repo.CreateOptions{Recipients: []seal.Recipient{ops}, Host: seal.NewHostKey()})
		if err == nil {
			err = r.Close()
		}
		return err
	}
	probe := faults.New(t, memstore.New())
	if err := create(probe); err != nil {
		t.Fatal(err)
	}
	for call := 1; call <= len(probe.Calls()); call++ {
		for _, kind := range []faults.Kind{faults.Before, faults.After, faults.Duplicate} {
			st := memstore.New()
			err := create(faults.New(t, st, faults.Fault{Call: call, Kind: kind}))
			r, oerr := open(t, st, repo.OpenOptions{Identities: []age.Identity{id}, Host: seal.NewHostKey()})
			switch {
			case oerr == nil:
				mustHold(t, r, mustSnapshot(t, r, "shop", nil, content(1, 3)), content(1, 3))
			case err == nil || !errors.Is(oerr, dr.ErrNotFound):
				t.Errorf("call %d kind %d: created %v, opened %v", call, kind, err, oerr)
			default:
				if err := create(st); err != nil {
					t.Errorf("call %d kind %d: again: %v", call, kind, err)
				}
			}
		}
	}
}

func TestAddRemoveRotate(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	main := b.Host("main")
	units := content(1, 20)
	old := mustSnapshot(t, main, "shop", nil, units)

	laptop, laptopID := recipient(t, "laptop")
	if err := main.AddKey(t.Context(), laptop); err != nil {
		t.Fatal(err)
	}
	if err := main.AddKey(t.Context(), laptop); !errors.Is(err, dr.ErrHeld) {
		t.Errorf("the same name twice: %v", err)
	}
	lo := b.Options("laptop")
	lo.Identities = []age.Identity{laptopID}
	reader, err := open(t, b.Store, lo) // stays open over what follows
	if err != nil {
		t.Fatal(err)
	}
	mustHold(t, reader, old, units)

	pass, err := seal.PassphraseRecipient("paper", "p", 4)
	if err != nil {
		t.Fatal(err)
	}
	if err := main.AddKey(t.Context(), pass); err != nil {
		t.Fatal(err)
	}
	if err := main.RotateKey(t.Context(), nil); !errors.Is(err, dr.ErrUsage) {
		t.Errorf("rotate without the passphrase: %v", err)
	}
	again := func(name string) (seal.Recipient, error) { return seal.PassphraseRecipient(name, "p", 4) }
	if err := main.RotateKey(t.Context(), again); err != nil {
		t.Fatal(err)
	}
	keys, gen, err := main.Keys(t.Context())
	if err != nil || gen != 2 || len(keys) != 3 || keys[0].Name != "test" || keys[2].Recipient != "passphrase" {
		t.Fatalf("keys %v, generation %d, %v", keys, gen, err)
	}
	// What is written with the new key is read by who had the old one open.
	second := mustSnapshot(t, main, "shop", old, append(bytes2(units), noise(2, 1000)))
	mustHold(t, reader, second, append(bytes2(units), noise(2, 1000)))

	if err := main.RemoveKey(t.Context(), "nobody", again); !errors.Is(err, dr.ErrNotFound) {
		t.Errorf("remove who is not there: %v", err)
	}
	if err := main.RemoveKey(t.Context(), "laptop", again); err != nil {
		t.Fatal(err)
	}
	knew := b.Options("main") // whose pins have seen the generation that took the key away
	knew.Identities = []age.Identity{laptopID}
	lo.StateDir, lo.Location = "", ""
	for name, o := range map[string]repo.OpenOptions{"fresh": lo, "pinned": knew} {
		var closed *repo.ClosedError
		if _, err := open(t, b.Store, o); !errors.Is(err, dr.ErrWrongKey) || !errors.As(err, &closed) || !closed.Removed || closed.Since.IsZero() || closed.Number != 5 {
			t.Errorf("a removed key, %s: %v", name, err)
		} else if slices.ContainsFunc(closed.Recipients, func(k repo.KeyInfo) bool { return k.Name == "laptop" }) || !closed.Passphrase() {
			t.Errorf("a removed key, %s: recipients %v", name, closed.Recipients)
		}
	}
	third := mustSnapshot(t, main, "shop", second, content(3, 10))
	if _, err := readAll(t.Context(), reader, third); err == nil {
		t.Error("a removed key reads what was written after it was removed")
	}
	if err := main.RemoveKey(t.Context(), "paper", nil); err != nil {
		t.Fatal(err)
	}
	if err := main.RemoveKey(t.Context(), "test", nil); !errors.Is(err, dr.ErrUsage) {
		t.Errorf("remove the last one: %v", err)
	}
	fresh := b.Host("fresh")
	mustHold(t, fresh, old, units)
	mustHold(t, fresh, third, content(3, 10))
}

// Two operators change the keys at once: one is told.
func TestKeyChangesCollide(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	other := b.Host("other")
	one, _ := recipient(t, "one")
	two, _ := recipient(t, "two")
	f := faults.Fault{Op: faults.PutManifest, Arg: "key.2", Kind: faults.Duplicate, Do: func() {
		if err := other.AddKey(t.Context(), two); err != nil {
			t.Error(err)
		}
	}}
	main := b.HostOn("main", faults.New(t, b.Store, f))
	if err := main.AddKey(t.Context(), one); !errors.Is(err, dr.ErrHeld) {
		t.Fatalf("error %v, want ErrHeld", err)
	}
	if err := main.AddKey(t.Context(), one); err != nil {
		t.Fatal(err)
	}
	if keys, _, err := b.Host("third").Keys(t.Context()); err != nil || len(keys) != 3 {
		t.Fatalf("%v, %v", keys, err)
	}
	// Nonsense under the next number does not keep anybody from changing keys.
	putKeyTag(t, b.Store, 4, []byte(`{"nonsense":true}`))
	three, _ := recipient(t, "three")
	if err := main.AddKey(t.Context(), three); err != nil {
		t.Fatal(err)
	}
	if keys, _, err := main.Keys(t.Context()); err != nil || len(keys) != 4 {
		t.Fatalf("%v, %v", keys, err)
	}
}

// putKeyTag writes a key record as anybody with write access can.
func putKeyTag(t testing.TB, st store.Store, n int, record []byte) {
	t.Helper()
	body := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"artifactType":"application/vnd.lifeboat.key.v1","config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":%q,"size":2},"layers":[],"annotations":{"dev.lifeboat.record":%q}}`,
		ocispec.MediaTypeImageManifest, ocispec.DescriptorEmptyJSON.Digest, base64.StdEncoding.EncodeToString(record))
	if _, err := st.PutManifest(t.Context(), fmt.Sprintf("key.%d", n), ocispec.MediaTypeImageManifest, body); err != nil {
		t.Fatal(err)
	}
}

// secretOf opens the repository's secret, as a holder of its key can.
func secretOf(t testing.TB, b *repotest.Bed, n int) *seal.Secret {
	t.Helper()
	m, err := b.Store.GetManifest(t.Context(), fmt.Sprintf("key.%d", n))
	if err != nil {
		t.Fatal(err)
	}
	var j ocispec.Manifest
	if err := json.Unmarshal(m.Body, &j); err != nil {
		t.Fatal(err)
	}
	raw, err := base64.StdEncoding.DecodeString(j.Annotations["dev.lifeboat.record"])
	if err != nil {
		t.Fatal(err)
	}
	k, err := seal.ParseKeyRecord(raw)
	if err != nil {
		t.Fatal(err)
	}
	s, err := k.Open([]age.Identity{b.Identity}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func encodeKey(t testing.TB, s *seal.Secret, n dr.Number, rc seal.Recipient) []byte {
	t.Helper()
	w, err := seal.WrapFor(s, rc)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := seal.EncodeKeyRecord(s, n, []seal.Wrap{w})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// A key record that somebody else made: for public keys are public, anybody can
// wrap a secret of his own for them.
func TestForgedKeyRecords(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name  string
		forge func(t *testing.T, b *repotest.Bed)
		// known: a host that has used the repository goes on; a new one without a
		// kit refuses
		fresh error
	}{
		{"of another secret", func(t *testing.T, b *repotest.Bed) {
			putKeyTag(t, b.Store, 2, encodeKey(t, seal.NewSecret(), 2, b.Recipient))
		}, dr.ErrTampered},
		{"garbage", func(t *testing.T, b *repotest.Bed) {
			putKeyTag(t, b.Store, 2, []byte("garbage"))
		}, dr.ErrTampered},
		{"the first one again under a new number", func(t *testing.T, b *repotest.Bed) {
			putKeyTag(t, b.Store, 2, encodeKey(t, secretOf(t, b, 1), 1, b.Recipient))
		}, dr.ErrTampered},
		{"a generation made by a removed recipient", func(t *testing.T, b *repotest.Bed) {
			old := secretOf(t, b, 1)
			main := b.Host("main")
			if err := main.RotateKey(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			forged, err := old.Rotated() // knows generation 1 only
			if err != nil {
				t.Fatal(err)
			}
			putKeyTag(t, b.Store, 3, encodeKey(t, forged, 3, b.Recipient))
		}, nil}, // who has nothing to compare with cannot tell: the kit and first use are the anchor
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := repotest.NewBed(t)
			main := b.Host("main")
			units := content(1, 5)
			s := mustSnapshot(t, main, "shop", nil, units)
			want := b.Host("main").ID()
			tc.forge(t, b)
			again, err := open(t, b.Store, b.Options("main"))
			if err != nil {
				t.Fatalf("a host that knows the repository: %v", err)
			}
			if again.ID() != want {
				t.Fatal("another repository was taken for it")
			}
			mustHold(t, again, s, units)
			if _, err := open(t, b.Store, b.Options("fresh")); !errors.Is(err, tc.fresh) {
				t.Errorf("a host that does not: %v, want %v", err, tc.fresh)
			}
			kit := b.Options("kit")
			kit.Expect = &repo.Expected{Repo: want, Fingerprint: main.Fingerprint()}
			if _, err := open(t, b.Store, kit); err != nil {
				t.Errorf("with the kit: %v", err)
			}
		})
	}
}

// Another repository at the same address is refused, with what to do.
func TestRepositoryIsPinned(t *testing.T) {
	t.Parallel()
	a, b := repotest.NewBed(t), repotest.NewBed(t)
	mustSnapshot(t, a.Host("main"), "shop", nil, content(1, 3))
	o := a.Options("main")
	o.Identities = append(o.Identities, b.Identity)
	_, err := open(t, b.Store, o)
	if !errors.Is(err, dr.ErrTampered) || !strings.Contains(err.Error(), filepath.Join(o.StateDir, "pins")) {
		t.Fatalf("error %v, want ErrTampered that says what to delete", err)
	}
	o.Location = "mem://another"
	if _, err := open(t, b.Store, o); err != nil {
		t.Fatalf("at another address: %v", err)
	}
}

// TestOneKeyOneName: a key that is there is not added under another name, for then
// removing the one name would leave it in force. Where earlier versions did, it is
// removed under all its names.
func TestOneKeyOneName(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	main := b.Host("main")
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	kit := func(name string) seal.Recipient {
		rc, err := seal.ParseRecipient(name, id.Recipient().String())
		if err != nil {
			t.Fatal(err)
		}
		return rc
	}
	if err := main.AddKey(t.Context(), kit("kit")); err != nil {
		t.Fatal(err)
	}
	if err := main.AddKey(t.Context(), kit("kit2")); !errors.Is(err, dr.ErrHeld) || !strings.Contains(err.Error(), `under the name "kit"`) {
		t.Errorf("the same key again: %v", err)
	}
	if keys, _, err := main.Keys(t.Context()); err != nil || len(keys) != 2 {
		t.Fatalf("%v, %v", keys, err)
	}
	// Two passphrases are two keys.
	for _, name := range []string{"one", "two"} {
		if err := main.AddKey(t.Context(), passphraseOf(t, name)); err != nil {
			t.Fatal(err)
		}
	}

	var wraps []seal.Wrap
	secret := secretOf(t, b, 4)
	for _, rc := range []seal.Recipient{b.Recipient, kit("kit"), passphraseOf(t, "one"), kit("kit2"), passphraseOf(t, "two")} {
		w, err := seal.WrapFor(secret, rc)
		if err != nil {
			t.Fatal(err)
		}
		wraps = append(wraps, w)
	}
	raw, err := seal.EncodeKeyRecord(secret, 5, wraps)
	if err != nil {
		t.Fatal(err)
	}
	putKeyTag(t, b.Store, 5, raw)
	main = b.Host("main")
	keys, _, err := main.Keys(t.Context())
	if err != nil || !slices.Equal(repo.SameKey(keys, "kit"), []string{"kit", "kit2"}) || !slices.Equal(repo.SameKey(keys, "one"), []string{"one"}) || repo.SameKey(keys, "nobody") != nil {
		t.Fatalf("%v, %v", keys, err)
	}
	if err := main.RemoveKey(t.Context(), "kit", func(name string) (seal.Recipient, error) { return passphraseOf(t, name), nil }); err != nil {
		t.Fatal(err)
	}
	if keys, _, err = main.Keys(t.Context()); err != nil || len(keys) != 3 || slices.ContainsFunc(keys, func(k repo.KeyInfo) bool { return k.Recipient == id.Recipient().String() }) {
		t.Errorf("%v, %v", keys, err)
	}
	o := b.Options("holder of the kit")
	o.Identities = []age.Identity{id}
	if _, err := open(t, b.Store, o); !errors.Is(err, dr.ErrWrongKey) {
		t.Errorf("with the removed key: %v", err)
	}
}
