package plan_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"lifeboat/internal/dr"
	"lifeboat/internal/plan"

	"github.com/google/go-cmp/cmp"
)

func header(op string) plan.Header {
	return plan.Header{Operation: op, System: "shop", Snapshot: dr.SnapshotID{7}}
}

// TestRunResumesInvariant8 stops a run at every point around every step and
// lets the next run finish: each step's effect is there, none that has a
// recorded result is repeated.
func TestRunResumesInvariant8(t *testing.T) {
	t.Parallel()
	ids := []string{"one", "two", "three"}
	var points []string
	for _, id := range ids {
		points = append(points, "intent:"+id, "acted:"+id, "done:"+id)
	}
	for _, stop := range points {
		t.Run(stop, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "j")
			effects := map[string]int{}
			steps := func() []plan.Step {
				var s []plan.Step
				for _, id := range ids {
					s = append(s, plan.Step{ID: id, Title: id, Do: func(context.Context) error { effects[id]++; return nil }})
				}
				return s
			}
			func() {
				j, err := plan.Open(path, header("failover"))
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = recover(); j.Close() }() // the panic stands for kill -9: nothing more is written
				_, _ = plan.Run(t.Context(), j, steps(), plan.Observer{}, func(p string) {
					if p == stop {
						panic(p)
					}
				})
			}()
			h, unfinished, err := plan.Peek(path)
			if err != nil || !unfinished || h.Operation != "failover" {
				t.Fatalf("Peek = %+v, %v, %v; want an unfinished failover", h, unfinished, err)
			}
			j, err := plan.Open(path, header("failover"))
			if err != nil {
				t.Fatal(err)
			}
			defer j.Close()
			if !j.Resumed() {
				t.Error("the journal was begun anew")
			}
			if _, err := plan.Run(t.Context(), j, steps(), plan.Observer{}, nil); err != nil {
				t.Fatal(err)
			}
			for _, id := range ids {
				want := 1
				if stop == "acted:"+id {
					want = 2 // its result was never recorded
				}
				if effects[id] != want {
					t.Errorf("step %s ran %d times, want %d", id, effects[id], want)
				}
			}
		})
	}
}

func TestJournalFactsAndTornLine(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "j")
	j, err := plan.Open(path, header("failover"))
	if err != nil {
		t.Fatal(err)
	}
	if err := j.SetFact("ids", map[string]string{"web": "c1"}); err != nil {
		t.Fatal(err)
	}
	if _, err := plan.Open(path, header("failover")); !errors.Is(err, dr.ErrHeld) {
		t.Errorf("second holder: %v, want ErrHeld", err)
	}
	j.Close()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"event":"done","step":"to`); err != nil {
		t.Fatal(err)
	}
	f.Close()
	j, err = plan.Open(path, header("failback"))
	if err != nil {
		t.Fatalf("a torn last line must not stop a resume: %v", err)
	}
	defer j.Close()
	if j.Header().Operation != "failover" {
		t.Errorf("header %q, want the unfinished work's", j.Header().Operation)
	}
	got := map[string]string{}
	if ok, err := j.Fact("ids", &got); !ok || err != nil {
		t.Fatalf("Fact = %v, %v", ok, err)
	}
	if diff := cmp.Diff(map[string]string{"web": "c1"}, got); diff != "" {
		t.Error(diff)
	}
	if err := j.End(); err != nil {
		t.Fatal(err)
	}
	j.Close()
	j, err = plan.Open(path, header("failback"))
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if j.Resumed() || j.Header().Operation != "failback" {
		t.Errorf("after End: resumed %v, header %+v; want a new journal", j.Resumed(), j.Header())
	}
}

func TestJournalDamaged(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "j")
	if err := os.WriteFile(path, []byte("not json\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := plan.Open(path, header("failover")); err == nil {
		t.Error("a damaged journal was accepted")
	}
}

func TestRunStopsAtFailure(t *testing.T) {
	t.Parallel()
	j, err := plan.Open(filepath.Join(t.TempDir(), "j"), header("failover"))
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	boom := errors.New("boom")
	var ran []string
	step := func(id string, err error) plan.Step {
		return plan.Step{ID: id, Title: id, Do: func(context.Context) error { ran = append(ran, id); return err }}
	}
	reports, err := plan.Run(t.Context(), j, []plan.Step{step("a", nil), step("b", boom), step("c", nil)}, plan.Observer{}, nil)
	if !errors.Is(err, boom) {
		t.Fatalf("error %v, want boom", err)
	}
	if diff := cmp.Diff([]string{"a", "b"}, ran); diff != "" {
		t.Error(diff)
	}
	if len(reports) != 2 || reports[1].State != "failed" {
		t.Errorf("reports %+v", reports)
	}
	if j.Done("b") || !j.Done("a") {
		t.Error("the journal does not tell what is done")
	}
}

// TestUnfinished: what was begun and not ended is seen from outside, also while
// it runs.
func TestUnfinished(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "failover")
	if p, err := plan.Unfinished(path); p != nil || err != nil {
		t.Errorf("no journal: %v, %v", p, err)
	}
	check := func(when, step, failed string, running bool) {
		t.Helper()
		p, err := plan.Unfinished(path)
		if err != nil || p == nil || p.Operation != "failover" || p.Step != step || p.Failed != failed || p.Running != running {
			t.Errorf("%s: %+v, %v", when, p, err)
		}
	}
	j, err := plan.Open(path, plan.Header{Operation: "failover", System: "shop"})
	if err != nil {
		t.Fatal(err)
	}
	check("begun", "", "", true)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(j.Intent("a"))
	must(j.Finish("a"))
	must(j.Intent("b"))
	check("in step b", "b", "", true)
	must(j.SetFact("move", "x"))
	if p, err := plan.Unfinished(path); err != nil || !p.Has("move") || p.Has("stopped") {
		t.Errorf("facts: %+v, %v", p, err)
	}
	must(j.Fail("b", errors.New("no space")))
	must(j.Close())
	check("failed", "b", "no space", false)
	j, err = plan.Open(path, plan.Header{})
	must(err)
	must(j.End())
	must(j.Close())
	if p, err := plan.Unfinished(path); p != nil || err != nil {
		t.Errorf("ended: %v, %v", p, err)
	}
}
