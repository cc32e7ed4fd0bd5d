package recover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"lifeboat/internal/capture"
	"lifeboat/internal/dr"
	"lifeboat/internal/engine"
	"lifeboat/internal/site"
)

func cutKind(s string) (kind, name string, ok bool) { return strings.Cut(s, ":") }

func (s *survey) exists(container string) bool { _, ok := s.containers[container]; return ok }

// ownContainers are the system's containers that exist here, sorted by name.
func (s *survey) ownContainers() []engine.InventoryContainer {
	var out []engine.InventoryContainer
	for _, c := range s.inv.Containers {
		if s.own["container:"+c.Name] {
			out = append(out, c)
		}
	}
	return out
}

// stopOwn keeps the system's containers from restarting, then stops them, in
// this order, so that a reboot in between does not start them again (ADR 5).
func (b *bringUp) stopOwn(ctx context.Context) error {
	own := b.survey.ownContainers()
	for _, c := range own {
		if err := b.d.Engine.DisableRestart(ctx, c.ID); err != nil {
			return err
		}
	}
	for _, c := range b.stopOrder(own) {
		if err := b.d.Engine.Stop(ctx, c.ID, -1); err != nil {
			return err
		}
	}
	return nil
}

// stopOrder puts dependents before what they depend on.
func (b *bringUp) stopOrder(own []engine.InventoryContainer) []engine.InventoryContainer {
	rank := map[string]int{}
	for i, c := range startOrder(b.local.Containers) {
		rank[c.Name] = i
	}
	out := slices.Clone(own)
	slices.SortStableFunc(out, func(x, y engine.InventoryContainer) int { return rank[y.Name] - rank[x.Name] })
	return out
}

// bringNetworks creates the networks that are missing. One of the system's own
// that is specified otherwise is made anew; nothing of the system runs now.
func (b *bringUp) bringNetworks(ctx context.Context) error {
	for i, n := range b.local.Networks {
		if n.External {
			continue
		}
		have, err := b.d.Engine.Network(ctx, n.Name)
		switch {
		case errors.Is(err, dr.ErrNotFound):
		case err != nil:
			return err
		case capture.SameJSON(have.Spec, n.Spec):
			continue
		case !b.survey.own["network:"+n.Name]:
			return fmt.Errorf("network %s appeared meanwhile and is not the system's own: %w", n.Name, dr.ErrHeld)
		default:
			if err := b.d.Engine.RemoveNetwork(ctx, have.ID); err != nil {
				return err
			}
		}
		b.survey.own["network:"+n.Name] = true
		// Recorded first, so that a later run knows it for the system's own.
		made := b.madeHere()
		made.Networks[n.Name] = site.BroughtNetwork{Original: b.captured.Networks[i]}
		if err := b.d.State.SetBringup(b.o.System, made); err != nil {
			return err
		}
		if _, err := b.d.Engine.CreateNetwork(ctx, n.Spec, nil); err != nil {
			return err
		}
	}
	return nil
}

// madeHere is the record of what was made at this site, to be added to.
func (b *bringUp) madeHere() *site.Bringup {
	if b.survey.bringup == nil {
		b.survey.bringup = &site.Bringup{Snapshot: b.snap.ID}
	}
	made := b.survey.bringup
	if made.Volumes == nil {
		made.Volumes = map[string]string{}
	}
	if made.Binds == nil {
		made.Binds = map[string]string{}
	}
	if made.Networks == nil {
		made.Networks = map[string]site.BroughtNetwork{}
	}
	return made
}

// ownPlaces records volumes and paths for the system's own before they are
// made, so that a later run knows them.
func (b *bringUp) ownPlaces() error {
	made := b.madeHere()
	for i, v := range b.local.Volumes {
		made.Volumes[v.Name] = b.captured.Volumes[i].Name
	}
	for i, m := range b.local.Binds {
		if m.Tree != "" {
			made.Binds[m.Source] = b.captured.Binds[i].Source
		}
	}
	return b.d.State.SetBringup(b.o.System, made)
}

// bringVolumes creates missing volumes and the directories of bind mounts.
func (b *bringUp) bringVolumes(ctx context.Context) error {
	if err := b.ownPlaces(); err != nil {
		return err
	}
	for _, v := range b.local.Volumes {
		if dir, ok := boundDir(v); ok {
			if err := os.MkdirAll(b.survey.host.Prefix+dir, 0o755); err != nil {
				return fmt.Errorf("directory of volume %s: %w", v.Name, err)
			}
		}
		if _, err := b.d.Engine.Volume(ctx, v.Name); err == nil {
			continue
		} else if !errors.Is(err, dr.ErrNotFound) {
			return err
		}
		if _, err := b.d.Engine.CreateVolume(ctx, v, nil); err != nil && !errors.Is(err, dr.ErrHeld) {
			return err
		}
	}
	for _, m := range b.local.Binds {
		if m.Tree == "" {
			continue
		}
		dir := m.Source
		if m.File {
			dir = filepath.Dir(m.Source)
		}
		if err := os.MkdirAll(b.survey.host.Prefix+dir, 0o755); err != nil {
			return fmt.Errorf("path %s: %w", m.Source, err)
		}
	}
	return nil
}

