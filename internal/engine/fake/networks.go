package fake

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// nw is a network; obj is its create request.
type nw struct {
	id  string
	obj obj
}

func (n *nw) name() string { return str(n.obj, "Name") }

func (n *nw) predefined() bool {
	return n.name() == "bridge" || n.name() == "host" || n.name() == "none"
}

func (n *nw) subnets() []netip.Prefix {
	var out []netip.Prefix
	for _, c := range objs(sub(n.obj, "IPAM"), "Config") {
		if p, err := netip.ParsePrefix(str(c, "Subnet")); err == nil {
			out = append(out, p.Masked())
		}
	}
	return out
}

func (e *Engine) findNetwork(ref string) (*nw, error) {
	for _, n := range e.networks {
		if n.name() == ref || n.id == ref {
			return n, nil
		}
	}
	for _, n := range e.networks {
		if len(ref) >= 4 && strings.HasPrefix(n.id, ref) {
			return n, nil
		}
	}
	return nil, refused(http.StatusNotFound, "network %s not found", ref)
}

func (e *Engine) routeNetworks(w http.ResponseWriter, r *http.Request, p []string) {
	switch {
	case len(p) == 0:
		e.locked(w, func() (any, error) {
			out := []obj{}
			for _, n := range e.networks {
				out = append(out, e.showNetwork(n))
			}
			return out, nil
		})
	case p[0] == "create" && r.Method == "POST":
		req, err := body(r)
		if err != nil {
			reply(w, err)
			return
		}
		e.locked(w, func() (any, error) { return e.createNetwork(req) })
	case len(p) == 1 && r.Method == "GET":
		e.locked(w, func() (any, error) {
			n, err := e.findNetwork(p[0])
			if err != nil {
				return nil, err
			}
			return e.showNetwork(n), nil
		})
	case len(p) == 1 && r.Method == "DELETE":
		e.locked(w, func() (any, error) {
			n, err := e.findNetwork(p[0])
			if err != nil {
				return nil, err
			}
			if len(sub(e.showNetwork(n), "Containers")) > 0 {
				return nil, refused(http.StatusForbidden, "error while removing network: network %s id %s has active endpoints", n.name(), n.id)
			}
			delete(e.networks, n.id)
			return nil, nil
		})
	case len(p) == 2:
		req, err := body(r)
		if err != nil {
			reply(w, err)
			return
		}
		e.locked(w, func() (any, error) { return obj{}, e.attach(p[0], p[1], req) })
	}
}

func (e *Engine) createNetwork(req obj) (any, error) {
	if _, err := e.findNetwork(str(req, "Name")); err == nil && boolean(req, "CheckDuplicate") {
		return nil, refused(http.StatusConflict, "network with name %s already exists", str(req, "Name"))
	}
	n := &nw{id: newID(), obj: req}
	delete(req, "CheckDuplicate")
	fill(req, "Driver", "bridge")
	req["Scope"] = "local"
	req["Created"] = stamp(time.Now())
	if sub(req, "IPAM") == nil {
		req["IPAM"] = obj{}
	}
	fill(sub(req, "IPAM"), "Driver", "default")
	if len(n.subnets()) == 0 {
		for i := 18; ; i++ {
			p := netip.MustParsePrefix(fmt.Sprintf("172.%d.0.0/16", i))
			if !e.overlaps(p) {
				sub(req, "IPAM")["Config"] = []any{obj{"Subnet": p.String(), "Gateway": p.Addr().Next().String()}}
				break
			}
		}
	}
	for _, p := range n.subnets() {
		if e.overlaps(p) {
			return nil, refused(http.StatusForbidden, "Pool overlaps with other one on this address space")
		}
	}
	e.networks[n.id] = n
	return obj{"Id": n.id, "Warning": ""}, nil
}

func (e *Engine) overlaps(p netip.Prefix) bool {
	for _, n := range e.networks {
		for _, o := range n.subnets() {
			if p.Overlaps(o) {
				return true
			}
		}
	}
	return false
}

