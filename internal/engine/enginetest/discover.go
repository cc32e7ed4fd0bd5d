package enginetest

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"lifeboat/internal/dr"
	"lifeboat/internal/engine"
)

func testSelection(f *fixture) {
	ctx := f.Context()
	f.container("lbtest-web-1", m{"Labels": m{"com.docker.compose.project": "lbtest-shop", "com.docker.compose.service": "web"}}, m{}, nil)
	db := f.container("lbtest-db-1", m{"Labels": m{"com.docker.compose.project": "lbtest-shop", "com.docker.compose.service": "db"}}, m{}, nil)
	f.container("lbtest-other", m{}, m{}, nil)
	f.container("lbtest-helper", m{"Labels": m{engine.LabelHelper: "1", "com.docker.compose.project": "lbtest-shop"}}, m{}, nil)

	for _, c := range []struct {
		name string
		sel  engine.Selector
		want []string
	}{
		{"project", engine.Selector{Project: "lbtest-shop"}, []string{"lbtest-db-1", "lbtest-web-1"}},
		{"name", engine.Selector{Containers: []string{"lbtest-other"}}, []string{"lbtest-other"}},
		{"id prefix", engine.Selector{Containers: []string{db[:10]}}, []string{"lbtest-db-1"}},
		{"both, with a double", engine.Selector{Project: "lbtest-shop", Containers: []string{"lbtest-other", "lbtest-db-1"}}, []string{"lbtest-db-1", "lbtest-other", "lbtest-web-1"}},
	} {
		sys, err := f.e.Discover(ctx, c.sel)
		f.ok(c.name, err)
		var got []string
		for _, c := range sys.Containers {
			got = append(got, c.Name)
		}
		f.equal(c.name, got, c.want)
	}
	for _, c := range []struct {
		name string
		sel  engine.Selector
		want error
		says string
	}{
		{"unknown project", engine.Selector{Project: "lbtest-shp"}, dr.ErrNotFound, "lbtest-shop"},
		{"unknown container", engine.Selector{Containers: []string{"lbtest-othr"}}, dr.ErrNotFound, "lbtest-other"},
		{"helper", engine.Selector{Containers: []string{"lbtest-helper"}}, dr.ErrUsage, "helper"},
		{"nothing", engine.Selector{}, dr.ErrUsage, "project"},
	} {
		_, err := f.e.Discover(ctx, c.sel)
		f.is(c.name, err, c.want)
		if !strings.Contains(err.Error(), c.says) {
			f.Errorf("%s: error %q does not say %q", c.name, err, c.says)
		}
	}
}

