package seal

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"lifeboat/internal/dr"
)

// FuzzSecret: what an age file held is a secret that encodes to the same again,
// or an error that quotes nothing of it.
func FuzzSecret(f *testing.F) {
	s := NewSecret()
	rotated, err := s.Rotated()
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range []*Secret{s, rotated} {
		b, err := s.encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(bytes.Replace(b, []byte(`"generation":`), []byte(`"generation":9`), 1))
	}
	f.Add([]byte(`{"format":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := decodeSecret(b)
		if err != nil {
			if len(err.Error()) > 300 { // of another format, or altered
				t.Fatalf("%v", err)
			}
			return
		}
		once, err := s.encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := decodeSecret(once)
		if err != nil || again.Generation() != s.Generation() || again.Fingerprint() != s.Fingerprint() {
			t.Fatalf("%v", err)
		}
		for g := Generation(1); g <= s.Generation(); g++ {
			if _, ok := s.Witness(g); !ok {
				t.Fatalf("generation %d of %d has no key", g, s.Generation())
			}
		}
	})
}

// FuzzSigned: only what a host signed for this repository and tag verifies, and
// gives back what was signed.
func FuzzSigned(f *testing.F) {
	key := NewHostKey()
	id := key.ID()
	body := []byte(`{"host":"` + id.String() + `","x":1}`)
	signed, err := key.Sign(dr.RepoID{1}, "e.shop.1", body)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(signed)
	f.Add(body)
	f.Add([]byte(`{,"sig":"` + b64(make([]byte, 64)) + `"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		host, got, err := VerifySigned(dr.RepoID{1}, "e.shop.1", b)
		if err != nil {
			if !errors.Is(err, dr.ErrTampered) {
				t.Fatal(err)
			}
			return
		}
		if host == id && !bytes.Equal(got, body) {
			t.Fatalf("%s was never signed", got)
		}
		if _, _, err := VerifySigned(dr.RepoID{1}, "e.shop.2", b); err == nil {
			t.Fatal("it verifies under another tag, too")
		}
	})
}

// FuzzHostKey: a file of a host key is read as it was written, or is an error.
func FuzzHostKey(f *testing.F) {
	dir := f.TempDir()
	if _, err := LoadOrCreateHostKey(dir); err != nil {
		f.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, HostKeyFile))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:len(b)/2])
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, HostKeyFile), b, 0o600); err != nil {
			t.Fatal(err)
		}
		k, err := LoadOrCreateHostKey(dir)
		if err != nil {
			if !errors.Is(err, dr.ErrTampered) {
				t.Fatal(err)
			}
			return
		}
		again, err := LoadOrCreateHostKey(dir)
		if err != nil || again.ID() != k.ID() {
			t.Fatalf("read again: %v", err)
		}
	})
}
