package fence_test

import (
	"testing"

	"lifeboat/internal/dr"
	"lifeboat/internal/fence"

	"pgregory.net/rapid"
)

// world is the shared repository and the two sites of a planned switch. Only
// what stands in moves and claims is seen by both.
type world struct {
	moves  []fence.Move
	claims []fence.Claim
	// serving: the system's containers run at that site.
	giverServes, takerServes bool
	offered                  bool // giver has stopped for this move (its journal)
	acked                    int  // last write acknowledged by whoever serves
	stored                   int  // last write in the newest snapshot
	takerHas                 int  // last write laid down at the taker
	healthy                  bool // whether the taker's start succeeds
}

func (w *world) move() fence.Move { return w.moves[len(w.moves)-1] }

func (w *world) record(p fence.Phase, host dr.HostID) {
	m := w.move()
	m.Phase, m.Host = p, host
	w.moves = append(w.moves, m)
}

// claim is the compare-and-swap of the epoch tag: it fails when the number exists.
func (w *world) claim(host dr.HostID, over dr.Epoch) bool {
	if w.claims[len(w.claims)-1].Epoch != over {
		return false
	}
	w.claims = append(w.claims, fence.Claim{Epoch: over + 1, Host: host})
	return true
}

func (w *world) giver(t *rapid.T, crash bool) {
	act, err := fence.GiverNext(w.move(), w.claims, mainHost, w.offered)
	if err != nil {
		t.Fatalf("giver: %v", err)
	}
	switch act {
	case fence.ActSnapshot:
		w.stored = w.acked
		if !crash {
			w.record(fence.PhaseAccepted, mainHost)
		}
	case fence.ActHandOver:
		w.offered = true // journalled before the stop
		w.giverServes = false
		if crash {
			return
		}
		w.stored = w.acked
		w.record(fence.PhaseOffered, mainHost)
	case fence.ActTakeBack:
		if crash {
			return
		}
		if w.claim(mainHost, w.move().Epoch) {
			w.giverServes = true
		}
	case fence.ActCalledOff:
		w.giverServes = true
	}
}

func (w *world) taker(t *rapid.T, crash bool) {
	act, err := fence.TakerNext(w.move(), w.claims, standHost)
	if err != nil { // lost the epoch: must not serve
		w.takerServes = false
		return
	}
	switch act {
	case fence.ActStage:
		w.takerHas = w.stored
		if !crash {
			w.record(fence.PhaseReady, standHost)
		}
	case fence.ActTakeOver:
		w.takerHas = w.stored
		w.takerServes = w.healthy
		if crash {
			return
		}
		if !w.healthy {
			w.record(fence.PhaseAborted, standHost)
			return
		}
		if !w.claim(standHost, w.move().Epoch) {
			w.takerServes = false
			return
		}
		w.record(fence.PhaseDone, standHost)
	case fence.ActCalledOff:
		w.takerServes = false
	}
}

// TestSwitchInvariants6and7 interleaves both sides with crashes at random:
// never do both serve, the taker holds the epoch only with every acknowledged
// write, and an undisturbed end always serves somewhere.
func TestSwitchInvariants6and7(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		w := &world{giverServes: true, healthy: rapid.Bool().Draw(t, "healthy")}
		w.claims = []fence.Claim{{Epoch: 1, Host: mainHost}}
		w.moves = []fence.Move{{System: "shop", Phase: fence.PhaseRequested, Epoch: 1, From: "main", To: "cloud"}}
		check := func() {
			if w.giverServes && w.takerServes {
				t.Fatalf("both sites serve; moves %+v claims %+v", w.moves, w.claims)
			}
			if len(w.claims) > 1 && w.claims[1].Host == standHost && w.takerHas != w.acked {
				t.Fatalf("the taker holds the epoch with %d of %d acknowledged writes", w.takerHas, w.acked)
			}
		}
		for range rapid.IntRange(0, 25).Draw(t, "steps") {
			if w.giverServes && rapid.Bool().Draw(t, "write") {
				w.acked++
			}
			crash := rapid.IntRange(0, 3).Draw(t, "crash") == 0
			if rapid.Bool().Draw(t, "side") {
				w.giver(t, crash)
			} else {
				w.taker(t, crash)
			}
			check()
		}
		for range 12 { // both resumed, nothing fails any more
			w.giver(t, false)
			check()
			w.taker(t, false)
			check()
		}
		if !w.giverServes && !w.takerServes {
			t.Fatalf("nobody serves in the end; moves %+v claims %+v", w.moves, w.claims)
		}
		if !w.healthy && !w.giverServes {
			t.Fatal("the taker was unhealthy and the giver does not go on")
		}
	})
}

func TestOpenMove(t *testing.T) {
	t.Parallel()
	claims := []fence.Claim{{Epoch: 1, Host: mainHost}}
	if _, ok := fence.Open(nil, claims); ok {
		t.Error("no records, yet a move is open")
	}
	for phase, want := range map[fence.Phase]bool{
		fence.PhaseRequested: true, fence.PhaseAccepted: true, fence.PhaseReady: true,
		fence.PhaseOffered: true, fence.PhaseDone: false, fence.PhaseAborted: false,
	} {
		if _, ok := fence.Open([]fence.Move{{Epoch: 1, Phase: phase}}, claims); ok != want {
			t.Errorf("phase %s: open %v, want %v", phase, ok, want)
		}
	}
	if _, ok := fence.Open([]fence.Move{{Epoch: 1, Phase: fence.PhaseOffered}}, append(claims, fence.Claim{Epoch: 2, Host: standHost})); ok {
		t.Error("a move of a superseded epoch is still open")
	}
}