// shop makes a Compose project with everything that Discover describes, and
// returns what removes it without its data.
func (f *fixture) shop() {
	dir := filepath.Join(f.target.Dir, "shop")
	for name, text := range map[string]string{
		"compose.yaml": "services:\n  web:\n    image: x\n    depends_on:\n      - db\n    env_file: web.env\n  db:\n    image: x\n  job:\n    image: x\n    depends_on:\n      db: {condition: service_healthy}\n",
		"web.env":      "A=1\n", ".env": "B=2\n", "conf/site.conf": "conf\n", "single.conf": "single\n",
	} {
		p := filepath.Join(dir, name)
		f.ok("make files", os.MkdirAll(filepath.Dir(p), 0o755))
		f.ok("make files", os.WriteFile(p, []byte(text), 0o644))
	}
	labels := func(service, extra string) m {
		l := m{
			"com.docker.compose.project": "lbtest-shop", "com.docker.compose.service": service, "com.docker.compose.container-number": "1",
			"com.docker.compose.oneoff": "False", "com.docker.compose.config-hash": "0123",
			"com.docker.compose.project.working_dir": dir, "com.docker.compose.project.config_files": "compose.yaml",
		}
		if extra != "" {
			l["com.docker.compose.depends_on"] = extra
		}
		return l
	}
	project := m{"com.docker.compose.project": "lbtest-shop"}
	f.network(m{"Name": "lbtest-shop_default", "Driver": "bridge", "Labels": project, "IPAM": m{"Driver": "default", "Config": []m{{"Subnet": "10.123.8.0/24", "Gateway": "10.123.8.1"}}}})
	f.network(m{"Name": "lbtest-proxy", "Driver": "bridge", "Internal": true})
	f.volume(dr.Volume{Name: "lbtest-shop_data", Driver: "local", Labels: map[string]string{"com.docker.compose.project": "lbtest-shop", "com.docker.compose.volume": "data"}})
	db := f.container("lbtest-shop-db-1", m{
		"Labels": labels("db", ""), "Env": []string{"PASSWORD=geheim"}, "StopSignal": "SIGTERM", "StopTimeout": 42,
		"Healthcheck": m{"Test": []string{"CMD", "/probe", "exists", "/etc/conf"}, "Interval": 200 * time.Millisecond},
	}, m{
		"NetworkMode": "lbtest-shop_default", "Binds": []string{"lbtest-shop_data:/data:rw"},
		"RestartPolicy": m{"Name": "always"}, "ShmSize": 64 << 20, "Tmpfs": m{"/scratch": "size=1m"}, "PidsLimit": 200,
	}, map[string]m{"lbtest-shop_default": {"Aliases": []string{"db", "lbtest-shop-db-1"}, "IPAMConfig": m{"IPv4Address": "10.123.8.50"}}})
	web := f.container("lbtest-shop-web-1", m{"Labels": labels("web", ""), "Hostname": "shopfront", "WorkingDir": "/data", "User": "0:0"}, m{
		"NetworkMode":  "lbtest-shop_default",
		"PortBindings": m{"8080/tcp": []m{{"HostIp": "127.0.0.1", "HostPort": "18080"}}},
		"Binds":        []string{dir + "/conf:/conf:ro"},
		"Mounts":       []m{{"Type": "bind", "Source": dir + "/single.conf", "Target": "/single.conf"}, {"Type": "volume", "Target": "/unnamed"}},
		"CapAdd":       []string{"NET_ADMIN"}, "CapDrop": []string{"MKNOD"}, "ExtraHosts": []string{"example.test:192.0.2.7"},
		"Memory": 64 << 20, "LogConfig": m{"Type": "json-file", "Config": m{"max-size": "1m"}},
	}, map[string]m{
		"lbtest-shop_default": {"Aliases": []string{"web"}},
		"lbtest-proxy":        {"Aliases": []string{"shop"}},
	})
	f.container("lbtest-shop-side-1", m{"Labels": labels("side", "web:service_healthy:false"), "Entrypoint": []string{""}, "Cmd": []string{"/probe", "sleep"}}, m{
		"NetworkMode": "container:" + web, "VolumesFrom": []string{db + ":ro"},
	}, nil)
	job := f.container("lbtest-shop-job-1", m{"Labels": labels("job", ""), "Cmd": []string{"exit", "4"}}, m{"NetworkMode": "none"}, nil)
	f.start(db, web, "lbtest-shop-side-1", job)
	if err := f.e.WaitHealthy(f.Context(), job, engine.WaitOptions{Condition: engine.ConditionCompleted}); err == nil {
		f.Fatal("the job that fails did not")
	}
}

