package recover

import (
	"context"
	"strings"

	"lifeboat/internal/dr"
	"lifeboat/internal/repo"
)

// estimate says how much of the snapshot has to be fetched. What is on this
// disk is not read for it: nothing counts as here but whole images, so the first
// figure is a bound. The second one supposes that the system's trees here are
// still as they were in the last snapshot that was taken or brought up here:
// then only what snapshots since then added is missing.
func (b *bringUp) estimate(ctx context.Context, p *Plan) error {
	images := int64(0)
	for _, im := range p.Images {
		if !im.Here {
			images += im.Bytes
		}
	}
	p.FetchAtMost = images
	for _, t := range b.captured.Trees {
		p.FetchAtMost += t.Bytes
	}
	p.FetchExpected = p.FetchAtMost
	snaps, _, err := b.d.Repo.Snapshots(ctx, b.o.System)
	if err != nil {
		return err
	}
	here := lastHere(snaps, b.d.Repo.HostID(), b.brought())
	if here == 0 || !p.Touches {
		return nil
	}
	added := images
	for _, s := range snaps {
		if s.Number > here && s.Number <= b.snap.Number && s.Kind != dr.KindDivergent {
			added += s.BytesNew
		}
	}
	p.FetchExpected = min(added, p.FetchAtMost)
	return nil
}

// notCaptured names in one line what the snapshot does not hold. Why, is told by
// its coverage report; that what containers printed is not captured is so of
// every system.
func notCaptured(root *dr.Root) []string {
	var objects []string
	for _, c := range root.Coverage {
		if !c.Captured && c.Reason != "" && c.Object != "logs" {
			objects = append(objects, c.Object)
		}
	}
	if objects == nil {
		return nil
	}
	return []string{"not in the snapshot (lifeboat ls " + string(root.System) + " says why): " + strings.Join(objects, ", ")}
}

// brought is the snapshot that was last brought up here; nil for none.
func (b *bringUp) brought() *dr.SnapshotID {
	if b.survey.bringup == nil {
		return nil
	}
	return &b.survey.bringup.Snapshot
}

// lastHere is the number of the last snapshot that this host took or brought
// up, 0 for none.
func lastHere(snaps []repo.Snapshot, host dr.HostID, brought *dr.SnapshotID) dr.Number {
	var last dr.Number
	for _, s := range snaps {
		if s.Host == host || brought != nil && s.ID == *brought {
			last = max(last, s.Number)
		}
	}
	return last
}
