package seal_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"filippo.io/age"
	"pgregory.net/rapid"

	"lifeboat/internal/dr"
	"lifeboat/internal/seal"
)

func recipient(t testing.TB, name string) (seal.Recipient, age.Identity) {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	r, err := seal.ParseRecipient(name, id.Recipient().String())
	if err != nil {
		t.Fatal(err)
	}
	return r, id
}

func keyRecord(t testing.TB, s *seal.Secret, n dr.Number, rs ...seal.Recipient) []byte {
	t.Helper()
	var ws []seal.Wrap
	for _, r := range rs {
		w, err := seal.WrapFor(s, r)
		if err != nil {
			t.Fatal(err)
		}
		ws = append(ws, w)
	}
	raw, err := seal.EncodeKeyRecord(s, n, ws)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func open(raw []byte, ids []age.Identity, pass string) (*seal.Secret, error) {
	k, err := seal.ParseKeyRecord(raw)
	if err != nil {
		return nil, err
	}
	var f func() (string, error)
	if pass != "" {
		f = func() (string, error) { return pass, nil }
	}
	return k.Open(ids, f)
}

func TestKeyRecordOpensForItsRecipientsOnly(t *testing.T) {
	t.Parallel()
	s := seal.NewSecret()
	ops, opsID := recipient(t, "ops")
	laptop, laptopID := recipient(t, "laptop")
	_, otherID := recipient(t, "stranger")
	hybridID, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	hybrid, err := seal.ParseRecipient("vault", hybridID.Recipient().String())
	if err != nil {
		t.Fatal(err)
	}
	pass, err := seal.PassphraseRecipient("paper", "correct horse", 4)
	if err != nil {
		t.Fatal(err)
	}
	raw := keyRecord(t, s, 1, ops, laptop, pass, hybrid)
	for _, tc := range []struct {
		name string
		ids  []age.Identity
		pass string
		want error
	}{
		{name: "first recipient", ids: []age.Identity{opsID}},
		{name: "second recipient", ids: []age.Identity{otherID, laptopID}},
		{name: "hybrid recipient", ids: []age.Identity{hybridID}},
		{name: "passphrase", pass: "correct horse"},
		{name: "passphrase after a strange identity", ids: []age.Identity{otherID}, pass: "correct horse"},
		{name: "strange identity", ids: []age.Identity{otherID}, want: dr.ErrWrongKey},
		{name: "wrong passphrase", pass: "battery staple", want: dr.ErrWrongKey},
		{name: "nothing at hand", want: dr.ErrWrongKey},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got, err := open(raw, tc.ids, tc.pass)
			if !errors.Is(err, tc.want) {
				t.Fatalf("error %v, want %v", err, tc.want)
			}
			if tc.want == nil && (!got.Extends(s) || !s.Extends(got)) {
				t.Fatal("another secret came out")
			}
		})
	}
}

func TestKeyRecordForgedOrAltered(t *testing.T) {
	t.Parallel()
	s, other := seal.NewSecret(), seal.NewSecret()
	ops, opsID := recipient(t, "ops")
	raw := keyRecord(t, s, 1, ops)

	t.Run("every bit flip is noticed", func(t *testing.T) {
		for i := 0; i < len(raw); i += 7 {
			bad := bytes.Clone(raw)
			bad[i] ^= 1 << (i % 8)
			if _, err := open(bad, []age.Identity{opsID}, ""); err == nil {
				t.Fatalf("byte %d flipped and nothing noticed", i)
			} else if !errors.Is(err, dr.ErrTampered) && !errors.Is(err, dr.ErrWrongKey) {
				t.Fatalf("byte %d: error %v is of neither kind", i, err)
			}
		}
	})
	t.Run("somebody else's secret wrapped for the same recipient", func(t *testing.T) {
		k, err := seal.ParseKeyRecord(keyRecord(t, other, 2, ops))
		if err != nil {
			t.Fatal(err)
		}
		if err := k.Verify(s); !errors.Is(err, dr.ErrTampered) {
			t.Fatalf("error %v, want ErrTampered", err)
		}
	})
	t.Run("a wrap of another repository moved in", func(t *testing.T) {
		w, err := seal.WrapFor(other, ops)
		if err != nil {
			t.Fatal(err)
		}
		bad, err := seal.EncodeKeyRecord(s, 1, []seal.Wrap{w})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := open(bad, []age.Identity{opsID}, ""); !errors.Is(err, dr.ErrTampered) {
			t.Fatalf("error %v, want ErrTampered", err)
		}
	})
	t.Run("an expensive passphrase is refused without paying", func(t *testing.T) {
		// 2^22 would take 4 GiB of memory.
		pass, err := seal.PassphraseRecipient("paper", "p", 4)
		if err != nil {
			t.Fatal(err)
		}
		w, err := seal.WrapFor(s, pass)
		if err != nil {
			t.Fatal(err)
		}
		w.Age = bytes.Replace(w.Age, []byte(" 4\n"), []byte(" 22\n"), 1)
		bad, err := seal.EncodeKeyRecord(s, 1, []seal.Wrap{w})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := open(bad, nil, "p"); !errors.Is(err, dr.ErrTampered) {
			t.Fatalf("error %v, want ErrTampered", err)
		}
	})
}

