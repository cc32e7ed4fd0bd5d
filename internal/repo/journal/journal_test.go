package journal

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/dr"
	"lifeboat/internal/pack"
)

func info(seed byte) pack.Info {
	p := pack.Info{Size: 1000 + int64(seed), Header: pack.Header{Generation: 3}}
	p.Digest[0], p.Header.Salt[5] = seed, seed
	for g := range uint32(3) {
		gi := pack.GroupInfo{Offset: 41 + 100*g, Sealed: 100, Plain: 300}
		for u := range byte(4) {
			gi.Units = append(gi.Units, dr.UnitRef{ID: dr.UnitID{seed, byte(g), u}, Len: uint32(u) + 70})
		}
		p.Groups = append(p.Groups, gi)
	}
	return p
}

var testKey = [32]byte{1, 2, 3}

func create(t *testing.T, dir string, infos ...pack.Info) *Journal {
	t.Helper()
	j, err := Create(dir, testKey)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range infos {
		if err := j.Add(p); err != nil {
			t.Fatal(err)
		}
	}
	return j
}

func recovered(t *testing.T, dir string, key [32]byte) (all [][]pack.Info) {
	t.Helper()
	if err := Recover(dir, key, func(p []pack.Info) error { all = append(all, p); return nil }); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestJournal(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	j := create(t, dir, info(1), info(2))
	if got := recovered(t, dir, testKey); got != nil {
		t.Errorf("the journal of a writer that runs was read: %v", got)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	failed := errors.New("no")
	if err := Recover(dir, testKey, func([]pack.Info) error { return failed }); !errors.Is(err, failed) {
		t.Errorf("%v", err)
	}
	if diff := cmp.Diff([][]pack.Info{{info(1), info(2)}}, recovered(t, dir, testKey)); diff != "" {
		t.Error(diff)
	}
	if got := recovered(t, dir, testKey); got != nil {
		t.Errorf("read twice: %v", got)
	}
	if err := create(t, dir, info(3)).Remove(); err != nil {
		t.Fatal(err)
	}
	if got := recovered(t, dir, testKey); got != nil {
		t.Errorf("removed: %v", got)
	}
}

// TestCutOff: of a file that was cut off anywhere what is whole counts.
func TestCutOff(t *testing.T) {
	t.Parallel()
	src := t.TempDir()
	j := create(t, src, info(1), info(2))
	name := j.f.Name()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	_, first, ok := readRecord(raw, testKey, 0)
	if !ok {
		t.Fatal("no first record")
	}
	for n := range raw {
		got, err := read(bytes.NewReader(raw[:n]), testKey)
		if want := n / first; err != nil || len(got) != want {
			t.Fatalf("%d of %d bytes: %d records, %v", n, len(raw), len(got), err)
		}
	}
	for at := range raw { // and of one that was altered, what stands before
		bad := bytes.Clone(raw)
		bad[at] ^= 4
		if got, _ := read(bytes.NewReader(bad), testKey); len(got) != at/first {
			t.Fatalf("byte %d altered: %d records", at, len(got))
		}
	}
	moved := append(bytes.Clone(raw[first:]), raw[:first]...)
	if got, _ := read(bytes.NewReader(moved), testKey); len(got) != 0 {
		t.Errorf("records in other places: %d", len(got))
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "x"+suffix), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := recovered(t, dir, [32]byte{9}); got != nil {
		t.Errorf("of another repository: %v", got)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(encode(nil, info(1)))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := decode(b)
		if err == nil && !bytes.Equal(encode(nil, p), b) {
			t.Errorf("%x is accepted and not what is written for it", b)
		}
	})
}