func testDiscover(f *fixture) {
	f.shop()
	sys, err := f.e.Discover(f.Context(), engine.Selector{Project: "lbtest-shop"})
	f.ok("discover", err)
	by := map[string]engine.Container{}
	for _, c := range sys.Containers {
		by[c.Name] = c
	}
	db, web, side, job := by["lbtest-shop-db-1"], by["lbtest-shop-web-1"], by["lbtest-shop-side-1"], by["lbtest-shop-job-1"]
	f.equal("number of containers", len(sys.Containers), 4)
	f.equal("states", []string{db.State, web.State, side.State, job.State}, []string{"running", "running", "running", "exited"})
	f.equal("exit code", job.ExitCode, 4)
	if db.InitPID == 0 || job.InitPID != 0 {
		f.Errorf("init processes: %d, %d", db.InitPID, job.InitPID)
	}
	f.equal("health check", []bool{db.HasHealthcheck, web.HasHealthcheck}, []bool{true, false})
	f.equal("dependencies of web, from the file", web.DependsOn, []dr.Dependency{{Container: "lbtest-shop-db-1", Condition: "service_started"}})
	f.equal("dependencies of job, from the file", job.DependsOn, []dr.Dependency{{Container: "lbtest-shop-db-1", Condition: "service_healthy"}})
	f.equal("dependencies of side, from label and shared volumes", side.DependsOn, []dr.Dependency{
		{Container: "lbtest-shop-db-1", Condition: "service_started"}, {Container: "lbtest-shop-web-1", Condition: "service_healthy"},
	})
	f.equal("restart policy", db.RestartPolicy.Name, "always")
	f.equal("layer", db.Layer, "layer:lbtest-shop-db-1")

	f.equal("networks", names(sys.Networks, func(n engine.Network) string { return n.Name }), []string{"lbtest-proxy", "lbtest-shop_default"})
	f.equal("external", []bool{sys.Networks[0].External, sys.Networks[1].External}, []bool{true, false})

	var anonymous []string
	for _, v := range sys.Volumes {
		if v.Anonymous {
			anonymous = append(anonymous, v.Name)
		} else {
			f.equal("named volume", v.Name, "lbtest-shop_data")
		}
		if v.Path == "" || v.Tree != "volume:"+v.Name {
			f.Errorf("volume %s: path %q, tree %q", v.Name, v.Path, v.Tree)
		}
	}
	// One for the image's VOLUME in each of four containers, less the one that
	// side takes from db, and the one without a name in web.
	f.equal("number of anonymous volumes", len(anonymous), 4)

	dir := filepath.Join(f.target.Dir, "shop")
	f.equal("binds", names(sys.Binds, func(b engine.Bind) string { return b.Source + " " + b.Kind }), []string{dir + "/conf dir", dir + "/single.conf file"})
	f.equal("files", names(sys.Files, func(p engine.ProjectFile) string { return p.Role + " " + p.Path }),
		[]string{"env " + dir + "/.env", "compose " + dir + "/compose.yaml", "env " + dir + "/web.env"})
	f.equal("images", names(sys.Images, func(i engine.Image) string { return i.ID }), []string{f.image})
}

func names[T any](list []T, name func(T) string) []string {
	var out []string
	for _, x := range list {
		out = append(out, name(x))
	}
	return out
}

