package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"lifeboat/internal/dr"
	"lifeboat/internal/engine/compose"
)

// inspected is a container as the engine shows it, typed for reading and raw
// for keeping.
type inspected struct {
	container.InspectResponse
	name       string
	config     object
	hostConfig object
	endpoints  map[string]object
}

func (e *Engine) inspect(ctx context.Context, nameOrID string) (inspected, error) {
	res, err := e.cli.ContainerInspect(ctx, nameOrID, client.ContainerInspectOptions{})
	if err != nil {
		return inspected{}, failed("inspect container "+nameOrID, err)
	}
	in := inspected{InspectResponse: res.Container, name: strings.TrimPrefix(res.Container.Name, "/"), endpoints: map[string]object{}}
	var raw struct {
		Config          json.RawMessage
		HostConfig      json.RawMessage
		NetworkSettings struct{ Networks map[string]json.RawMessage }
	}
	if err := json.Unmarshal(res.Raw, &raw); err != nil {
		return inspected{}, fmt.Errorf("inspect container %s: %w", nameOrID, err)
	}
	if in.config, err = parseObject(raw.Config); err != nil {
		return inspected{}, fmt.Errorf("inspect container %s: %w", nameOrID, err)
	}
	if in.hostConfig, err = parseObject(raw.HostConfig); err != nil {
		return inspected{}, fmt.Errorf("inspect container %s: %w", nameOrID, err)
	}
	for name, ep := range raw.NetworkSettings.Networks {
		if in.endpoints[name], err = parseObject(ep); err != nil {
			return inspected{}, fmt.Errorf("inspect container %s: network %s: %w", nameOrID, name, err)
		}
	}
	if in.State == nil || in.Config == nil || in.HostConfig == nil {
		return inspected{}, fmt.Errorf("inspect container %s: the engine's answer is incomplete", nameOrID)
	}
	return in, nil
}

// shortID is the form of an id that the engine uses as a default host name and alias.
func shortID(id string) string { return id[:min(len(id), 12)] }

// normalise turns a container as inspected into what a create request takes:
// nothing in it is of this one engine or of this one run. What follows for
// coverage is in notes; needs are containers that must be started before it.
func normalise(in inspected, img *Image, f facts, refs *references, mac requestedMAC) (c dr.Container, needs, notes []string) {
	l, _ := compose.Of(in.Config.Labels)
	c = dr.Container{
		ID: in.ID, Name: in.name, Project: l.Project, Service: l.Service, ContainerNumber: l.Number,
		State: string(in.State.Status), ExitCode: in.State.ExitCode,
		Image: in.Image, ImageRef: in.Config.Image,
	}
	if img != nil && img.Arch != "" && f.Arch != "" && img.Arch != f.Arch {
		// An emulated image must be asked for by name; the engine's own
		// architecture must not, so that it can differ at the other site.
		c.Platform = strings.Trim(img.OS+"/"+img.Arch+"/"+img.Variant, "/")
	}
	config, host := clone(in.config), clone(in.hostConfig)
	needs, notes = refs.rewriteHostConfig(host)
	normaliseNetworkMode(in, f, config, host)
	delete(config, "MacAddress") // it is kept with the endpoint
	dropOwnLabels(config)
	normaliseEntrypoint(config, img)
	normaliseDefaults(f, host)
	bindAnonymous(in, host, refs)
	c.Endpoints = normaliseEndpoints(in, refs, mac)
	c.Config, c.HostConfig = config.raw(), host.raw()
	for _, m := range in.Mounts {
		c.Mounts = append(c.Mounts, dr.Mount{Type: string(m.Type), Name: m.Name, Source: m.Source, Destination: m.Destination, RW: m.RW})
	}
	for i := range c.Mounts {
		if c.Mounts[i].Type == "volume" {
			// The mount point is a path of this engine; the name is what counts.
			c.Mounts[i].Source = ""
		}
	}
	for dest := range in.HostConfig.Tmpfs {
		if !slices.ContainsFunc(c.Mounts, func(m dr.Mount) bool { return m.Destination == dest }) {
			c.Mounts = append(c.Mounts, dr.Mount{Type: "tmpfs", Destination: dest, RW: true})
		}
	}
	slices.SortFunc(c.Mounts, func(a, b dr.Mount) int { return strings.Compare(a.Destination, b.Destination) })
	return c, needs, notes
}

