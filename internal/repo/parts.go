package repo

import (
	"cmp"
	"slices"

	"github.com/opencontainers/go-digest"

	"lifeboat/internal/dr"
	"lifeboat/internal/repo/readlog"
)

// sumUp says what the run has read, and when each part was read last.
func (v *reading) sumUp() (*Reading, error) {
	out := &Reading{Read: Amount{v.done.Packs, v.done.Bytes}}
	systems, manifests := map[dr.System]*Part{}, map[digest.Digest]*Part{}
	for _, job := range v.jobs {
		e, err := v.repo.packLog().Get(job.digest, v.opts.Now())
		if err != nil {
			return nil, err
		}
		v.count(&out.All, job, e)
		of := map[dr.System]bool{}
		for _, n := range job.needs() {
			if manifests[n.Digest] == nil {
				manifests[n.Digest] = &Part{Manifest: n.Digest}
			}
			v.count(manifests[n.Digest], job, e)
			for _, s := range v.inv.users[n] {
				of[s.System] = true
			}
		}
		for s := range of {
			if systems[s] == nil {
				systems[s] = &Part{System: s}
			}
			v.count(systems[s], job, e)
		}
	}
	out.Systems, out.Manifests = sortParts(systems), sortParts(manifests)
	return out, nil
}

func sortParts[K comparable](m map[K]*Part) []Part {
	var out []Part
	for _, p := range m {
		out = append(out, *p)
	}
	slices.SortFunc(out, func(a, b Part) int {
		return cmp.Or(cmp.Compare(a.System, b.System), cmp.Compare(a.Manifest, b.Manifest))
	})
	return out
}

// needs are the pack manifests that name a pack or index.
func (j *packJob) needs() []need {
	if j.index != nil {
		return []need{j.index.need}
	}
	out := slices.Clone(j.blind)
	for _, u := range j.uses {
		out = append(out, u.ix.need)
	}
	return out
}

func (v *reading) count(part *Part, job *packJob, e readlog.Entry) {
	part.Total.add(job.size)
	if e.Read.IsZero() {
		part.Never.add(job.size)
	} else if part.Oldest.IsZero() || e.Read.Before(part.Oldest) {
		part.Oldest = e.Read
	}
	if w := v.opts.Read.Within; w > 0 && v.opts.Now().Sub(e.Since()) > w {
		part.Overdue.add(job.size)
	}
}
