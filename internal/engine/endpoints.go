package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/moby/client/pkg/versions"
)

// requestedMAC gives the address that somebody asked for on a network, or "".
type requestedMAC func(in inspected, networkName string) string

// normaliseEndpoints keeps of each network attachment what was asked for.
// Without the networks that have no settings: host, none, another container's.
func normaliseEndpoints(in inspected, refs *references, mac requestedMAC) map[string]json.RawMessage {
	mode := in.HostConfig.NetworkMode
	if mode.IsContainer() || mode.IsHost() || mode.IsNone() {
		return nil
	}
	out := map[string]json.RawMessage{}
	for name, ep := range in.endpoints {
		kept := object{}
		if ipam := normaliseIPAM(ep); len(ipam) > 0 {
			kept.set("IPAMConfig", ipam)
		}
		var links []string
		if _ = ep.read("Links", &links); len(links) > 0 {
			for i, l := range links {
				ref, alias := splitLink(l)
				to, _ := refs.container(ref)
				links[i] = to + ":" + alias
			}
			kept.set("Links", links)
		}
		var aliases []string
		_ = ep.read("Aliases", &aliases)
		// Engines before API 1.45 show their short id and host name among the
		// aliases; every engine adds them by itself.
		aliases = slices.DeleteFunc(aliases, func(a string) bool { return a == shortID(in.ID) || a == in.config.text("Hostname") })
		if len(aliases) > 0 {
			kept.set("Aliases", aliases)
		}
		for _, field := range []string{"DriverOpts", "GwPriority"} {
			if !ep.empty(field) {
				kept[field] = ep[field]
			}
		}
		if m := mac(in, name); m != "" {
			kept.set("MacAddress", m)
		}
		// Before API 1.44 an address is asked for in the container's configuration,
		// for its mode's network.
		if m := in.config.text("MacAddress"); m != "" && (name == modeNetwork(string(mode)) || len(in.endpoints) == 1) {
			kept.set("MacAddress", m)
		}
		out[name] = kept.raw()
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

func normaliseIPAM(ep object) object {
	var ipam object
	_ = ep.read("IPAMConfig", &ipam)
	for field := range ipam {
		if ipam.empty(field) {
			delete(ipam, field)
		}
	}
	return ipam
}

// macFinder tells a MAC address that somebody asked for from one that the
// engine made. The API shows both in the same field while a container runs; so
// the engine's own record of the container is read where it can be reached.
// Otherwise: engines before 28 make the address from the IPv4 address, and a
// container that does not run has none that the engine made.
func macFinder(h HostFS, f facts) requestedMAC {
	return func(in inspected, network string) string {
		ep := in.endpoints[network]
		shown := ep.text("MacAddress")
		if desired, ok := recordedMAC(h, in.ID, network); ok {
			return desired
		}
		if shown == "" || in.State.Pid == 0 {
			return shown
		}
		if generatedMAC(ep, shown) {
			return ""
		}
		if versions.LessThan(f.Version, "28") {
			return shown
		}
		return ""
	}
}

// generatedMAC reports whether an address is 02:42 followed by the IPv4 address.
func generatedMAC(ep object, mac string) bool {
	ip, err := netip.ParseAddr(ep.text("IPAddress"))
	if err != nil || !ip.Is4() {
		return false
	}
	b := ip.As4()
	return strings.EqualFold(mac, fmt.Sprintf("02:42:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3]))
}

// recordedMAC reads Docker's record of a container; ok is false where it cannot
// be read or is of an engine that does not record what was asked for.
func recordedMAC(h HostFS, id, network string) (mac string, ok bool) {
	if !h.Local || h.RootDir == "" {
		return "", false
	}
	p, err := h.Path(filepath.Join(h.RootDir, "containers", id, "config.v2.json"))
	if err != nil {
		return "", false
	}
	b, err := os.ReadFile(p)
	if errors.Is(err, fs.ErrNotExist) || err != nil {
		return "", false
	}
	var rec struct {
		NetworkSettings struct {
			Networks map[string]map[string]any
		}
	}
	if json.Unmarshal(b, &rec) != nil {
		return "", false
	}
	ep, ok := rec.NetworkSettings.Networks[network]
	if !ok {
		return "", false
	}
	desired, ok := ep["DesiredMacAddress"].(string)
	return desired, ok
}
