package recover

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"lifeboat/internal/dr"
	"lifeboat/internal/engine"
	"lifeboat/internal/plan"
	"lifeboat/internal/site"
)

// Plan is what bringing a system up here would do.
type Plan struct {
	System   dr.System     `json:"system"`
	Snapshot dr.SnapshotID `json:"snapshot"`
	Created  string        `json:"created"`
	DataAgeS int64         `json:"data_age_s"`
	// Move: what is newer than the snapshot comes along, nothing is lost.
	Move    bool             `json:"move"`
	Images  []ImagePlan      `json:"images"`
	Objects []ObjectPlan     `json:"objects"`
	Changes []OverrideChange `json:"overrides"`
	// Conflicts stop the plan.
	Conflicts []plan.Conflict `json:"conflicts"`
	// Notes are what the operator should know.
	Notes []string `json:"notes"`
	// FetchAtMost bounds the bytes to be fetched from the repository, before
	// compression; FetchExpected is what it is if the system's data here did not
	// change since the last snapshot that was taken or brought up here.
	FetchAtMost   int64 `json:"fetch_at_most"`
	FetchExpected int64 `json:"fetch_expected"`
	// Touches is true where something that exists is stopped or rewritten.
	Touches bool `json:"touches_existing"`
}

// ImagePlan says of an image whether it is here.
type ImagePlan struct {
	Name  string `json:"name"`
	ID    string `json:"id"`
	Here  bool   `json:"here"`
	Bytes int64  `json:"bytes"`
}

// ObjectPlan says what happens to a container, network, volume or path.
type ObjectPlan struct {
	Object string `json:"object"`
	// Action is create, reuse, replace, restore in place, attach.
	Action string `json:"action"`
	Bytes  int64  `json:"bytes,omitempty"`
}

// OverrideChange is one change that the site's overrides make.
type OverrideChange struct {
	Object string `json:"object"`
	Field  string `json:"field"`
	From   string `json:"from"`
	To     string `json:"to"`
}

// survey is what there is at this site, as far as the system is concerned.
type survey struct {
	info dr.EngineInfo
	host engine.HostFS
	inv  engine.Inventory
	own  map[string]bool // kind:name
	// containers of the engine by name.
	containers map[string]engine.InventoryContainer
	bringup    *site.Bringup
	// known are root records whose trees need not be kept again.
	known []*dr.Root
}

// take looks at the engine and finds what belongs to the system (ADR 5, Ownership).
func take(ctx context.Context, d Deps, sys dr.System) (*survey, error) {
	s := &survey{own: map[string]bool{}, containers: map[string]engine.InventoryContainer{}}
	var err error
	if s.host, err = d.Engine.HostFS(ctx); err != nil {
		return nil, err
	}
	s.info = s.host.Info()
	if s.inv, err = d.Engine.Inventory(ctx); err != nil {
		return nil, err
	}
	for _, c := range s.inv.Containers {
		s.containers[c.Name] = c
	}
	if s.bringup, err = d.State.Bringup(sys); err != nil {
		return nil, err
	}
	s.ownFromBringup()
	s.ownFromLabels(sys)
	return s, s.ownFromSnapshots(ctx, d, sys)
}

func (s *survey) ownFromBringup() {
	if s.bringup == nil {
		return
	}
	for name, c := range s.bringup.Containers {
		if here, ok := s.containers[name]; ok && here.ID == c.ID {
			s.own["container:"+name] = true
		}
	}
	for name := range s.bringup.Networks {
		s.own["network:"+name] = true
	}
	for name := range s.bringup.Volumes {
		s.own["volume:"+name] = true
	}
	for path := range s.bringup.Binds {
		s.own["path:"+path] = true
	}
	for path := range s.bringup.Files {
		s.own["file:"+path] = true
	}
}

func (s *survey) ownFromLabels(sys dr.System) {
	for _, c := range s.inv.Containers {
		if c.Labels[engine.LabelSystem] == string(sys) {
			s.own["container:"+c.Name] = true
		}
	}
	for _, n := range s.inv.Networks {
		if n.Labels[engine.LabelSystem] == string(sys) {
			s.own["network:"+n.Name] = true
		}
	}
}

