// Package fence decides who may speak for a system: epochs, the line of
// snapshots, and the two-sided protocol of a planned switch (switch.go). It
// decides only: state and event in, decision out, no I/O (invariant 6).
package fence

import (
	"fmt"
	"time"

	"lifeboat/internal/dr"
)

// Reason says why an epoch was claimed.
type Reason string

const (
	ReasonProtect    Reason = "protect"    // first snapshot of the system
	ReasonFailover   Reason = "failover"   // the former holder is lost
	ReasonSwitchover Reason = "switchover" // planned, nothing lost
	ReasonFailback   Reason = "failback"   // planned, back to the main site
	ReasonReturn     Reason = "return"     // a planned move was called off
	ReasonAdopt      Reason = "adopt"      // the holder's host was installed anew
	ReasonCopy       Reason = "copy"       // snapshots are copied from another repository
)

// Claim is an epoch record: who holds epoch Epoch of System, and from which
// snapshot the line goes on (docs/format.md, Lines).
type Claim struct {
	Format  int            `json:"format"`
	System  dr.System      `json:"system"`
	Epoch   dr.Epoch       `json:"epoch"`
	Site    dr.Site        `json:"site"`
	Host    dr.HostID      `json:"host"`
	Base    *dr.SnapshotID `json:"base,omitempty"`
	Reason  Reason         `json:"reason"`
	Created time.Time      `json:"created"`
	// StateDir and Config are where Lifeboat keeps its state and configuration on
	// the holder's host, so that a site that takes the system over can run the
	// holder's side there. Config is empty where there is no file.
	StateDir string `json:"state_dir,omitempty"`
	Config   string `json:"config,omitempty"`
}

// Role is a site's role for one system.
type Role string

const (
	RoleActive  Role = "active"  // holds the newest epoch
	RoleFenced  Role = "fenced"  // held an older one
	RoleStandby Role = "standby" // never held one
	RoleUnknown Role = "unknown" // could not be learned
)

// RoleOf decides the role of a host from all claims of a system, oldest first.
// Here and below claims need not be dense: numbers that somebody squats on are
// passed over (package ledger).
func RoleOf(claims []Claim, host dr.HostID) Role {
	if len(claims) == 0 {
		return RoleStandby
	}
	if claims[len(claims)-1].Host == host {
		return RoleActive
	}
	for _, c := range claims {
		if c.Host == host {
			return RoleFenced
		}
	}
	return RoleStandby
}

// CheckWrite decides whether host may add to the line of a system. No claim at
// all allows it (the first snapshot claims epoch 1). The error wraps
// dr.ErrFenced and names who holds which epoch since when.
func CheckWrite(claims []Claim, system dr.System, host dr.HostID) error {
	if len(claims) == 0 {
		return nil
	}
	last := claims[len(claims)-1]
	if last.Host == host {
		return nil
	}
	return fmt.Errorf("system %s is at epoch %d, held by site %s since %s (%s); this site is stale: %w",
		system, last.Epoch, last.Site, last.Created.UTC().Format(time.RFC3339), last.Reason, dr.ErrFenced)
}

// Snap is what the line needs to know of a snapshot.
type Snap struct {
	ID     dr.SnapshotID
	Number dr.Number
	Epoch  dr.Epoch
	Host   dr.HostID
	Kind   dr.Kind
}

// Head returns the newest snapshot of the system's line: the highest number of
// kind current written by the holder of the newest epoch in that epoch; before
// the first of them, the claim's base. Without any claim it is the highest
// current snapshot. It returns false when there is none.
func Head(claims []Claim, snaps []Snap) (dr.SnapshotID, bool) {
	var best *Snap
	pick := func(ok func(Snap) bool) {
		for i := range snaps {
			s := &snaps[i]
			if s.Kind == dr.KindCurrent && ok(*s) && (best == nil || s.Number > best.Number) {
				best = s
			}
		}
	}
	if len(claims) == 0 {
		pick(func(Snap) bool { return true })
	} else {
		last := claims[len(claims)-1]
		pick(func(s Snap) bool { return s.Epoch == last.Epoch && s.Host == last.Host })
		if best == nil && last.Base != nil {
			return *last.Base, true
		}
	}
	if best == nil {
		return dr.SnapshotID{}, false
	}
	return best.ID, true
}

// OnLine reports whether a snapshot stands on the line of its system: of kind
// current and written by the holder of its epoch. What a stale site writes
// carries an epoch that was superseded: if its number is higher than the base
// of the next claim, the next holder did not know of it, and it is divergent.
func OnLine(claims []Claim, snaps []Snap, id dr.SnapshotID) bool {
	byID := map[dr.SnapshotID]Snap{}
	for _, s := range snaps {
		byID[s.ID] = s
	}
	s, ok := byID[id]
	if !ok || s.Kind != dr.KindCurrent {
		return false
	}
	if len(claims) == 0 {
		return true
	}
	for i, c := range claims {
		if c.Epoch != s.Epoch {
			continue
		}
		if c.Host != s.Host {
			return false
		}
		if i+1 == len(claims) {
			return true
		}
		next := claims[i+1]
		if next.Base == nil {
			return false
		}
		base, ok := byID[*next.Base]
		return ok && s.Number <= base.Number
	}
	return false
}

// Next builds the claim that follows claims.
func Next(claims []Claim, c Claim) Claim {
	c.Format = 1
	c.Epoch = 1
	if n := len(claims); n > 0 {
		c.Epoch = claims[n-1].Epoch + 1
	}
	return c
}
