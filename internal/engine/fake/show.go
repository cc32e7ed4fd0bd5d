package fake

import (
	"path/filepath"
	"slices"
)

// listed is a container as in a list.
func (e *Engine) listed(c *ctr) obj {
	return obj{
		"Id": c.id, "Names": []string{"/" + c.name}, "Image": str(c.config, "Image"), "ImageID": c.image.id, "Labels": c.config["Labels"],
		"State": c.state, "Created": c.created.Unix(), "Mounts": c.showMounts(), "HostConfig": obj{"NetworkMode": str(c.host, "NetworkMode")},
		"NetworkSettings": obj{"Networks": c.showEndpoints()},
	}
}

func (c *ctr) showEndpoints() obj {
	out := obj{}
	for n, ep := range c.endpoints {
		shown := obj{}
		for k, v := range ep {
			shown[k] = v
		}
		delete(shown, "desired")
		out[n] = shown
	}
	return out
}

func (c *ctr) showMounts() []obj {
	out := []obj{}
	for _, m := range c.mounts {
		o := obj{"Type": m.kind, "Source": m.source, "Destination": m.dest, "Mode": m.mode, "RW": !m.ro, "Propagation": ""}
		if m.kind == "volume" {
			o["Name"], o["Driver"] = m.volume, "local"
		}
		if m.kind == "bind" {
			o["Propagation"] = "rprivate"
		}
		out = append(out, o)
	}
	return out
}

// show is a container as inspected.
func (e *Engine) show(c *ctr) obj {
	argv := append(slices.Clone(strs(c.config, "Entrypoint")), strs(c.config, "Cmd")...)
	state := obj{
		"Status": c.state, "Running": c.alive(), "Paused": c.state == "paused", "Restarting": c.state == "restarting", "OOMKilled": false, "Dead": false,
		"Pid": 0, "ExitCode": c.exitCode, "Error": c.errorText, "StartedAt": "0001-01-01T00:00:00Z", "FinishedAt": "0001-01-01T00:00:00Z",
	}
	if !c.started.IsZero() {
		state["StartedAt"] = stamp(c.started)
	}
	ports := obj{}
	if c.alive() {
		state["Pid"] = c.run.pid
		for port := range sub(c.config, "ExposedPorts") {
			ports[port] = sub(c.host, "PortBindings")[port]
		}
	} else if !c.finished.IsZero() {
		state["FinishedAt"] = stamp(c.finished)
	}
	if c.health != nil {
		state["Health"] = c.health
	}
	path, args := "", []string{}
	if len(argv) > 0 {
		path, args = argv[0], argv[1:]
	}
	return obj{
		"Id": c.id, "Created": stamp(c.created), "Path": path, "Args": args, "State": state, "Image": c.image.id, "Name": "/" + c.name, "RestartCount": c.restarts,
		"Driver": "overlay2", "Platform": "linux", "MountLabel": "", "ProcessLabel": "", "AppArmorProfile": "", "HostConfig": c.host, "Config": c.config, "Mounts": c.showMounts(),
		"GraphDriver": obj{"Name": "overlay2", "Data": obj{
			"LowerDir": c.image.dir, "UpperDir": c.upper, "WorkDir": filepath.Join(filepath.Dir(c.upper), "work"), "MergedDir": filepath.Join(filepath.Dir(c.upper), "merged"),
		}},
		"NetworkSettings": obj{"Ports": ports, "Networks": c.showEndpoints()},
	}
}
