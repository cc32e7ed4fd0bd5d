package engine

import (
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/network"

	"lifeboat/internal/dr"
)

func (d *discovery) coverContainers() {
	self := ownContainer()
	reserved := d.reserved()
	for i, in := range d.cs {
		c := &d.sys.Containers[i]
		notes := append(d.notes["container:"+in.name], containerNotes(in, c)...)
		item := dr.CoverageItem{Object: "container:" + in.name, Captured: true, Bytes: -1}
		if d.missingImages[in.Image] != "" {
			notes = append(notes, "its image is not captured")
			item.Partial = true
		}
		if why := refused(in, self, reserved); why != "" {
			item.Refused, item.Captured, item.Partial = true, false, false
			notes = append([]string{why}, notes...)
		}
		item.Reason = join(notes)
		d.sys.Coverage = append(d.sys.Coverage, item)
		if l := d.notes["layer:"+in.name]; len(l) > 0 {
			d.item("layer:"+in.name, false, l...)
		} else {
			d.part("layer:"+in.name, []string{d.kept(true)})
		}
		d.coverDevices(in)
		for _, m := range c.Mounts {
			switch m.Type {
			case "tmpfs":
				d.item("tmpfs:"+in.name+":"+m.Destination, false, "is in memory and starts empty")
			case "image":
				d.item("mount:"+in.name+":"+m.Destination, false, "is the content of another image, which must be present at the other site")
			case "cluster", "npipe":
				d.item("mount:"+in.name+":"+m.Destination, false, "mounts of type "+m.Type+" are not captured")
			}
		}
	}
	d.item("logs", false, "what the containers wrote to their standard output stays in the engine's log on this host")
}

func (d *discovery) coverDevices(in inspected) {
	for _, dev := range in.HostConfig.Devices {
		d.item("device:"+dev.PathOnHost, false, "is a device of this host, used by container "+in.name+"; the other site must have one of that name")
	}
	for _, r := range in.HostConfig.DeviceRequests {
		what := r.Driver
		if what == "" {
			what = "gpu"
		}
		d.item("device:"+what, false, "container "+in.name+" asks for devices by driver; the other site must have them and the runtime for them")
	}
}

// containerNotes says what of a container's configuration depends on its host.
func containerNotes(in inspected, c *Container) []string {
	h := in.HostConfig
	var notes []string
	say := func(cond bool, text string) {
		if cond {
			notes = append(notes, text)
		}
	}
	say(c.OneOff, "a one-off container of docker compose run")
	say(c.AutoRemove, "is removed by the engine when it stops, and its writable layer with it")
	say(h.Privileged, "privileged: it can reach everything of the host it runs on")
	say(h.NetworkMode.IsHost(), "uses the host's network: its ports are the host's, and cannot be changed by an override")
	say(h.PidMode.IsHost(), "sees the host's processes")
	say(h.IpcMode.IsHost(), "uses the host's shared memory, which is not captured")
	say(h.UsernsMode.IsHost(), "is exempt from the engine's remapping of users")
	say(h.CgroupParent != "", "runs in the cgroup "+h.CgroupParent+" of this host")
	say(h.Runtime != "" && h.Runtime != "runc" && h.Runtime != "io.containerd.runc.v2" && h.Runtime != "oci" && h.Runtime != "crun",
		"needs the runtime "+h.Runtime+" at the other site")
	say(in.MountLabel != "" || in.ProcessLabel != "", "its SELinux labels belong to this container and are given anew")
	say(!slices.Contains([]string{"", "docker-default", "unconfined", "containers-default"}, in.AppArmorProfile) && !strings.HasPrefix(in.AppArmorProfile, "containers-default"),
		"needs the AppArmor profile "+in.AppArmorProfile+" at the other site")
	for _, o := range h.SecurityOpt {
		if v, ok := strings.CutPrefix(o, "seccomp="); ok && strings.HasPrefix(v, "/") {
			notes = append(notes, "needs the seccomp profile "+v+" at the other site")
		}
	}
	if svc := in.Config.Labels["com.docker.swarm.service.name"]; svc != "" {
		notes = append(notes, "is a task of the swarm service "+svc+": it is captured as a plain container, its service, secrets and configs are not")
	}
	var random []string
	for port, bindings := range h.PortBindings {
		for _, b := range bindings {
			if b.HostPort == "" || b.HostPort == "0" {
				random = append(random, port.String())
			}
		}
	}
	slices.Sort(random)
	say(len(random) > 0, "the host port of "+strings.Join(random, ", ")+" is chosen by the engine and differs at the other site")
	say(h.PublishAllPorts, "its ports are published on host ports chosen by the engine, which differ at the other site")
	say(h.LogConfig.Type != "" && !slices.Contains([]string{"json-file", "local", "journald", "none", "k8s-file"}, h.LogConfig.Type),
		"logs through the driver "+h.LogConfig.Type+", which must be usable at the other site")
	return notes
}

