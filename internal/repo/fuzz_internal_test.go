package repo

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"lifeboat/internal/dr"
)

// FuzzRecords: what an enrolled host may have signed, whatever it is, either
// passes the checks, and then holds what they promise, or is an error.
func FuzzRecords(f *testing.F) {
	t0 := Tag{Class: ClassSnapshot, System: "shop", Number: 7}
	host := dr.HostID{1}
	d := digest.FromString("m")
	seeds := []any{
		commitRecord{Format: 1, Snapshot: dr.SnapshotID{3}, Root: dr.UnitRef{ID: dr.UnitID{3}, Len: 10}, System: "shop", Number: 7, Site: "main", Host: host, Kind: dr.KindCurrent, Needs: []digest.Digest{d}},
		relocation{Format: 1, Host: host, System: "shop", Number: 7, Turn: 1, Snapshot: dr.SnapshotID{3}, Commit: []byte("x"), Needs: []digest.Digest{d}},
		hostRecord{Format: 1, Host: host, Action: actionRevoke, Subject: dr.HostID{2}, Revoked: []dr.HostID{{2}}, GoodRecords: map[string]string{"e.shop.1": d.String()}},
		map[string]any{"system": "shop", "epoch": 7},
	}
	for _, s := range seeds {
		b, err := json.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"format":1e400}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var c commitRecord
		if json.Unmarshal(b, &c) == nil && c.check(t0, host) == nil {
			s := c.snapshot(t0, d, []need{{d, 1}})
			if s.System != "shop" || s.Number != 7 || s.Root.Len == 0 || s.Root.Len > dr.MaxUnit || dr.SnapshotID(s.Root.ID) != s.ID {
				t.Fatalf("%+v", s)
			}
		}
		var m relocation
		r := Tag{Class: ClassRelocation, System: "shop", Number: 7, Turn: 1}
		if json.Unmarshal(b, &m) == nil && m.check(r, host, []need{{d, 1}}) == nil && (len(m.Needs) != 1 || m.Needs[0] != d) {
			t.Fatalf("%+v", m)
		}
		var h hostRecord
		if json.Unmarshal(b, &h) == nil {
			book := &hostBook{records: map[dr.Number]*hostRecord{1: {Host: host, Subject: host, Action: actionEnrol}, 2: &h}}
			book.replay()
			if s := book.status[host]; s == nil || s.revoked && h.Host != host {
				t.Fatalf("%+v revoked host %v", h, host)
			}
		}
		if fits(Tag{Class: ClassEpoch, System: "shop", Number: 7}, b) == nil {
			var says map[string]any
			if json.Unmarshal(b, &says) != nil {
				t.Fatalf("%q fits", b)
			}
		}
	})
}

// FuzzState: local state that was damaged is an error that says which file, or
// counts as unknown.
func FuzzState(f *testing.F) {
	d := digest.FromString("x")
	for _, s := range []string{
		`{"numbers":{"e.shop.":3},"seen":{"e.shop.3":"` + d.String() + `"}}`, `{"numbers":{"x":1},"seen":{"y":"z"}}`, `{}`, `null`, ``, `{"since":"2026-01-01T00:00:00Z"}`,
		`{"location":"l","repo":"00","witnesses":{"1":"ab"}}`, string(addSum(make([]byte, 16))),
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := newState(t.TempDir())
		if err := s.use(dr.RepoID{1}); err != nil {
			t.Fatal(err)
		}
		write := func(name string) {
			t.Helper()
			if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write(filepath.Join(s.dir, "marks.json"))
		write(s.pinFile("l"))
		write(filepath.Join(s.dir, "read", d.Encoded()))
		write(filepath.Join(s.dir, "unneeded", d.Encoded()))
		write(filepath.Join(s.dir, "pending", d.Encoded()))
		if s.recall() == nil {
			before, err := s.mark("e.shop.")
			if err != nil {
				t.Fatal(err)
			}
			if err := s.raise(map[string]dr.Number{"e.shop.": 1<<63 - 1}); err != nil {
				t.Fatal(err)
			}
			if after, err := s.mark("e.shop."); err != nil || after < before {
				t.Fatalf("raised from %d to %d, %v", before, after, err)
			}
			s.seenUnder("e.shop.")
		}
		if p, err := s.loadPin("l"); err == nil && p == nil {
			t.Fatal("a pin that is there was not read")
		}
		if bits, err := s.readBits(d, 100); err != nil || len(bits) != 2 {
			t.Fatalf("%v, %v", bits, err)
		}
		if _, err := s.listUnneeded(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.listPending(); err != nil {
			t.Fatal(err)
		}
	})
}
