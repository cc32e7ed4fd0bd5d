package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/moby/moby/client"

	"lifeboat/internal/dr"
)

// NetworkState is a network that exists.
type NetworkState struct {
	ID         string
	Name       string
	Driver     string
	Spec       json.RawMessage // as dr.Network.Spec
	Labels     map[string]string
	Containers []string // names of those attached and running
}

// Network describes a network by name or id; dr.ErrNotFound if there is none.
func (e *Engine) Network(ctx context.Context, nameOrID string) (NetworkState, error) {
	n, spec, err := e.inspectNetwork(ctx, nameOrID)
	if err != nil {
		return NetworkState{}, err
	}
	st := NetworkState{ID: n.ID, Name: n.Name, Driver: n.Driver, Labels: n.Labels, Spec: spec}
	for _, c := range n.Containers {
		st.Containers = append(st.Containers, c.Name)
	}
	slices.Sort(st.Containers)
	return st, nil
}

// CreateNetwork makes a network from a dr.Network.Spec, with labels added to
// those of the specification. A network of that name gives dr.ErrHeld, as does
// a subnet that overlaps another network's.
func (e *Engine) CreateNetwork(ctx context.Context, spec json.RawMessage, labels map[string]string) (id string, err error) {
	req, err := parseObject(spec)
	if err != nil {
		return "", fmt.Errorf("create network: %w", err)
	}
	name := req.text("Name")
	if name == "" {
		return "", fmt.Errorf("create network: the specification has no name: %w", dr.ErrUsage)
	}
	// Engines allow several networks of one name; so it is looked for first.
	switch _, err := e.Network(ctx, name); {
	case err == nil:
		return "", fmt.Errorf("create network %s: a network of that name exists: %w", name, dr.ErrHeld)
	case !errors.Is(err, dr.ErrNotFound):
		return "", err
	}
	addLabels(req, labels)
	if e.before("1.44") {
		req.set("CheckDuplicate", true)
	}
	var out struct {
		ID string `json:"Id"`
	}
	if err := e.call(ctx, "POST", "/networks/create", nil, req, &out); err != nil {
		return "", changed("create network "+name, err)
	}
	return out.ID, nil
}

// RemoveNetwork removes a network; one that is not there is no error, one that
// containers use gives dr.ErrHeld.
func (e *Engine) RemoveNetwork(ctx context.Context, nameOrID string) error {
	return e.remove(ctx, "network "+nameOrID, "/networks/"+nameOrID, nil)
}

// VolumeState is a volume that exists.
type VolumeState struct {
	dr.Volume
	// Mountpoint is where the engine keeps it, in its mount namespace.
	Mountpoint string
}

// Volume describes a volume; dr.ErrNotFound if there is none.
func (e *Engine) Volume(ctx context.Context, name string) (VolumeState, error) {
	res, err := e.cli.VolumeInspect(ctx, name, client.VolumeInspectOptions{})
	if err != nil {
		return VolumeState{}, failed("inspect volume "+name, err)
	}
	return VolumeState{Volume: describeVolume(res.Volume), Mountpoint: res.Volume.Mountpoint}, nil
}

// CreateVolume makes a volume with its driver, options and labels, with labels
// added to them. One that exists gives dr.ErrHeld: an engine asked to create it
// would say yes and hand out what is there.
func (e *Engine) CreateVolume(ctx context.Context, v dr.Volume, labels map[string]string) (VolumeState, error) {
	switch _, err := e.Volume(ctx, v.Name); {
	case err == nil:
		return VolumeState{}, fmt.Errorf("create volume %s: a volume of that name exists: %w", v.Name, dr.ErrHeld)
	case !errors.Is(err, dr.ErrNotFound):
		return VolumeState{}, err
	}
	all := map[string]string{}
	maps.Copy(all, v.Labels)
	maps.Copy(all, labels)
	req := map[string]any{"Name": v.Name, "Driver": v.Driver, "DriverOpts": v.Options, "Labels": all}
	if err := e.call(ctx, "POST", "/volumes/create", nil, req, nil); err != nil {
		return VolumeState{}, changed("create volume "+v.Name, err)
	}
	return e.Volume(ctx, v.Name)
}

// RemoveVolume removes a volume with its data; one that is not there is no
// error, one that a container uses gives dr.ErrHeld.
func (e *Engine) RemoveVolume(ctx context.Context, name string) error {
	return e.remove(ctx, "volume "+name, "/volumes/"+name, nil)
}

func (e *Engine) remove(ctx context.Context, what, path string, q url.Values) error {
	err := changed("remove "+what, e.call(ctx, "DELETE", path, q, nil, nil))
	if errors.Is(err, dr.ErrNotFound) {
		return nil
	}
	return err
}

func addLabels(req object, labels map[string]string) {
	if len(labels) == 0 {
		return
	}
	all := map[string]string{}
	_ = req.read("Labels", &all)
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, labels)
	req.set("Labels", all)
}

// CreateOptions change what CreateContainer makes of a captured container.
type CreateOptions struct {
	// Name instead of the captured one.
	Name string
	// Image names the image on this engine; empty is the captured ImageRef. The
	// caller makes sure that it is the captured image: a tag may have moved on.
	Image string
	// Labels are added to the captured ones.
	Labels map[string]string
}