// testNormalised checks that descriptions hold nothing of one engine or one run.
func testNormalised(f *fixture) {
	f.shop()
	ctx := f.Context()
	sys, err := f.e.Discover(ctx, engine.Selector{Project: "lbtest-shop"})
	f.ok("discover", err)
	by := map[string]engine.Container{}
	ids := []string{}
	for _, c := range sys.Containers {
		by[c.Name] = c
		ids = append(ids, c.ID)
	}
	for _, n := range sys.Networks {
		ids = append(ids, n.ID)
	}
	for _, c := range sys.Containers {
		all := string(c.HostConfig)
		for _, ep := range c.Endpoints {
			all += string(ep)
		}
		for _, id := range ids {
			if strings.Contains(all, id) {
				f.Errorf("container %s: description holds the id %s:\n%s", c.Name, id, all)
			}
		}
	}
	db, web, side := by["lbtest-shop-db-1"], by["lbtest-shop-web-1"], by["lbtest-shop-side-1"]
	f.equal("networks of db", endpointText(db), `lbtest-shop_default={"Aliases":["db","lbtest-shop-db-1"],"IPAMConfig":{"IPv4Address":"10.123.8.50"}}`)
	f.equal("networks of web", endpointText(web), `lbtest-proxy={"Aliases":["shop"]} lbtest-shop_default={"Aliases":["web"]}`)
	f.equal("networks of side", endpointText(side), "")
	f.equal("network mode", field[string](f, side.HostConfig, "NetworkMode"), "container:lbtest-shop-web-1")
	f.equal("volumes from", field[[]string](f, side.HostConfig, "VolumesFrom"), []string{"lbtest-shop-db-1:ro"})
	f.equal("entry point that was taken away", field[[]string](f, side.Config, "Entrypoint"), []string{""})
	f.equal("host name in another's network", field[string](f, side.Config, "Hostname"), "")
	f.equal("host name", field[string](f, web.Config, "Hostname"), "shopfront")
	f.equal("generated host name", field[string](f, db.Config, "Hostname"), db.ID[:12])
	f.equal("environment", slices.Contains(field[[]string](f, db.Config, "Env"), "PASSWORD=geheim"), true)
	mounts := field[[]struct{ Type, Source, Target string }](f, web.HostConfig, "Mounts")
	for _, target := range []string{"/unnamed", "/anon"} {
		if !slices.ContainsFunc(mounts, func(m struct{ Type, Source, Target string }) bool {
			return m.Target == target && m.Type == "volume" && len(m.Source) == 64
		}) {
			f.Errorf("the anonymous volume at %s is not named: %+v", target, mounts)
		}
	}
	f.again(sys)
}

// again removes the containers, makes them again from their description, and
// checks that they are described as before.
func (f *fixture) again(sys *engine.System) {
	ctx := f.Context()
	for _, c := range slices.Backward(sys.Containers) {
		f.ok("remove", f.e.Remove(ctx, c.ID, engine.RemoveOptions{Force: true}))
	}
	for _, v := range sys.Volumes {
		if v.Anonymous {
			f.Cleanup(func() { f.ok("remove volume", f.e.RemoveVolume(context.Background(), v.Name)) })
		}
	}
	f.create(f.e, sys)
	now, err := f.e.Discover(ctx, engine.Selector{Project: "lbtest-shop"})
	f.ok("discover again", err)
	f.equal("description", describe(f, now), describe(f, sys))
}

// create makes the containers of a description and starts those that ran.
func (f *fixture) create(e *engine.Engine, sys *engine.System) {
	order := []string{"lbtest-shop-db-1", "lbtest-shop-web-1", "lbtest-shop-side-1", "lbtest-shop-job-1"}
	for _, name := range order {
		i := slices.IndexFunc(sys.Containers, func(c engine.Container) bool { return c.Name == name })
		id, err := e.CreateContainer(f.Context(), sys.Containers[i].Container, engine.CreateOptions{Labels: map[string]string{engine.LabelSystem: "shop"}})
		f.ok("create "+name+" from its description", err)
		f.removeFrom(e, name)
		if sys.Containers[i].State == "running" {
			f.ok("start "+name, e.Start(f.Context(), id))
		}
	}
}

// describe is what of a system must be the same on every engine that it was
// brought up on: ids, times, paths and states are not.
func describe(f *fixture, sys *engine.System) map[string]any {
	out := map[string]any{}
	for _, c := range sys.Containers {
		c.ID, c.Image, c.State, c.ExitCode = "", "", "", 0
		for part, raw := range map[string]json.RawMessage{"config": c.Config, "host": c.HostConfig} {
			var v map[string]any
			f.ok("decode", json.Unmarshal(raw, &v))
			out[c.Name+" "+part] = v
		}
		out[c.Name+" networks"] = endpointText(c)
		out[c.Name+" mounts"] = c.Mounts
		out[c.Name+" depends"] = c.DependsOn
	}
	for _, n := range sys.Networks {
		out["network "+n.Name] = string(n.Spec)
	}
	for _, v := range sys.Volumes {
		out["volume "+v.Name] = v.Volume
	}
	return out
}

