package fence_test

import (
	"errors"
	"strings"
	"testing"

	"lifeboat/internal/dr"
	"lifeboat/internal/fence"
)

var (
	mainHost  = dr.HostID{1}
	standHost = dr.HostID{2}
)

func snapID(n byte) dr.SnapshotID { return dr.SnapshotID{n} }

func ptr[T any](v T) *T { return &v }

// TestCheckWriteInvariant6: a site that knows of a newer epoch does not pass
// its snapshots off as current.
func TestCheckWriteInvariant6(t *testing.T) {
	t.Parallel()
	first := fence.Next(nil, fence.Claim{System: "shop", Site: "main", Host: mainHost, Reason: fence.ReasonProtect})
	second := fence.Next([]fence.Claim{first}, fence.Claim{System: "shop", Site: "cloud", Host: standHost, Reason: fence.ReasonFailover})
	if first.Epoch != 1 || second.Epoch != 2 {
		t.Fatalf("epochs %d, %d; want 1, 2", first.Epoch, second.Epoch)
	}
	for _, tc := range []struct {
		name   string
		claims []fence.Claim
		host   dr.HostID
		fenced bool
		role   fence.Role
	}{
		{"never claimed", nil, mainHost, false, fence.RoleStandby},
		{"holder", []fence.Claim{first}, mainHost, false, fence.RoleActive},
		{"other site", []fence.Claim{first}, standHost, true, fence.RoleStandby},
		{"main comes back after a failover", []fence.Claim{first, second}, mainHost, true, fence.RoleFenced},
		{"stand-in after a failover", []fence.Claim{first, second}, standHost, false, fence.RoleActive},
	} {
		err := fence.CheckWrite(tc.claims, "shop", tc.host)
		if errors.Is(err, dr.ErrFenced) != tc.fenced {
			t.Errorf("%s: CheckWrite = %v, want fenced %v", tc.name, err, tc.fenced)
		}
		if tc.fenced && !strings.Contains(err.Error(), string(tc.claims[len(tc.claims)-1].Site)) {
			t.Errorf("%s: the error does not name the holder: %v", tc.name, err)
		}
		if got := fence.RoleOf(tc.claims, tc.host); got != tc.role {
			t.Errorf("%s: role %s, want %s", tc.name, got, tc.role)
		}
	}
}

func TestHeadFollowsTheLine(t *testing.T) {
	t.Parallel()
	snaps := []fence.Snap{
		{ID: snapID(1), Number: 1, Epoch: 1, Host: mainHost, Kind: dr.KindCurrent},
		{ID: snapID(2), Number: 2, Epoch: 1, Host: mainHost, Kind: dr.KindCurrent},
		{ID: snapID(3), Number: 3, Epoch: 1, Host: mainHost, Kind: dr.KindCurrent}, // raced with the claim: divergent
		{ID: snapID(4), Number: 4, Epoch: 1, Host: mainHost, Kind: dr.KindDivergent},
	}
	claims := []fence.Claim{
		{Epoch: 1, Host: mainHost},
		{Epoch: 2, Host: standHost, Base: ptr(snapID(2))},
	}
	if id, ok := fence.Head(claims[:1], snaps); !ok || id != snapID(3) {
		t.Errorf("epoch 1: head %v %v, want snapshot 3", id.Short(), ok)
	}
	if id, ok := fence.Head(claims, snaps); !ok || id != snapID(2) {
		t.Errorf("after the claim: head %v %v, want its base", id.Short(), ok)
	}
	forged := append(snaps, fence.Snap{ID: snapID(9), Number: 9, Epoch: 2, Host: mainHost, Kind: dr.KindCurrent})
	if id, _ := fence.Head(claims, forged); id != snapID(2) {
		t.Errorf("a snapshot of epoch 2 by a host that does not hold it became the head: %v", id.Short())
	}
	taken := append(forged, fence.Snap{ID: snapID(10), Number: 10, Epoch: 2, Host: standHost, Kind: dr.KindCurrent})
	if id, _ := fence.Head(claims, taken); id != snapID(10) {
		t.Errorf("head %v, want the stand-in's snapshot", id.Short())
	}
	for id, want := range map[dr.SnapshotID]bool{snapID(1): true, snapID(2): true, snapID(3): false, snapID(4): false, snapID(9): false, snapID(10): true} {
		if got := fence.OnLine(claims, taken, id); got != want {
			t.Errorf("OnLine(%s) = %v, want %v", id.Short(), got, want)
		}
	}
	if _, ok := fence.Head(nil, nil); ok {
		t.Error("a system without snapshots has a head")
	}
}
