package tree_test

import (
	"bytes"
	"context"
	"encoding/gob"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
	"lifeboat/internal/tree"
)

func (f *fixture) dump(next, old dr.Tree) string {
	f.t.Helper()
	var b bytes.Buffer
	if err := gob.NewEncoder(&b).Encode(storedOf(f, next, old)); err != nil {
		f.t.Fatal(err)
	}
	path := filepath.Join(f.t.TempDir(), "repository")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		f.t.Fatal(err)
	}
	return path
}

// gobStored is a repository and two trees in it, on disk for a child process;
// ids are raw bytes.
type gobStored struct {
	Units     map[string][]byte
	Next, Old [][]byte
}

func storedOf(f *fixture, next, old dr.Tree) gobStored {
	s := gobStored{Units: map[string][]byte{}}
	for id, data := range f.repo.units {
		s.Units[string(id[:])] = data
	}
	for _, r := range next.Catalog {
		s.Next = append(s.Next, append(r.ID[:], strconv.Itoa(int(r.Len))...))
	}
	for _, r := range old.Catalog {
		s.Old = append(s.Old, append(r.ID[:], strconv.Itoa(int(r.Len))...))
	}
	return s
}

func load(t *testing.T, path string) (*memory, []dr.UnitRef) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var s gobStored
	if err := gob.NewDecoder(bytes.NewReader(data)).Decode(&s); err != nil {
		t.Fatal(err)
	}
	m := newMemory()
	for id, data := range s.Units {
		m.units[dr.UnitID([]byte(id))] = data
	}
	var refs []dr.UnitRef
	for _, b := range s.Next {
		n, err := strconv.Atoi(string(b[32:]))
		if err != nil {
			t.Fatal(err)
		}
		refs = append(refs, dr.UnitRef{ID: dr.UnitID(b[:32]), Len: uint32(n)})
	}
	return m, refs
}

// killer kills the process after so many units were written.
type killer struct {
	*memory
	left atomic.Int64
}

func (k *killer) Fetch(ctx context.Context, refs []dr.UnitRef, fn func(int, []byte) error) error {
	return k.memory.Fetch(ctx, refs, func(i int, data []byte) error {
		if k.left.Add(-1) < 0 {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		}
		return fn(i, data)
	})
}

// TestKilledChild is the process that TestApplyKilled kills.
func TestKilledChild(t *testing.T) {
	dump := os.Getenv("LBTEST_DUMP")
	if dump == "" {
		return
	}
	m, table := load(t, dump)
	n, err := strconv.ParseInt(os.Getenv("LBTEST_KILL_AFTER"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	k := &killer{memory: m}
	k.left.Store(n)
	target, err := catalog.Open(t.Context(), m, table)
	if err != nil {
		t.Fatal(err)
	}
	_, err = tree.Apply(t.Context(), os.Getenv("LBTEST_DEST"), nil, target, k, tree.ApplyOptions{
		Key: "volume:dest", StateDir: os.Getenv("LBTEST_STATE"), CutKey: cutKey, UnitID: unitID, Now: later,
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestUnprivilegedChild is what TestUnprivileged runs as nobody.
func TestUnprivilegedChild(t *testing.T) {
	dump := os.Getenv("LBTEST_NOBODY")
	if dump == "" {
		return
	}
	m, table := load(t, dump)
	target, err := catalog.Open(t.Context(), m, table)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	denied := map[string]int{}
	out := os.Getenv("LBTEST_DEST")
	o := tree.ExtractOptions{UnitID: unitID, TempDir: os.Getenv("LBTEST_STATE")}
	if _, err := tree.Extract(t.Context(), out+"-strict", target, m, o); err == nil {
		t.Error("without Denied, a lost owner is an error")
	}
	o.Denied = func(_, what string, _ error) {
		mu.Lock()
		defer mu.Unlock()
		denied[what]++
	}
	if _, err := tree.Extract(t.Context(), out, target, m, o); err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{"owner", "device node", "attribute security.capability"} {
		if denied[what] == 0 {
			t.Errorf("nothing was said about the %s: %v", what, denied)
		}
	}
	// A file that may not be read is left to Secure, which names it.
	if err := os.WriteFile(filepath.Join(out, "closed"), []byte("x"), 0); err != nil {
		t.Fatal(err)
	}
	c, err := tree.NewCapture(tree.CaptureOptions{
		Root: out, Key: "k", StateDir: os.Getenv("LBTEST_STATE"), CutKey: cutKey, UnitID: unitID, Sink: m, Now: later,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Precopy(t.Context()); err != nil {
		t.Errorf("precopy: %v", err)
	}
	if err := c.Secure(t.Context()); !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), "closed") {
		t.Errorf("secure: %v", err)
	}
	if err := os.Remove(filepath.Join(out, "closed")); err != nil {
		t.Error(err)
	}
}