func testCoverage(f *fixture) {
	ctx := f.Context()
	f.volume(dr.Volume{Name: "lbtest-nfs", Driver: "local", Options: map[string]string{"type": "nfs", "o": "addr=192.0.2.1,ro", "device": ":/x"}})
	f.volume(dr.Volume{Name: "lbtest-ram", Driver: "local", Options: map[string]string{"type": "tmpfs", "device": "tmpfs"}})
	f.volume(dr.Volume{Name: "lbtest-bound", Driver: "local", Options: map[string]string{"type": "none", "o": "bind", "device": f.target.Dir}})
	f.volume(dr.Volume{Name: "lbtest-shared", Driver: "local"})
	gone := filepath.Join(f.target.Dir, "gone")
	f.container("lbtest-c", m{}, m{
		"Binds": []string{
			"lbtest-nfs:/nfs", "lbtest-ram:/ram", "lbtest-bound:/bound", "lbtest-shared:/shared",
			"/:/host:ro", "/proc:/hostproc:ro", "/var/run/docker.sock:/var/run/docker.sock", "/etc/hosts:/h:ro", gone + ":/gone",
		},
		"Tmpfs": m{"/scratch": ""}, "NetworkMode": "host", "PidMode": "host",
		"Devices": []m{{"PathOnHost": "/dev/null", "PathInContainer": "/dev/null", "CgroupPermissions": "rw"}},
	}, nil)
	f.container("lbtest-outside", m{}, m{"Binds": []string{"lbtest-shared:/shared"}}, nil)
	f.ok("remove a source", os.RemoveAll(gone))
	sys, err := f.e.Discover(ctx, engine.Selector{Containers: []string{"lbtest-c"}})
	f.ok("discover", err)
	for _, want := range []struct {
		object   string
		captured bool
		says     string
	}{
		{"volume:lbtest-nfs", false, "NFS"},
		{"volume:lbtest-ram", false, "memory"},
		{"volume:lbtest-bound", true, "device"},
		{"volume:lbtest-shared", true, "lbtest-outside"},
		{"bind:/", false, "whole root"},
		{"bind:/proc", false, "kernel"},
		{"bind:/var/run/docker.sock", false, "socket"},
		{"bind:/etc/hosts", false, "host"},
		{"bind:" + gone, false, "does not exist"},
		{"tmpfs:lbtest-c:/scratch", false, "memory"},
		{"device:/dev/null", false, "device"},
		{"container:lbtest-c", true, "host's network"},
		{"layer:lbtest-c", true, ""},
		{"image:" + ImageRef, true, ""},
		{"logs", false, "log"},
	} {
		i := slices.IndexFunc(sys.Coverage, func(c dr.CoverageItem) bool { return c.Object == want.object })
		if i < 0 {
			f.Errorf("coverage has no line for %s", want.object)
			continue
		}
		if got := sys.Coverage[i]; got.Captured != want.captured || !strings.Contains(got.Reason, want.says) || !got.Captured && got.Reason == "" {
			f.Errorf("coverage of %s: %+v, want captured %v because of %q", want.object, got, want.captured, want.says)
		}
	}
	for _, mnt := range sys.Containers[0].Mounts {
		i := slices.IndexFunc(sys.Coverage, func(c dr.CoverageItem) bool { return c.Object == mnt.Tree })
		if mnt.Tree != "" && (i < 0 || !sys.Coverage[i].Captured) {
			f.Errorf("mount %s has tree %q, which is not captured", mnt.Destination, mnt.Tree)
		}
	}
	i := slices.IndexFunc(sys.Volumes, func(v engine.Volume) bool { return v.Name == "lbtest-bound" })
	f.equal("path of a volume bound to a directory", sys.Volumes[i].Path, f.target.Dir)
}