// ownFromSnapshots takes what the newest snapshot of this host names: that
// includes what it was brought up with. A host without any may have lost its
// identity with Lifeboat's local state while the engine's data stayed: then it
// is the newest snapshot from an engine of the same id that has a container
// here. The id alone says little: it is copied with a machine's disk.
func (s *survey) ownFromSnapshots(ctx context.Context, d Deps, sys dr.System) error {
	snaps, _, err := d.Repo.Snapshots(ctx, sys)
	if err != nil {
		return err
	}
	for i := range slices.Backward(snaps) {
		if snaps[i].Host != d.Repo.HostID() {
			continue
		}
		rd, root, err := openRoot(ctx, d.Repo, &snaps[i])
		if err != nil {
			return err
		}
		rd.Close()
		s.known = append(s.known, root)
		if root.Engine.ID == s.info.ID {
			s.ownFromRoot(root)
		}
		return nil
	}
	looked := map[dr.HostID]bool{}
	for i := range slices.Backward(snaps) {
		if looked[snaps[i].Host] {
			continue
		}
		looked[snaps[i].Host] = true
		rd, root, err := openRoot(ctx, d.Repo, &snaps[i])
		if err != nil {
			d.Log.Warn("a snapshot of another host cannot be asked what belongs to the system here", "error", err)
			continue
		}
		rd.Close()
		if root.Engine.ID == s.info.ID && slices.ContainsFunc(root.Containers, func(c dr.Container) bool { return s.containers[c.Name].ID == c.ID }) {
			s.known = append(s.known, root)
			s.ownFromRoot(root)
			return nil
		}
	}
	return nil
}

// ownFromRoot takes what a snapshot from this engine names. A container must
// also be of the same Compose project, or have the id that it had.
func (s *survey) ownFromRoot(root *dr.Root) {
	for _, c := range root.Containers {
		here, ok := s.containers[c.Name]
		if ok && (here.ID == c.ID || c.Project != "" && here.Project == c.Project) {
			s.own["container:"+c.Name] = true
		}
	}
	for _, n := range root.Networks {
		if !n.External {
			s.own["network:"+n.Name] = true
		}
	}
	for _, v := range root.Volumes {
		s.own["volume:"+v.Name] = true
	}
	for _, b := range root.Binds {
		s.own["path:"+b.Source] = true
	}
	for _, f := range root.Files {
		s.own["file:"+f.Path] = true
	}
}

// taken puts the inventory into the words of package plan.
func (s *survey) taken() plan.Taken {
	t := plan.Taken{
		Containers: map[string]string{}, Networks: map[string]string{}, Volumes: map[string]string{},
		Binds: map[string]string{}, Own: s.own,
	}
	for _, c := range s.inv.Containers {
		t.Containers[c.Name] = fmt.Sprintf("a container of that name exists (%s, image %s)", c.State, c.Image)
		for _, p := range c.Ports {
			if p.Port != 0 {
				t.Ports = append(t.Ports, plan.Port{Proto: p.Proto, IP: p.IP, Port: p.Port, By: c.Name})
			}
		}
	}
	for _, n := range s.inv.Networks {
		t.Networks[n.Name] = "a network of that name exists"
		for _, sub := range n.Subnets {
			t.Subnets = append(t.Subnets, plan.Subnet{Prefix: sub, By: n.Name})
		}
	}
	for _, v := range s.inv.Volumes {
		t.Volumes[v.Name] = "a volume of that name exists"
	}
	return t
}

// pathState says what is at a host path: missing, empty or filled.
func (s *survey) pathState(path string) (string, error) {
	p, err := s.host.Path(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "missing", nil
	}
	if err != nil {
		return "", err
	}
	st, err := os.Stat(p)
	if err != nil {
		return "", err
	}
	if !st.IsDir() {
		return "filled", nil
	}
	f, err := os.Open(p)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if names, _ := f.Readdirnames(1); len(names) == 0 {
		return "empty", nil
	}
	return "filled", nil
}