// dropOwnLabels takes out the labels that Lifeboat put on what it created: they
// are of one snapshot and epoch, and are given anew.
func dropOwnLabels(o object) {
	var labels map[string]string
	if o.read("Labels", &labels) != nil || len(labels) == 0 {
		return
	}
	n := len(labels)
	maps.DeleteFunc(labels, func(k, _ string) bool { return ownLabel(k) })
	if len(labels) < n {
		o.set("Labels", labels)
	}
}

func ownLabel(k string) bool { return k == LabelSystem || k == LabelSnapshot || k == LabelEpoch }

func clone(o object) object {
	out := make(object, len(o))
	for k, v := range o {
		out[k] = v
	}
	return out
}

// normaliseNetworkMode takes out what the engine filled in and would refuse to
// be given for the container's network mode. A generated host name stays where
// the container has a name of its own: applications keep data under it
// (RabbitMQ does), so it is part of what the container sees.
func normaliseNetworkMode(in inspected, f facts, config, host object) {
	mode := in.HostConfig.NetworkMode
	switch {
	case mode.IsContainer():
		config.set("Hostname", "")
		config.set("Domainname", "")
		delete(config, "ExposedPorts")
		host.set("PortBindings", map[string]any{})
		host.set("PublishAllPorts", false)
		for _, field := range []string{"Dns", "ExtraHosts"} {
			host.set(field, []string{})
		}
	case mode.IsHost() && config.text("Hostname") == f.Name, in.HostConfig.UTSMode.IsHost():
		// The host's own name, which is another one at another site.
		config.set("Hostname", "")
		config.set("Domainname", "")
	}
}

// normaliseEntrypoint keeps an entry point that was taken away from coming back:
// a create request without one gets the image's, and the form for none is a
// list of one empty word.
func normaliseEntrypoint(config object, img *Image) {
	if !config.empty("Entrypoint") || img == nil {
		return
	}
	var in struct{ Config struct{ Entrypoint []string } }
	if json.Unmarshal(img.Inspect, &in) == nil && len(in.Config.Entrypoint) > 0 {
		config.set("Entrypoint", []string{""})
	}
}

// normaliseDefaults takes out values that the engine filled in because of how
// its host is set up, so that another host fills in its own.
func normaliseDefaults(f facts, host object) {
	def := "host"
	if f.cgroupV2 {
		def = "private"
	}
	if host.text("CgroupnsMode") == def {
		host.set("CgroupnsMode", "")
	}
	var restart RestartPolicy
	if _ = host.read("RestartPolicy", &restart); restart.Name == "" {
		host.set("RestartPolicy", RestartPolicy{Name: "no"}) // the same, said so by newer engines
	}
	if !host.empty("ContainerIDFile") {
		host.set("ContainerIDFile", "")
	}
	if _, ok := host["ConsoleSize"]; ok {
		host.set("ConsoleSize", [2]int{})
	}
}

// bindAnonymous names the volumes that the engine named itself, so that the
// container gets its own data and not new empty volumes; and what came by
// volumes_from from a container that is not in the system.
func bindAnonymous(in inspected, host object, refs *references) {
	var binds []string
	_ = host.read("Binds", &binds)
	explicit := map[string]bool{}
	for _, b := range binds {
		if _, dest, _, ok := splitBind(b); ok {
			explicit[dest] = true
		}
	}
	var mounts []object
	_ = host.read("Mounts", &mounts)
	at := map[string]container.MountPoint{}
	for _, m := range in.Mounts {
		at[m.Destination] = m
	}
	for _, m := range mounts {
		dest := m.text("Target")
		explicit[dest] = true
		if v := at[dest]; v.Name != "" && m.text("Type") == "volume" && m.empty("Source") {
			m.set("Source", v.Name)
		}
	}
	var from []string
	_ = host.read("VolumesFrom", &from)
	for _, m := range in.Mounts {
		source := m.Name
		if m.Type == "bind" {
			source = m.Source
		}
		if m.Type != "volume" && m.Type != "bind" || source == "" || explicit[m.Destination] || refs.inherits(from, m) {
			continue
		}
		add := object{}
		add.set("Type", m.Type)
		add.set("Source", source)
		add.set("Target", m.Destination)
		if !m.RW {
			add.set("ReadOnly", true)
		}
		mounts = append(mounts, add)
	}
	if len(mounts) > 0 {
		host.set("Mounts", mounts)
	}
}

// splitBind reads one entry of HostConfig.Binds: source:destination[:options].
func splitBind(b string) (source, dest, options string, ok bool) {
	p := strings.Split(b, ":")
	switch len(p) {
	case 2:
		return p[0], p[1], "", true
	case 3:
		return p[0], p[1], p[2], true
	}
	return "", b, "", len(p) == 1
}