// reservedAddr is an address that Lifeboat itself depends on while it works.
type reservedAddr struct {
	host, port, what string
}

// reserved lists what must go on working while the system is frozen: what
// serves the engine's API, the resolver, and what the caller named.
func (d *discovery) reserved() []reservedAddr {
	var out []reservedAddr
	if u, err := url.Parse(d.e.host); err == nil && u.Scheme == "tcp" {
		out = append(out, reservedAddr{u.Hostname(), u.Port(), "it serves the engine's API to Lifeboat"})
	}
	for _, r := range d.sel.Reserved {
		if host, port, err := net.SplitHostPort(r); err == nil {
			out = append(out, reservedAddr{host, port, "it serves " + r + ", which Lifeboat needs to take a snapshot"})
		}
	}
	b, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return out
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "nameserver" {
			out = append(out, reservedAddr{f[1], "53", "it is this host's resolver"})
		}
	}
	return out
}

// refused says why a container must not be frozen with the system (invariant 5):
// Lifeboat would wait for it and so for itself. Empty if it may.
func refused(in inspected, self string, reserved []reservedAddr) string {
	if self != "" && in.ID == self {
		return "Lifeboat itself runs in this container; run it outside of what it protects"
	}
	if in.State.Pid == 0 {
		return ""
	}
	for _, r := range reserved {
		if serves(in, r) {
			return "must not be frozen: " + r.what + " (" + net.JoinHostPort(r.host, r.port) + ")"
		}
	}
	return ""
}

// serves reports whether an address leads to the container: to a port that it
// publishes on this host, or to one of its own addresses.
func serves(in inspected, r reservedAddr) bool {
	addrs := resolveLocal(r.host)
	for _, ep := range in.endpoints {
		ip, err := netip.ParseAddr(ep.text("IPAddress"))
		if err == nil && slices.Contains(addrs, ip) {
			return true
		}
	}
	if in.NetworkSettings == nil {
		return false
	}
	for port, bindings := range in.NetworkSettings.Ports {
		if port.Proto() == network.UDP && r.port != "53" {
			continue
		}
		for _, b := range bindings {
			if b.HostPort != r.port {
				continue
			}
			for _, a := range addrs {
				if isOwnAddress(a) && (!b.HostIP.IsValid() || b.HostIP.IsUnspecified() || b.HostIP == a) {
					return true
				}
			}
		}
	}
	return false
}

// resolveLocal gives the addresses of a host that need no resolver to know: an
// address, localhost, the entries of the hosts file. Others are not this host.
func resolveLocal(host string) []netip.Addr {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a.Unmap()}
	}
	if host == "localhost" {
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	}
	var out []netip.Addr
	b, _ := os.ReadFile("/etc/hosts")
	for line := range strings.SplitSeq(string(b), "\n") {
		line, _, _ = strings.Cut(line, "#")
		f := strings.Fields(line)
		if len(f) < 2 || !slices.Contains(f[1:], host) {
			continue
		}
		if a, err := netip.ParseAddr(f[0]); err == nil {
			out = append(out, a.Unmap())
		}
	}
	return out
}

func isOwnAddress(a netip.Addr) bool {
	if a.IsLoopback() {
		return true
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	for _, o := range own {
		if p, err := netip.ParsePrefix(o.String()); err == nil && p.Addr().Unmap() == a {
			return true
		}
	}
	return false
}

// ownContainer is the id of the container that this process runs in, or "". The
// engine mounts a container's host name file from a directory named by its id.
func ownContainer() string {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		f := strings.Fields(line)
		if len(f) < 5 || f[4] != "/etc/hostname" {
			continue
		}
		for part := range strings.SplitSeq(f[3], "/") {
			if len(part) == 64 && anonymousName.MatchString(part) {
				return part
			}
		}
	}
	return ""
}

func (d *discovery) coverNetworks() {
	for _, n := range d.sys.Networks {
		var notes []string
		spec, err := ParseNetworkSpec(n.Spec)
		if err != nil {
			notes = append(notes, err.Error())
		}
		if spec.Scope == "swarm" {
			notes = append(notes, "is a network of the swarm and is not created at the other site; it must exist there, or be mapped by an override")
		} else if n.External {
			notes = append(notes, "external: made outside the project; it must exist at the other site, or be mapped by an override")
		}
		switch spec.Driver {
		case "macvlan", "ipvlan":
			notes = append(notes, "is tied to the host's network interface "+spec.Options["parent"]+" and its addresses")
		case "bridge", "overlay", "":
		default:
			notes = append(notes, "needs the network driver "+spec.Driver+" at the other site")
		}
		if len(n.UsedBy) > 0 {
			notes = append(notes, "also used by "+strings.Join(n.UsedBy, ", ")+" outside the system")
		}
		d.item("network:"+n.Name, !n.External, notes...)
	}
}
