package capture

import (
	"fmt"
	"maps"
	"slices"

	"lifeboat/internal/dr"
)

// missing lists what the snapshot before has and this one has not, as objects of
// the coverage report: a container that was removed, or a volume that nothing
// mounts any more, would else be lost without a word with the next failover.
// Anonymous volumes come and go with their containers and are not listed.
func missing(before, now *dr.Root) []string {
	gone := objects(before)
	for o := range objects(now) {
		delete(gone, o)
	}
	return slices.Sorted(maps.Keys(gone))
}

func objects(r *dr.Root) map[string]bool {
	all := map[string]bool{}
	for _, c := range r.Containers {
		all["container:"+c.Name] = true
	}
	for _, n := range r.Networks {
		all["network:"+n.Name] = true
	}
	for _, v := range r.Volumes {
		if !v.Anonymous {
			all["volume:"+v.Name] = true
		}
	}
	for _, b := range r.Binds {
		all["bind:"+b.Source] = true
	}
	for _, f := range r.Files {
		all["file:"+f.Path] = true
	}
	return all
}

// noteMissing adds what is missing to the coverage report, unless that tells why
// already.
func noteMissing(root *dr.Root, gone []string, before dr.Number) {
	for _, o := range gone {
		if slices.ContainsFunc(root.Coverage, func(c dr.CoverageItem) bool { return c.Object == o && !c.Captured }) {
			continue
		}
		root.Coverage = append(root.Coverage, dr.CoverageItem{
			Object: o, Reason: fmt.Sprintf("was in snapshot #%d and is not here any more", before), Bytes: -1,
		})
	}
}
