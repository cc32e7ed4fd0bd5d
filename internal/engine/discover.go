package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"lifeboat/internal/dr"
	"lifeboat/internal/engine/compose"
)

// Discover describes a system: its containers in every state, and everything
// that they use. It changes nothing. The error of a project or container that
// does not exist wraps dr.ErrNotFound and names near ones.
//
// Where HostFS is not local, the Compose files are not read and the kinds of
// binds are unknown; the caller runs itself in the helper container for these,
// or asks for Selector.Archive.
func (e *Engine) Discover(ctx context.Context, sel Selector) (*System, error) {
	var h HostFS
	if sel.Host != nil {
		h = *sel.Host
	} else {
		var err error
		if h, err = e.HostFS(ctx); err != nil {
			return nil, err
		}
	}
	f := h.facts
	all, err := e.listAll(ctx)
	if err != nil {
		return nil, err
	}
	chosen, err := choose(all, sel)
	if err != nil {
		return nil, err
	}
	cs, err := e.inspectAll(ctx, chosen)
	if err != nil {
		return nil, err
	}
	inSystem := map[string]bool{}
	for _, c := range cs {
		inSystem[c.name] = true
	}
	s := &System{Project: sel.Project, Engine: f.EngineInfo, HostFS: h}
	d := &discovery{e: e, f: f, h: h, sel: sel, all: all, cs: cs, sys: s}
	if err := d.images(ctx); err != nil {
		return nil, err
	}
	if s.Networks, err = e.discoverNetworks(ctx, sel, cs, inSystem); err != nil {
		return nil, err
	}
	if s.Volumes, d.st, err = e.discoverVolumes(ctx, sel, cs, all, inSystem); err != nil {
		return nil, err
	}
	d.st.mounts = engineMounts(h)
	s.Binds = discoverBinds(h, cs, all, inSystem)
	models, err := d.projects(ctx)
	if err != nil {
		return nil, err
	}
	if err := d.containers(ctx, chosen, models); err != nil {
		return nil, err
	}
	if sel.Archive {
		d.reachByArchive(ctx)
	}
	d.cover()
	return s, nil
}

// inspectAll inspects the chosen containers. One that was removed meanwhile is
// no part of the system any more.
func (e *Engine) inspectAll(ctx context.Context, chosen []container.Summary) ([]inspected, error) {
	var out []inspected
	for _, c := range chosen {
		in, err := e.inspect(ctx, c.ID)
		if errors.Is(err, dr.ErrNotFound) {
			e.log.Info("container was removed during discovery", "container", listName(c))
			continue
		}
		if err != nil {
			return nil, err
		}
		if in.State.Status == "removing" {
			continue
		}
		out = append(out, in)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("the containers of the system were removed just now: %w", dr.ErrNotFound)
	}
	return out, nil
}

// discovery gathers one System.
type discovery struct {
	e   *Engine
	f   facts
	h   HostFS
	sel Selector
	all []container.Summary
	cs  []inspected
	sys *System
	st  storage
	// notes and problems for coverage, by object.
	notes         map[string][]string
	missingImages map[string]string
}

func (d *discovery) note(object, format string, args ...any) {
	if d.notes == nil {
		d.notes = map[string][]string{}
	}
	d.notes[object] = append(d.notes[object], fmt.Sprintf(format, args...))
}

// images describes the images of the containers, each once.
func (d *discovery) images(ctx context.Context) error {
	seen := map[string]bool{}
	d.missingImages = map[string]string{}
	for _, c := range d.cs {
		if seen[c.Image] {
			continue
		}
		seen[c.Image] = true
		img, err := d.e.Image(ctx, c.Image)
		if errors.Is(err, dr.ErrNotFound) {
			d.missingImages[c.Image] = c.name
			continue
		}
		if err != nil {
			return err
		}
		img.Tags, img.Digests = given(img.Tags), given(img.Digests)
		d.sys.Images = append(d.sys.Images, img)
	}
	slices.SortFunc(d.sys.Images, func(a, b Image) int { return strings.Compare(a.ID, b.ID) })
	return nil
}