func TestRecipientsAreChecked(t *testing.T) {
	t.Parallel()
	if _, err := seal.ParseRecipient("x", "age1nonsense"); !errors.Is(err, dr.ErrUsage) {
		t.Errorf("bad public key: %v", err)
	}
	if _, err := seal.PassphraseRecipient("x", "", 4); !errors.Is(err, dr.ErrUsage) {
		t.Errorf("empty passphrase: %v", err)
	}
	if _, err := seal.PassphraseRecipient("x\n", "p", 4); !errors.Is(err, dr.ErrUsage) {
		t.Errorf("control character in a name: %v", err)
	}
	if _, err := seal.PassphraseRecipient("x", "p", 30); !errors.Is(err, dr.ErrUsage) {
		t.Errorf("work factor out of bounds: %v", err)
	}
	r, _ := recipient(t, "twice")
	w, err := seal.WrapFor(seal.NewSecret(), r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := seal.EncodeKeyRecord(seal.NewSecret(), 1, []seal.Wrap{w, w}); !errors.Is(err, dr.ErrUsage) {
		t.Errorf("two recipients of one name: %v", err)
	}
}

func TestRotatedKeepsOldKeys(t *testing.T) {
	t.Parallel()
	s := seal.NewSecret()
	old := seal.NewRing(s)
	sealed, err := old.SealRecord("e.shop.1", []byte("{}"))
	if err != nil {
		t.Fatal(err)
	}
	n, err := s.Rotated()
	if err != nil {
		t.Fatal(err)
	}
	if n.Generation() != 2 || s.Generation() != 1 || !n.Extends(s) || s.Extends(n) || n.Fingerprint() != s.Fingerprint() {
		t.Fatal("a rotated secret is not the old one and one key more")
	}
	fresh := seal.NewRing(n)
	if _, err := fresh.OpenRecord("e.shop.1", sealed); err != nil {
		t.Fatalf("old record under the new generation: %v", err)
	}
	sealed, err = fresh.SealRecord("e.shop.2", []byte("{}"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := old.OpenRecord("e.shop.2", sealed); !errors.Is(err, seal.ErrGeneration) {
		t.Fatalf("new record under the old generation: %v, want ErrGeneration", err)
	}
	w1, _ := s.Witness(1)
	w2, _ := n.Witness(1)
	if w1 != w2 {
		t.Fatal("the witness of a generation changed")
	}
	if _, ok := s.Witness(2); ok {
		t.Fatal("witness of a generation that is not there")
	}
}

func TestRecordIsBoundToTagAndRepository(t *testing.T) {
	t.Parallel()
	r, o := seal.NewRing(seal.NewSecret()), seal.NewRing(seal.NewSecret())
	plain := []byte(`{"format":1}`)
	sealed, err := r.SealRecord("s.shop.7", plain)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := r.OpenRecord("s.shop.7", sealed); err != nil || !bytes.Equal(got, plain) {
		t.Fatalf("got %q, %v", got, err)
	}
	if _, err := r.OpenRecord("s.shop.8", sealed); !errors.Is(err, seal.ErrOpen) {
		t.Errorf("under another tag: %v", err)
	}
	if _, err := o.OpenRecord("s.shop.7", sealed); !errors.Is(err, dr.ErrTampered) {
		t.Errorf("in another repository: %v", err)
	}
	for i := range sealed {
		bad := bytes.Clone(sealed)
		bad[i] ^= 0x40
		if _, err := r.OpenRecord("s.shop.7", bad); !errors.Is(err, dr.ErrTampered) {
			t.Fatalf("byte %d flipped: %v", i, err)
		}
		if _, err := r.OpenRecord("s.shop.7", sealed[:i]); !errors.Is(err, dr.ErrTampered) {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
}

func TestSignature(t *testing.T) {
	t.Parallel()
	k, repo := seal.NewHostKey(), seal.NewSecret().Repo()
	object := fmt.Appendf(nil, `{"format":1,"host":"%s","note":"a,\"sig\":\"b\"}"}`, k.ID())
	signed, err := k.Sign(repo, "e.shop.1", object)
	if err != nil {
		t.Fatal(err)
	}
	host, got, err := seal.VerifySigned(repo, "e.shop.1", signed)
	if err != nil || host != k.ID() || !bytes.Equal(got, object) {
		t.Fatalf("host %s, object %s, %v", host.Short(), got, err)
	}
	if !json.Valid(signed) {
		t.Error("the signed object is not JSON")
	}
	if _, _, err := seal.VerifySigned(repo, "e.shop.2", signed); !errors.Is(err, dr.ErrTampered) {
		t.Errorf("under another tag: %v", err)
	}
	if _, _, err := seal.VerifySigned(seal.NewSecret().Repo(), "e.shop.1", signed); !errors.Is(err, dr.ErrTampered) {
		t.Errorf("in another repository: %v", err)
	}
	for i := range signed {
		bad := bytes.Clone(signed)
		bad[i] ^= 1
		if _, _, err := seal.VerifySigned(repo, "e.shop.1", bad); !errors.Is(err, dr.ErrTampered) {
			t.Fatalf("byte %d flipped: %v", i, err)
		}
	}
	if _, err := seal.NewHostKey().Sign(repo, "e.shop.1", object); err == nil {
		t.Error("a host signed in the name of another")
	}
}

func TestStreamRoundTrip(t *testing.T) {
	t.Parallel()
	r := seal.NewRing(seal.NewSecret())
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.SampledFrom([]int{0, 1, 100, seal.SegmentSize - 1, seal.SegmentSize, seal.SegmentSize + 1, 2 * seal.SegmentSize, 2*seal.SegmentSize + 17}).Draw(t, "size")
		step := rapid.SampledFrom([]int{1 << 16, 777777, 1 << 21}).Draw(t, "step")
		plain := bytes.Repeat([]byte{0xa5, 1, 2}, n/3+1)[:n]
		sealed := sealStream(t, r, plain, step)
		x, err := r.NewIndexReader(iotest.OneByteReader(bytes.NewReader(sealed[:min(len(sealed), 64)])))
		if err != nil || x == nil {
			t.Fatal(err)
		}
		x, err = r.NewIndexReader(bytes.NewReader(sealed))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(x)
		if err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("%d bytes of %d, %v", len(got), n, err)
		}
	})
}

type fataler interface{ Fatal(...any) }

func sealStream(t fataler, r *seal.Ring, plain []byte, step int) []byte {
	var out bytes.Buffer
	w, err := r.NewIndexWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	for len(plain) > 0 {
		n := min(step, len(plain))
		if _, err := w.Write(plain[:n]); err != nil {
			t.Fatal(err)
		}
		plain = plain[n:]
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestStreamNoticesEveryCutAndSwap(t *testing.T) {
	t.Parallel()
	r := seal.NewRing(seal.NewSecret())
	plain := bytes.Repeat([]byte("0123456789abcdef"), (2*seal.SegmentSize+4096)/16)
	sealed := sealStream(t, r, plain, 1<<20)
	const head, seg = 41, 4 + seal.SegmentSize + seal.Overhead
	swapped := bytes.Clone(sealed)
	copy(swapped[head:], sealed[head+seg:head+2*seg])
	copy(swapped[head+seg:], sealed[head:head+seg])
	flipped := bytes.Clone(sealed)
	flipped[len(flipped)-1] ^= 1
	for name, bad := range map[string][]byte{
		"empty":                   nil,
		"header only":             sealed[:head],
		"cut in the header":       sealed[:head-1],
		"cut after first segment": sealed[:head+seg],
		"cut in a segment":        sealed[:head+seg+100],
		"segments swapped":        swapped,
		"bit flipped":             flipped,
		"bytes follow":            append(bytes.Clone(sealed), sealed[head:]...),
	} {
		x, err := r.NewIndexReader(bytes.NewReader(bad))
		if err == nil {
			_, err = io.ReadAll(x)
		}
		if !errors.Is(err, dr.ErrTampered) {
			t.Errorf("%s: %v, want ErrTampered", name, err)
		}
	}
	boom := errors.New("line dropped")
	x, err := r.NewIndexReader(io.MultiReader(bytes.NewReader(sealed[:head+10]), iotest.ErrReader(boom)))
	if err == nil {
		_, err = io.ReadAll(x)
	}
	if !errors.Is(err, boom) || errors.Is(err, dr.ErrTampered) {
		t.Errorf("an error of the source came back as %v", err)
	}
}

func TestUnitIDIsKeyedAndConcurrent(t *testing.T) {
	t.Parallel()
	s := seal.NewSecret()
	r, o := seal.NewRing(s), seal.NewRing(seal.NewSecret())
	want := r.UnitID([]byte("content"))
	if want == o.UnitID([]byte("content")) {
		t.Fatal("two repositories give one content the same id")
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				if r.UnitID([]byte("content")) != want {
					t.Error("the id changed")
				}
			}
		})
	}
	wg.Wait()
}

// Invariant 9: key material does not reach a log or an error.
func TestSecretsAreNotPrinted(t *testing.T) {
	t.Parallel()
	s, k := seal.NewSecret(), seal.NewHostKey()
	cut := s.CutKey()
	hex := fmt.Sprintf("%x", cut[:])
	var buf bytes.Buffer
	for _, h := range []slog.Handler{slog.NewTextHandler(&buf, nil), slog.NewJSONHandler(&buf, nil)} {
		slog.New(h).Info("test", "secret", s, "host", k)
	}
	fmt.Fprintf(&buf, "%v %+v %#v %x %d %s %v %+v %#v %x", s, s, s, s, s, s, k, k, k, k)
	j, err := json.Marshal(map[string]any{"s": s, "k": k})
	if err != nil {
		t.Fatal(err)
	}
	buf.Write(j)
	out := buf.String()
	if strings.Contains(out, hex) || strings.Contains(out, strings.Trim(fmt.Sprint(cut[:4]), "[]")) {
		t.Fatal("a key was printed")
	}
	if strings.Count(out, "[secret of repository") != 8 {
		t.Fatalf("the secret shows itself otherwise than expected:\n%s", out)
	}
}

func TestHostKeyIsCreatedOnceAndKept(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	var wg sync.WaitGroup
	keys := make([]*seal.HostKey, 8)
	for i := range keys {
		wg.Go(func() {
			var err error
			if keys[i], err = seal.LoadOrCreateHostKey(dir); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	for _, k := range keys {
		if k.ID() != keys[0].ID() {
			t.Fatal("two processes hold different keys for one host")
		}
	}
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != 1 {
		t.Fatalf("left behind: %v, %v", names, err)
	}
	file := filepath.Join(dir, seal.HostKeyFile)
	st, err := os.Stat(file)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", st.Mode(), err)
	}
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := seal.LoadOrCreateHostKey(dir); err == nil || !strings.Contains(err.Error(), "0644") {
		t.Fatalf("a readable key was taken: %v", err)
	}
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := seal.LoadOrCreateHostKey(dir); !errors.Is(err, dr.ErrTampered) {
		t.Fatalf("a damaged key: %v, want ErrTampered", err)
	}
}

func FuzzKeyRecord(f *testing.F) {
	s := seal.NewSecret()
	pass, err := seal.PassphraseRecipient("paper", "p", 1)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(keyRecord(f, s, 1, pass))
	f.Add([]byte(`{"format":1,"mac":""}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		k, err := seal.ParseKeyRecord(raw)
		if err != nil {
			return
		}
		// Each worker draws a secret of its own, so the seed may hold another one.
		if got, err := k.Open(nil, func() (string, error) { return "p", nil }); err == nil && k.Verify(got) != nil {
			t.Fatal("a record opened whose MAC is wrong")
		}
	})
}

func FuzzRecord(f *testing.F) {
	r, k := seal.NewRing(seal.NewSecret()), seal.NewHostKey()
	signed, err := k.Sign(r.Repo(), "e.a.1", fmt.Appendf(nil, `{"host":"%s"}`, k.ID()))
	if err != nil {
		f.Fatal(err)
	}
	sealed, err := r.SealRecord("e.a.1", signed)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sealed)
	f.Add(signed)
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := r.OpenRecord("e.a.2", b); err == nil {
			t.Fatal("opened under another tag")
		}
		if host, object, err := seal.VerifySigned(r.Repo(), "e.a.1", b); err == nil && host == k.ID() && !bytes.Equal(object, fmt.Appendf(nil, `{"host":"%s"}`, k.ID())) {
			t.Fatal("forged signature")
		}
	})
}

func FuzzIndexStream(f *testing.F) {
	r := seal.NewRing(seal.NewSecret())
	f.Add(sealStream(f, r, []byte("hello"), 5))
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := r.NewIndexReader(bytes.NewReader(b))
		if err == nil {
			_, _ = io.Copy(io.Discard, x)
		}
	})
}