func (e *Engine) showNetwork(n *nw) obj {
	out := obj{"Id": n.id, "EnableIPv6": false, "Internal": false, "Attachable": false, "Ingress": false, "ConfigFrom": obj{"Network": ""}, "ConfigOnly": false, "Options": obj{}, "Labels": obj{}}
	for k, v := range n.obj {
		out[k] = v
	}
	attached := obj{}
	for _, c := range e.containers {
		if ep := c.endpoints[n.name()]; ep != nil && c.state != "created" && c.state != "exited" {
			ip := str(ep, "IPAddress")
			if ip != "" {
				ip += fmt.Sprintf("/%v", ep["IPPrefixLen"])
			}
			attached[c.id] = obj{"Name": c.name, "EndpointID": str(ep, "EndpointID"), "IPv4Address": ip}
		}
	}
	out["Containers"] = attached
	return out
}

// attach connects a container to a network or disconnects it.
func (e *Engine) attach(network, action string, req obj) error {
	n, err := e.findNetwork(network)
	if err != nil {
		return err
	}
	c, err := e.find(str(req, "Container"))
	if err != nil {
		return err
	}
	if action == "disconnect" {
		delete(c.endpoints, n.name())
		return nil
	}
	return e.connect(c, n, sub(req, "EndpointConfig"))
}

func (e *Engine) connect(c *ctr, n *nw, config obj) error {
	if ip := str(sub(config, "IPAMConfig"), "IPv4Address"); ip != "" {
		for _, o := range e.containers {
			if o != c && str(o.endpoints[n.name()], "IPAddress") == ip {
				return refused(http.StatusForbidden, "Address already in use")
			}
		}
	}
	ep := obj{"NetworkID": n.id, "EndpointID": "", "Gateway": "", "IPAddress": "", "IPPrefixLen": 0, "IPv6Gateway": "", "GlobalIPv6Address": "", "GlobalIPv6PrefixLen": 0, "MacAddress": "", "DriverOpts": nil, "IPAMConfig": nil, "Links": nil, "Aliases": nil}
	for k, v := range config {
		ep[k] = v
	}
	// Before API 1.44 the configuration's address is for the first network.
	if mac := str(c.config, "MacAddress"); mac != "" && len(c.endpoints) == 0 {
		ep["desired"] = mac
	} else if e.opts.API >= "1.44" {
		ep["desired"] = ep["MacAddress"]
	}
	ep["MacAddress"] = ""
	if !n.predefined() {
		ep["Aliases"] = append(strs(ep, "Aliases"), c.id[:12])
	}
	c.endpoints[n.name()] = ep
	return nil
}

// assign gives a container that starts its addresses.
func (e *Engine) assign(c *ctr) {
	for name, ep := range c.endpoints {
		n, err := e.findNetwork(name)
		if err != nil || len(n.subnets()) == 0 {
			continue
		}
		ip := n.subnets()[0].Addr().Next()
		if want := str(sub(ep, "IPAMConfig"), "IPv4Address"); want != "" {
			ip = netip.MustParseAddr(want)
		} else {
			for ip = ip.Next(); e.hasAddress(name, ip.String()); {
				ip = ip.Next()
			}
		}
		b := ip.As4()
		ep["IPAddress"], ep["IPPrefixLen"], ep["EndpointID"] = ip.String(), n.subnets()[0].Bits(), newID()
		if ep["MacAddress"] = ep["desired"]; missing(ep, "MacAddress") {
			ep["MacAddress"] = fmt.Sprintf("02:42:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3])
		}
	}
}

func (e *Engine) hasAddress(network, ip string) bool {
	for _, c := range e.containers {
		if str(c.endpoints[network], "IPAddress") == ip {
			return true
		}
	}
	return false
}

// release takes the addresses back.
func (c *ctr) release(api string) {
	for _, ep := range c.endpoints {
		ep["IPAddress"], ep["IPPrefixLen"], ep["EndpointID"], ep["MacAddress"] = "", 0, "", ""
		if api >= "1.44" && ep["desired"] != nil {
			ep["MacAddress"] = ep["desired"]
		}
	}
}
