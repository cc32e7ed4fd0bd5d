package recover

import (
	"testing"
	"time"

	"lifeboat/internal/dr"
	"lifeboat/internal/plan"
	"lifeboat/internal/repo"
)

func TestLastHere(t *testing.T) {
	t.Parallel()
	me, other := dr.HostID{1}, dr.HostID{2}
	snaps := []repo.Snapshot{{Number: 1, Host: me, ID: dr.SnapshotID{1}}, {Number: 2, Host: other, ID: dr.SnapshotID{2}}, {Number: 3, Host: other, ID: dr.SnapshotID{3}}}
	if got := lastHere(snaps, me, nil); got != 1 {
		t.Errorf("taken here: %d", got)
	}
	if got := lastHere(snaps, me, &dr.SnapshotID{2}); got != 2 {
		t.Errorf("brought up here: %d", got)
	}
	if got := lastHere(snaps, dr.HostID{9}, nil); got != 0 {
		t.Errorf("never here: %d", got)
	}
}

// TestTimeToServe: what an earlier run took is told apart, and the time that the
// service was down is known only where the giver said when it stopped.
func TestTimeToServe(t *testing.T) {
	t.Parallel()
	path := t.TempDir() + "/journal"
	started := time.Now().Add(-time.Hour).UTC()
	for _, again := range []bool{false, true} {
		j, err := plan.Open(path, plan.Header{Operation: "failback", System: "shop", Started: started})
		if err != nil {
			t.Fatal(err)
		}
		var r Result
		r.began(j)
		if r.Since.IsZero() == again || again && !r.Since.Equal(started) {
			t.Errorf("again %v: since %v", again, r.Since)
		}
		r.serves(time.Now().Add(-time.Second), nil)
		if r.Down != -1 || r.RTO < time.Second || r.RTO > time.Minute {
			t.Errorf("down %v, served after %v", r.Down, r.RTO)
		}
		stopped := time.Now().Add(-3 * time.Second)
		if r.serves(time.Now(), &stopped); r.Down < 3*time.Second || r.Down > time.Minute {
			t.Errorf("down %v", r.Down)
		}
		ahead := time.Now().Add(time.Hour) // the giver's clock
		if r.serves(time.Now(), &ahead); r.Down != 0 {
			t.Errorf("down %v", r.Down)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestHasOtherName(t *testing.T) {
	t.Parallel()
	keep := "lifeboat-restored:01"
	for _, tt := range []struct {
		tags []string
		want bool
	}{{[]string{keep}, false}, {[]string{keep, "shop:1"}, true}, {[]string{keep, "lifeboat-restored:02"}, false}, {[]string{"shop:1"}, false}, {nil, false}} {
		if got := hasOtherName(tt.tags, keep); got != tt.want {
			t.Errorf("%q: %v", tt.tags, got)
		}
	}
}

func TestNotCaptured(t *testing.T) {
	t.Parallel()
	root := &dr.Root{System: "shop", Coverage: []dr.CoverageItem{
		{Object: "logs", Reason: "x"}, {Object: "tmpfs:web:/tmp", Reason: "x"}, {Object: "volume:a", Captured: true, Reason: "x"}, {Object: "bind:/run/docker.sock", Reason: "x"},
	}}
	got := notCaptured(root)
	if len(got) != 1 || got[0] != "not in the snapshot (lifeboat ls shop says why): tmpfs:web:/tmp, bind:/run/docker.sock" {
		t.Errorf("%q", got)
	}
	if got := notCaptured(&dr.Root{Coverage: root.Coverage[:1]}); got != nil {
		t.Errorf("%q", got)
	}
}