// projects reads the Compose files of each project that has containers here.
func (d *discovery) projects(ctx context.Context) (map[string]*compose.Model, error) {
	models := map[string]*compose.Model{}
	files := map[string]string{}
	for _, c := range d.cs {
		l, ok := compose.Of(c.Config.Labels)
		if !ok || models[l.Project] != nil {
			continue
		}
		if !d.h.Local {
			for _, p := range l.ConfigFiles {
				files[p] = compose.RoleCompose
			}
			for _, p := range l.EnvFiles {
				files[p] = compose.RoleEnv
			}
			continue
		}
		m, err := compose.Load(ctx, l, d.h.Path)
		if err != nil {
			return nil, fmt.Errorf("read the Compose files of project %s: %w", l.Project, err)
		}
		models[l.Project] = m
		for _, f := range m.Files {
			files[f.Path] = f.Role
		}
		for _, w := range m.Warnings {
			d.note("files:"+l.Project, "%s", w)
		}
	}
	for p, role := range files {
		d.sys.Files = append(d.sys.Files, ProjectFile{Role: role, Path: p})
	}
	slices.SortFunc(d.sys.Files, func(a, b ProjectFile) int { return strings.Compare(a.Path, b.Path) })
	return models, nil
}

// containers normalises the containers and finds their layers.
func (d *discovery) containers(ctx context.Context, chosen []container.Summary, models map[string]*compose.Model) error {
	res, err := d.e.cli.NetworkList(ctx, client.NetworkListOptions{})
	if err != nil {
		return failed("list networks", err)
	}
	refs := newReferences(d.all, chosen, res.Items)
	byService := map[string]map[string][]string{} // project, service, names
	for _, c := range d.cs {
		if l, ok := compose.Of(c.Config.Labels); ok && !l.OneOff {
			if byService[l.Project] == nil {
				byService[l.Project] = map[string][]string{}
			}
			byService[l.Project][l.Service] = append(byService[l.Project][l.Service], c.name)
		}
	}
	mac := macFinder(d.h, d.f)
	for _, in := range d.cs {
		c, needs, notes := normalise(in, d.image(in.Image), d.f, refs, mac)
		l, isCompose := compose.Of(in.Config.Labels)
		if c.DependsOn, err = dependencies(c, l, isCompose, needs, models[l.Project], byService[l.Project]); err != nil {
			notes = append(notes, err.Error())
		}
		for _, n := range notes {
			d.note("container:"+in.name, "%s", n)
		}
		out := Container{
			Container: c, InitPID: in.State.Pid, OneOff: l.OneOff, AutoRemove: in.HostConfig.AutoRemove,
			HasHealthcheck: hasHealthcheck(in.Config),
			RestartPolicy:  RestartPolicy{Name: string(in.HostConfig.RestartPolicy.Name), MaximumRetryCount: in.HostConfig.RestartPolicy.MaximumRetryCount},
		}
		if d.sel.Archive {
			out.Layer = "layer:" + in.name
		} else if out.LayerPath, err = d.e.layerOf(ctx, d.h, in.InspectResponse); err != nil {
			d.note("layer:"+in.name, "%s", err)
		} else {
			out.Layer = "layer:" + in.name
		}
		d.sys.Containers = append(d.sys.Containers, out)
	}
	return nil
}

func (d *discovery) image(id string) *Image {
	for i := range d.sys.Images {
		if d.sys.Images[i].ID == id {
			return &d.sys.Images[i]
		}
	}
	return nil
}

func hasHealthcheck(c *container.Config) bool {
	return c.Healthcheck != nil && len(c.Healthcheck.Test) > 0 && c.Healthcheck.Test[0] != "NONE"
}
