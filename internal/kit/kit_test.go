package kit_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/dr"
	"lifeboat/internal/kit"

	"github.com/google/go-cmp/cmp"
)

func sample() kit.Kit {
	return kit.Kit{
		Format: 1, Created: time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC), Repo: "oci://registry.example.org/dr",
		Repository: dr.RepoID{1, 2, 3}, Fingerprint: "ab12", Username: "backup", Password: "p:w # 'x'",
		TLSFingerprint: "sha256:00", TLSCA: "-----BEGIN\nx\n-----END\n", Identity: "AGE-SECRET-KEY-1ABC",
		HighWater: map[string]uint64{"key": 2},
	}
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "kit.txt")
	want := sample()
	if err := kit.WriteFile(path, want); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v; want 0600 (invariant 9)", st.Mode(), err)
	}
	got, err := kit.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want.RepositoryHex = want.Repository.String()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if err := kit.WriteFile(path, want); !errors.Is(err, dr.ErrHeld) {
		t.Errorf("overwriting a kit: %v, want ErrHeld", err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := kit.ReadFile(path); !errors.Is(err, dr.ErrUsage) {
		t.Errorf("a kit that others can read: %v, want ErrUsage", err)
	}
}

func TestParseRejects(t *testing.T) {
	t.Parallel()
	good, err := sample().Encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"empty":         "",
		"not yaml":      "\x00\x01",
		"unknown field": string(good) + "\nextra: SECRETVALUE\n",
		"other format":  strings.Replace(string(good), "lifeboat_kit: 1", "lifeboat_kit: 9", 1),
		"no repo":       strings.Replace(string(good), "repo: oci", "repo: \"\"\n#", 1),
		"bad id":        strings.Replace(string(good), sample().Repository.String(), "zz", 1),
		"huge":          strings.Repeat("#\n", kit.MaxSize),
	} {
		_, err := kit.Parse(strings.NewReader(text))
		if !errors.Is(err, dr.ErrUsage) {
			t.Errorf("%s: %v, want ErrUsage", name, err)
		}
		if err != nil && strings.Contains(err.Error(), "SECRET") {
			t.Errorf("%s: the error quotes a secret: %v", name, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	good, err := sample().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, raw []byte) {
		k, err := kit.Parse(bytes.NewReader(raw))
		if err != nil {
			return
		}
		if _, err := k.Encode(); err != nil {
			t.Errorf("a kit that was read cannot be written: %v", err)
		}
	})
}

func TestCheckNew(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "kit.txt")
	if err := kit.CheckNew(file); err != nil {
		t.Errorf("a new file: %v", err)
	}
	if err := kit.WriteFile(file, sample()); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]error{
		file: dr.ErrHeld, filepath.Join(dir, "none", "kit.txt"): dr.ErrUsage, filepath.Join(file, "kit.txt"): dr.ErrUsage,
	} {
		if err := kit.CheckNew(name); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
}
