package recover

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"lifeboat/internal/dr"
	"lifeboat/internal/engine"
	"lifeboat/internal/override"
	"lifeboat/internal/plan"
	"lifeboat/internal/repo"
	"lifeboat/internal/site"
)

// bringUp brings the objects and trees of a system at this site to the state of
// one snapshot. Its steps are idempotent; what one step finds out and a later
// one needs is a fact of the journal.
type bringUp struct {
	d      Deps
	o      Options
	snap   *repo.Snapshot
	reader *repo.Reader
	// captured is the root record; local is the same under this site's overrides.
	captured *dr.Root
	local    *dr.Root
	changes  []override.Change
	survey   *survey
	journal  *plan.Journal
	// known are further roots whose trees are proven in the repository.
	known   []*dr.Root
	kept    *repo.Snapshot
	fetched int64
	// resumes: a run in degraded mode was cut off; what exists here is its work.
	resumes bool
}

// prepare reads the snapshot and looks at the site. Nothing is changed.
func prepare(ctx context.Context, d Deps, o Options, snap *repo.Snapshot) (*bringUp, error) {
	b := &bringUp{d: d, o: o, snap: snap}
	var err error
	if b.reader, b.captured, err = openRoot(ctx, d.Repo, snap); err != nil {
		return nil, err
	}
	if b.local, b.changes, err = override.Apply(b.captured, o.Overrides); err != nil {
		b.close()
		return nil, err
	}
	if b.survey, err = take(ctx, d, o.System); err != nil {
		b.close()
		return nil, err
	}
	if !b.survey.host.Local && !o.Degraded {
		b.close()
		return nil, fmt.Errorf("the files of the engine's host cannot be reached from here: %s", b.survey.host.Reason)
	}
	return b, nil
}

func (b *bringUp) close() {
	if b.reader != nil {
		b.reader.Close()
	}
}

// plan says what would be done and what stands in the way.
func (b *bringUp) plan(ctx context.Context) (*Plan, error) {
	p := &Plan{
		System: b.o.System, Snapshot: b.snap.ID, Created: b.captured.Created.UTC().Format(time.RFC3339),
		DataAgeS: int64(time.Since(b.captured.Created).Seconds()), Conflicts: []plan.Conflict{}, Notes: []string{},
	}
	for _, c := range b.changes {
		p.Changes = append(p.Changes, OverrideChange{Object: c.Object, Field: c.Field, From: c.From, To: c.To})
	}
	wants, err := plan.WantsOf(b.captured, b.local)
	if err != nil {
		return nil, err
	}
	taken := b.survey.taken()
	if b.o.Degraded {
		b.planDegraded(p)
	} else if err := b.planBinds(ctx, p, &taken); err != nil {
		return nil, err
	}
	if b.survey.host.Local {
		own := func(name string) bool { return b.survey.own["container:"+name] }
		taken.Ports = append(taken.Ports, listening(b.survey.host.EnginePID, b.survey.inv.Containers, own)...)
	}
	p.Conflicts = append(p.Conflicts, b.conflicts(wants, taken)...)
	if err := b.planImages(ctx, p); err != nil {
		return nil, err
	}
	b.planObjects(p)
	if a := b.captured.Engine.Arch; a != "" && b.survey.info.Arch != "" && a != b.survey.info.Arch {
		p.Notes = append(p.Notes, fmt.Sprintf("the system was captured on %s, this engine is %s: its containers will only run under emulation", a, b.survey.info.Arch))
	}
	p.Notes = append(p.Notes, notCaptured(b.captured)...)
	p.Notes = append(p.Notes, notWhole(b.captured.Trees)...)
	return p, b.estimate(ctx, p)
}

func (b *bringUp) planObjects(p *Plan) {
	exists := b.survey.taken()
	trees := map[string]dr.Tree{}
	for _, t := range b.captured.Trees {
		trees[t.Key] = t
	}
	action := func(kind, name string, taken map[string]string, own string) string {
		if _, ok := taken[name]; ok && b.survey.own[kind+":"+name] {
			p.Touches = true
			return own
		}
		return "create"
	}
	for _, n := range b.local.Networks {
		a := "attach"
		if !n.External {
			a = action("network", n.Name, exists.Networks, "reuse")
		}
		p.Objects = append(p.Objects, ObjectPlan{Object: "network " + n.Name, Action: a})
	}
	for _, v := range b.local.Volumes {
		p.Objects = append(p.Objects, ObjectPlan{Object: "volume " + v.Name, Action: action("volume", v.Name, exists.Volumes, "restore in place"), Bytes: trees[v.Tree].Bytes})
	}
	for _, m := range b.local.Binds {
		if m.Tree == "" {
			continue
		}
		a := "create"
		if b.survey.own["path:"+m.Source] {
			a, p.Touches = "restore in place", true
		}
		p.Objects = append(p.Objects, ObjectPlan{Object: "path " + m.Source, Action: a, Bytes: trees[m.Tree].Bytes})
	}
	for _, c := range b.local.Containers {
		p.Objects = append(p.Objects, ObjectPlan{Object: "container " + c.Name, Action: action("container", c.Name, exists.Containers, "stop, keep, restore in place"), Bytes: trees[c.Layer].Bytes})
	}
	for name := range b.survey.own {
		kind, n, _ := cutKind(name)
		if kind == "container" && b.survey.exists(n) && !slices.ContainsFunc(b.local.Containers, func(c dr.Container) bool { return c.Name == n }) {
			p.Notes = append(p.Notes, "container "+n+" is the system's own here but not part of the snapshot: it is stopped and left")
			p.Touches = true
		}
	}
	slices.Sort(p.Notes)
}