// bringContainers creates the containers, none of them started. One that
// exists and is configured as wanted is taken as it is; another one of the
// system's own is made anew (what its writable layer held was kept before).
func (b *bringUp) bringContainers(ctx context.Context) error {
	for _, c := range createOrder(b.local.Containers) {
		id, err := b.bringContainer(ctx, c)
		if err != nil {
			return err
		}
		if err := b.journal.SetFact(b.containerFact(c.Name), id); err != nil {
			return err
		}
	}
	return b.dropKeepNames(ctx)
}

func (b *bringUp) containerFact(name string) string { return b.snap.ID.Short() + ":container:" + name }

func (b *bringUp) containerID(name string) (string, error) {
	var id string
	ok, err := b.journal.Fact(b.containerFact(name), &id)
	if err == nil && !ok {
		err = fmt.Errorf("journal does not know the container %s", name)
	}
	return id, err
}

func (b *bringUp) containerIDs() ([]string, error) {
	var ids []string
	for _, c := range b.local.Containers {
		id, err := b.containerID(c.Name)
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, nil
}

func (b *bringUp) bringContainer(ctx context.Context, c dr.Container) (string, error) {
	image, err := b.localImage(ctx, c)
	if err != nil {
		return "", err
	}
	have, err := b.d.Engine.Container(ctx, c.Name)
	if err != nil && !errors.Is(err, dr.ErrNotFound) {
		return "", err
	}
	if err == nil {
		if !b.survey.own["container:"+c.Name] && have.Labels[engine.LabelSystem] != string(b.o.System) {
			return "", fmt.Errorf("container %s appeared meanwhile and is not the system's own: %w", c.Name, dr.ErrHeld)
		}
		same, err := b.sameContainer(ctx, c, have, image)
		if err != nil {
			return "", err
		}
		if same {
			return have.ID, nil
		}
		if err := b.d.Engine.Remove(ctx, have.ID, engine.RemoveOptions{}); err != nil {
			return "", err
		}
	}
	return b.d.Engine.CreateContainer(ctx, withoutRestart(c), engine.CreateOptions{
		Image: b.imageRef(ctx, c, image),
		Labels: map[string]string{
			engine.LabelSystem: string(b.o.System), engine.LabelSnapshot: b.snap.ID.String(),
		},
	})
}

// sameContainer reports whether the container that exists is configured as wanted.
func (b *bringUp) sameContainer(ctx context.Context, want dr.Container, have engine.ContainerState, image string) (bool, error) {
	if have.Image != image {
		return false, nil
	}
	sys, err := b.d.Engine.Discover(ctx, engine.Selector{Containers: []string{have.ID}})
	if err != nil {
		return false, err
	}
	if len(sys.Containers) != 1 {
		return false, nil
	}
	a, err := capture.Comparable(sys.Containers[0].Container)
	if err != nil {
		return false, err
	}
	w, err := capture.Comparable(want)
	return err == nil && capture.SameJSON(a, w), err
}

// withoutRestart creates with the restart policy "no": a marked tree must not
// be served after a reboot (ADR 5). The captured policy is set before the start.
func withoutRestart(c dr.Container) dr.Container {
	var host map[string]json.RawMessage
	if json.Unmarshal(c.HostConfig, &host) == nil {
		host["RestartPolicy"] = json.RawMessage(`{"Name":"no","MaximumRetryCount":0}`)
		if raw, err := json.Marshal(host); err == nil {
			c.HostConfig = raw
		}
	}
	return c
}

// restartPolicy is the captured one.
func restartPolicy(c dr.Container) engine.RestartPolicy {
	var host struct{ RestartPolicy engine.RestartPolicy }
	_ = json.Unmarshal(c.HostConfig, &host) // it was decoded before; an absent policy is "no"
	return host.RestartPolicy
}

func (b *bringUp) recordContainers(rec *site.Bringup, now *engine.System) error {
	for i, c := range b.local.Containers {
		at := slices.IndexFunc(now.Containers, func(x engine.Container) bool { return x.Name == c.Name })
		if at < 0 {
			return fmt.Errorf("container %s was created and is gone: %w", c.Name, dr.ErrNotFound)
		}
		local, err := capture.Comparable(now.Containers[at].Container)
		if err != nil {
			return err
		}
		rec.Containers[c.Name] = site.BroughtContainer{ID: now.Containers[at].ID, Original: b.captured.Containers[i], Local: local}
	}
	return nil
}
