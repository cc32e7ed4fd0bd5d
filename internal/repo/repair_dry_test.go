package repo_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/repo"
	"lifeboat/internal/repo/readlog"
)

// told is what a run of repair says: each step, what is left damaged, what is lost.
// Digests of what is sealed anew differ from run to run.
func told(t testing.TB, res *repo.Repaired) []string {
	t.Helper()
	var out []string
	for _, s := range res.Steps {
		if s.Action == repo.RepairRelocated {
			s.Blob = ""
		}
		failed := s.Err != nil
		s.Err = nil
		out = append(out, fmt.Sprintf("step %+v failed %v", s, failed))
	}
	for when, x := range map[string]*repo.Examination{"before": res.Before, "after": res.After} {
		for _, p := range x.Problems {
			out = append(out, fmt.Sprintf("%s: %s %s %v", when, p.Tag, p.Blob, p.Foreign()))
		}
		for _, l := range losses(t, x) {
			out = append(out, when+": lost "+l)
		}
	}
	slices.Sort(out)
	return append(out, fmt.Sprintf("healed %v", res.Healed()))
}

// sides runs repair dry, in a fork that is alike, and for real, and compares.
func (w *ward) sides(host string, o repo.RepairOptions) {
	w.t.Helper()
	a := w.fork(w.t)
	before, size := tagsOf(w.t, a.bed.Store), a.bed.Store.Size()
	done := told(w.t, w.repair(host, o))
	o.DryRun = true
	dry := told(w.t, a.repair(host, o))
	if diff := cmp.Diff(before, tagsOf(w.t, a.bed.Store)); diff != "" || a.bed.Store.Size() != size {
		w.t.Errorf("the dry run changed something: %d bytes, then %d\n%s", size, a.bed.Store.Size(), diff)
	}
	if diff := cmp.Diff(done, dry); diff != "" {
		w.t.Errorf("the real run (-) and the dry run (+):\n%s", diff)
	}
}

// A dry run says what the real run does and leaves, over all kinds of damage, with
// an exact copy, without any source, and after a new snapshot of the live system.
func TestDryRunIsTheRealRun(t *testing.T) {
	t.Parallel()
	sound := newWard(t)
	more := []damaged{
		{name: "bit flipped in a pack of one snapshot", do: func(w *ward) []string {
			w.spoil(w.layer("s.shop.2", 1), flipFrom(3000))
			return nil
		}},
		{name: "missing snapshot and host record, and a flipped snapshot", do: func(w *ward) []string {
			for _, tag := range []string{"s.shop.2", "host.1"} {
				if err := w.bed.Store.DeleteTag(w.t.Context(), tag); err != nil {
					w.t.Fatal(err)
				}
			}
			w.spoilManifest("s.shop.1")
			return nil
		}},
	}
	for _, d := range append(damages(), more...) {
		for _, way := range []string{"from nothing", "from a copy", "from the live system"} {
			t.Run(d.name+"/"+way, func(t *testing.T) {
				t.Parallel()
				w := sound.fork(t)
				w.known = d.known
				host, o := "main", repo.RepairOptions{Read: true}
				d.do(w)
				switch way {
				case "from a copy":
					host, o.From = "healer", []repo.RepairSource{{Name: "copy", Exact: w.copy}}
				case "from the live system":
					main := w.bed.Host("main")
					_ = examine(t, main, repo.ExamineOptions{Read: &readlog.Subset{}})
					if !strings.Contains(d.name, "swapped") && !strings.Contains(d.name, "host record") { // nothing can be written there
						treeSnapshot(t, main, "shop", nil, w.files["s.shop.3"]...)
					}
				}
				w.sides(host, o)
			})
		}
	}
}

// What a dry run has read need not be read again.
func TestDryRunRemembersWhatItRead(t *testing.T) {
	t.Parallel()
	w := newWard(t)
	w.spoil(w.layer("s.shop.2", 1), flipFrom(3000))
	w.repair("main", repo.RepairOptions{Read: true, DryRun: true})
	if ps := examine(t, w.bed.Host("main"), repo.ExamineOptions{}).Problems; len(ps) == 0 {
		t.Error("the damage is forgotten")
	}
}