func (b *bringUp) planImages(ctx context.Context, p *Plan) error {
	for _, im := range b.local.Images {
		_, here, err := b.imageID(ctx, im)
		if err != nil {
			return err
		}
		ip := ImagePlan{Name: im.ID, ID: im.ID, Here: here, Bytes: im.Bytes}
		if len(im.Tags) > 0 {
			ip.Name = im.Tags[0]
		}
		p.Images = append(p.Images, ip)
	}
	return nil
}

// planBinds finds host paths that hold something else than wanted.
func (b *bringUp) planBinds(ctx context.Context, p *Plan, taken *plan.Taken) error {
	for _, m := range b.local.Binds {
		if m.Tree == "" {
			state, err := b.survey.pathState(m.Source)
			if err != nil {
				return err
			}
			if state == "missing" {
				p.Notes = append(p.Notes, "path "+m.Source+" was not captured and does not exist here: containers that mount it will not start")
			}
			continue
		}
		if b.survey.own["path:"+m.Source] {
			continue
		}
		state, err := b.survey.pathState(m.Source)
		if err != nil {
			return fmt.Errorf("path %s: %w", m.Source, err)
		}
		if state != "filled" {
			continue
		}
		same, err := b.treeIsHere(ctx, m.Tree, m.Source)
		if err != nil {
			return fmt.Errorf("path %s: %w", m.Source, err)
		}
		if !same {
			taken.Binds[m.Source] = "it exists on this host with other content"
		}
	}
	return nil
}

// steps are what lays the system down, ready to start.
func (b *bringUp) steps() []plan.Step {
	id := func(s string) string { return b.snap.ID.Short() + ":" + s }
	if b.o.Degraded {
		return b.degradedSteps(id)
	}
	return []plan.Step{
		{ID: id("images"), Title: "images", Do: b.bringImages},
		{ID: id("stop"), Title: "stop what runs here of the system", Do: b.stopOwn},
		{ID: id("keep"), Title: "keep what this site holds", Do: b.keepOwn},
		{ID: id("networks"), Title: "networks", Do: b.bringNetworks},
		{ID: id("volumes"), Title: "volumes and paths", Do: b.bringVolumes},
		{ID: id("containers"), Title: "containers", Do: b.bringContainers},
		{ID: id("trees"), Title: "data", Do: b.bringTrees},
		{ID: id("files"), Title: "project files", Do: b.bringFiles},
		{ID: id("record"), Title: "record what is here", Do: b.record},
	}
}

// notWhole names the trees of which something could not be captured.
func notWhole(trees []dr.Tree) []string {
	by := map[string][]string{} // keys by what is lost
	for _, t := range trees {
		if t.Degraded != "" {
			by[t.Degraded] = append(by[t.Degraded], t.Key)
		}
	}
	var notes []string
	for what, keys := range by {
		notes = append(notes, "not whole in the snapshot: "+strings.Join(keys, ", ")+": "+what)
	}
	for _, t := range trees {
		if len(t.HalfRestored) > 0 {
			notes = append(notes, "half restored when the snapshot was taken, a mixture of two states: "+t.Key+" (an older snapshot may be whole: --snapshot)")
		}
	}
	slices.Sort(notes)
	return notes
}

// record writes down what was made here, before any of it runs.
func (b *bringUp) record(ctx context.Context) error {
	rec := &site.Bringup{
		Snapshot: b.snap.ID, Containers: map[string]site.BroughtContainer{}, Networks: map[string]site.BroughtNetwork{},
		Volumes: map[string]string{}, Binds: map[string]string{}, Files: map[string]string{},
	}
	ids, err := b.containerIDs()
	if err != nil {
		return err
	}
	now, err := b.d.Engine.Discover(ctx, engine.Selector{Containers: ids})
	if err != nil {
		return err
	}
	if err := b.recordContainers(rec, now); err != nil {
		return err
	}
	for i, n := range b.local.Networks {
		at := slices.IndexFunc(now.Networks, func(x engine.Network) bool { return x.Name == n.Name })
		if !n.External && at >= 0 {
			rec.Networks[n.Name] = site.BroughtNetwork{Original: b.captured.Networks[i], Local: now.Networks[at].Spec}
		}
	}
	for i, v := range b.local.Volumes {
		rec.Volumes[v.Name] = b.captured.Volumes[i].Name
	}
	for i, m := range b.local.Binds {
		rec.Binds[m.Source] = b.captured.Binds[i].Source
	}
	for i, f := range b.local.Files {
		rec.Files[f.Path] = b.captured.Files[i].Path
	}
	return b.d.State.SetBringup(b.o.System, rec)
}