// CreateContainer makes a container from its captured configuration and
// returns its id. All its networks, volumes and bind sources must exist. Before
// API 1.44 an engine takes one network in the request; the others are connected
// before CreateContainer returns, and if that fails the container is removed
// again. A name that exists gives dr.ErrHeld.
//
// Creating copies what the image has at the mount points of empty volumes into
// them; so trees are to be written after the container was created.
func (e *Engine) CreateContainer(ctx context.Context, c dr.Container, o CreateOptions) (id string, err error) {
	name := c.Name
	if o.Name != "" {
		name = o.Name
	}
	what := "create container " + name
	req, err := parseObject(c.Config)
	if err != nil {
		return "", fmt.Errorf("%s: configuration: %w", what, err)
	}
	host, err := parseObject(c.HostConfig)
	if err != nil {
		return "", fmt.Errorf("%s: host configuration: %w", what, err)
	}
	if err := e.supports(host, c); err != nil {
		return "", fmt.Errorf("%s: %w", what, err)
	}
	image := c.ImageRef
	if o.Image != "" {
		image = o.Image
	}
	req.set("Image", image)
	addLabels(req, o.Labels)
	req["HostConfig"] = host.raw()
	first, later := e.splitEndpoints(host.text("NetworkMode"), c.Endpoints)
	if e.before("1.44") {
		oldMAC(req, first)
	}
	req.set("NetworkingConfig", map[string]any{"EndpointsConfig": first})

	q := url.Values{"name": {name}}
	if c.Platform != "" {
		q.Set("platform", c.Platform)
	}
	var out struct {
		ID string `json:"Id"`
	}
	if err := e.call(ctx, "POST", "/containers/create", q, req, &out); err != nil {
		return "", changed(what, err)
	}
	if err := e.attachNetworks(ctx, out.ID, host.text("NetworkMode"), c.Endpoints, later); err != nil {
		if rmErr := e.Remove(context.WithoutCancel(ctx), out.ID, RemoveOptions{Force: true}); rmErr != nil {
			return "", fmt.Errorf("%s: %w; removing it again failed too: %w", what, err, rmErr)
		}
		return "", fmt.Errorf("%s: %w", what, err)
	}
	return out.ID, nil
}

// supports refuses what an older engine would silently leave out or do otherwise.
func (e *Engine) supports(host object, c dr.Container) error {
	var mounts []struct {
		Type          string
		Target        string
		VolumeOptions *struct{ Subpath string }
	}
	if err := host.read("Mounts", &mounts); err != nil {
		return err
	}
	for _, m := range mounts {
		if m.Type == "image" && e.before("1.48") {
			return fmt.Errorf("it mounts an image at %s, which this engine (API %s) cannot do; API 1.48 is needed", m.Target, e.cli.ClientVersion())
		}
		if m.VolumeOptions != nil && m.VolumeOptions.Subpath != "" && e.before("1.45") {
			return fmt.Errorf("it mounts a part of a volume at %s, which this engine (API %s) cannot do; API 1.45 is needed", m.Target, e.cli.ClientVersion())
		}
	}
	return nil
}

// splitEndpoints says which networks go into the create request and which are
// connected afterwards.
func (e *Engine) splitEndpoints(mode string, all map[string]json.RawMessage) (first, later map[string]json.RawMessage) {
	if !e.before("1.44") || len(all) <= 1 {
		return all, nil
	}
	primary := modeNetwork(mode)
	if _, ok := all[primary]; !ok {
		primary = slices.Min(slices.Collect(maps.Keys(all)))
	}
	first, later = map[string]json.RawMessage{}, map[string]json.RawMessage{}
	for n, ep := range all {
		if n == primary {
			first[n] = ep
		} else {
			later[n] = ep
		}
	}
	return first, later
}

// oldMAC puts the MAC address of the request's one network where older engines
// look for it.
func oldMAC(req object, endpoints map[string]json.RawMessage) {
	for _, ep := range endpoints {
		o, err := parseObject(ep)
		if mac := o.text("MacAddress"); err == nil && mac != "" {
			req.set("MacAddress", mac)
		}
	}
}

// modeNetwork is the network that a network mode means.
func modeNetwork(mode string) string {
	if mode == "" || mode == "default" {
		return "bridge"
	}
	return mode
}

// attachNetworks connects the networks that did not fit into the request, and
// leaves the mode's network where the captured container had left it.
func (e *Engine) attachNetworks(ctx context.Context, id, mode string, all, later map[string]json.RawMessage) error {
	for _, n := range slices.Sorted(maps.Keys(later)) {
		req := map[string]any{"Container": id, "EndpointConfig": later[n]}
		if err := e.call(ctx, "POST", "/networks/"+n+"/connect", nil, req, nil); err != nil {
			return changed("connect it to network "+n, err)
		}
	}
	primary := modeNetwork(mode)
	if _, attached := all[primary]; attached || len(all) == 0 || strings.HasPrefix(mode, "container:") || mode == "host" || mode == "none" {
		return nil
	}
	in, err := e.inspect(ctx, id)
	if err != nil {
		return err
	}
	if _, there := in.endpoints[primary]; !there {
		return nil
	}
	req := map[string]any{"Container": id, "Force": true}
	return changed("disconnect it from network "+primary, e.call(ctx, "POST", "/networks/"+primary+"/disconnect", nil, req, nil))
}
