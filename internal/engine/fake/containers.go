package fake

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"lifeboat/internal/engine/enginetest/steps"
)

// ctr is a container. Its fields belong to Engine.mu, but for run.
type ctr struct {
	id, name string
	image    *img
	config   obj
	host     obj
	created  time.Time
	upper    string
	mounts   []*mnt

	endpoints map[string]obj

	state     string // created running paused restarting exited
	exitCode  int
	errorText string
	started   time.Time
	finished  time.Time
	restarts  int
	health    obj // nil without a health check
	run       *program
	log       *record
	stopped   bool          // by somebody, so that it is not restarted
	stdin     io.ReadCloser // of the attached connection, for the next run
	gone      chan struct{}
	ended     chan struct{} // closed at the end of a run, replaced at the next
}

// mnt is a mount of a container.
type mnt struct {
	kind, volume, source, dest string
	ro                         bool
	mode                       string
}

func (e *Engine) find(ref string) (*ctr, error) {
	var found *ctr
	for _, c := range e.containers {
		if c.name == strings.TrimPrefix(ref, "/") || c.id == ref {
			return c, nil
		}
		if len(ref) >= 4 && strings.HasPrefix(c.id, ref) {
			found = c
		}
	}
	if found != nil {
		return found, nil
	}
	return nil, notFound("container", ref)
}

func (e *Engine) routeContainers(w http.ResponseWriter, r *http.Request, p []string) {
	q := r.URL.Query()
	if len(p) == 1 && p[0] == "json" {
		e.locked(w, func() (any, error) {
			out := []obj{}
			for _, c := range e.containers {
				out = append(out, e.listed(c))
			}
			return out, nil
		})
		return
	}
	if len(p) == 1 && p[0] == "create" {
		req, err := body(r)
		if err != nil {
			reply(w, err)
			return
		}
		e.locked(w, func() (any, error) { return e.createContainer(q.Get("name"), req) })
		return
	}
	e.mu.Lock()
	c, err := e.find(p[0])
	e.mu.Unlock()
	if err != nil {
		reply(w, err)
		return
	}
	if len(p) == 1 && r.Method == "DELETE" {
		e.locked(w, func() (any, error) { return nil, e.remove(c, q.Get("force") == "1", q.Get("v") == "1") })
		return
	}
	if len(p) < 2 {
		reply(w, refused(http.StatusNotFound, "page not found"))
		return
	}
	switch p[1] {
	case "json":
		e.locked(w, func() (any, error) { return e.show(c), nil })
	case "start":
		e.locked(w, func() (any, error) { return nil, e.start(c) })
	case "stop", "kill":
		e.end(w, r, c, p[1])
	case "pause", "unpause":
		e.locked(w, func() (any, error) { return nil, c.pause(p[1] == "pause") })
	case "rename":
		e.locked(w, func() (any, error) { return nil, e.rename(c, q.Get("name")) })
	case "update":
		req, err := body(r)
		if err != nil {
			reply(w, err)
			return
		}
		e.locked(w, func() (any, error) {
			if p := sub(req, "RestartPolicy"); !missing(p, "Name") {
				c.host["RestartPolicy"] = p
			}
			return obj{"Warnings": nil}, nil
		})
	case "logs":
		e.mu.Lock()
		log := c.log
		e.mu.Unlock()
		n, _ := strconv.Atoi(q.Get("tail"))
		_, _ = w.Write(log.tail(n))
	case "exec":
		e.createExec(w, r, c)
	case "attach":
		e.attachTo(w, c)
	case "wait":
		e.waitFor(w, r, c, q.Get("condition"))
	default:
		reply(w, refused(http.StatusNotFound, "page not found"))
	}
}

func (e *Engine) createContainer(name string, req obj) (any, error) {
	if name == "" {
		name = "fake_" + newID()[:8]
	}
	if c, err := e.find(name); err == nil && c.name == name {
		return nil, refused(http.StatusConflict, "Conflict. The container name %q is already in use by container %q. You have to remove (or rename) that container to be able to reuse that name.", "/"+name, c.id)
	}
	image, err := e.findImage(str(req, "Image"))
	if err != nil {
		return nil, err
	}
	host := sub(req, "HostConfig")
	if host == nil {
		host = obj{}
	}
	eps := sub(sub(req, "NetworkingConfig"), "EndpointsConfig")
	delete(req, "HostConfig")
	delete(req, "NetworkingConfig")
	c := &ctr{id: newID(), name: name, image: image, config: req, host: host, created: time.Now(), state: "created", endpoints: map[string]obj{}, log: &record{}, gone: make(chan struct{}), ended: make(chan struct{})}
	if err := e.conflicts(c, eps); err != nil {
		return nil, err
	}
	merge(req, sub(image.parsed(), "config"))
	for field, v := range map[string]any{"NetworkMode": "default", "IpcMode": "private", "CgroupnsMode": "host", "Runtime": "runc", "ShmSize": float64(64 << 20), "LogConfig": obj{"Type": "json-file", "Config": obj{}}} {
		fill(host, field, v)
	}
	if err := e.network(c, eps); err != nil {
		return nil, err
	}
	fill(req, "Hostname", c.id[:12])
	c.upper = filepath.Join(e.root, "overlay2", c.id, "diff")
	if err := os.MkdirAll(c.upper, 0o755); err != nil {
		return nil, err
	}
	if err := e.mount(c); err != nil {
		_ = os.RemoveAll(filepath.Dir(c.upper))
		return nil, err
	}
	e.containers[c.id] = c
	return obj{"Id": c.id, "Warnings": []string{}}, nil
}

// conflicts refuses what engines refuse before they look at the image.
func (e *Engine) conflicts(c *ctr, eps obj) error {
	mode := str(c.host, "NetworkMode")
	if ref, ok := strings.CutPrefix(mode, "container:"); ok {
		if _, err := e.find(ref); err != nil {
			return err
		}
		if str(c.config, "Hostname") != "" {
			return refused(http.StatusBadRequest, "conflicting options: hostname and the network mode")
		}
		if !missing(c.config, "ExposedPorts") {
			return refused(http.StatusBadRequest, "conflicting options: port exposing and the container type network mode")
		}
	}
	for _, v := range strs(c.host, "VolumesFrom") {
		ref, _, _ := strings.Cut(v, ":")
		if _, err := e.find(ref); err != nil {
			return err
		}
	}
	if len(eps) > 1 && e.opts.API < "1.44" {
		return refused(http.StatusBadRequest, "Container cannot be connected to network endpoints: %d of them", len(eps))
	}
	return nil
}

// merge fills a configuration with the image's.
func merge(c, image obj) {
	if len(strs(c, "Entrypoint")) == 0 {
		if missing(c, "Cmd") {
			c["Cmd"] = image["Cmd"]
		}
		c["Entrypoint"] = image["Entrypoint"]
	}
	if e := strs(c, "Entrypoint"); len(e) == 1 && e[0] == "" {
		c["Entrypoint"] = nil
	}
	for _, field := range []string{"Labels", "Volumes", "ExposedPorts"} {
		if sub(image, field) == nil {
			continue
		}
		fill(c, field, obj{})
		for k, v := range sub(image, field) {
			if _, has := sub(c, field)[k]; !has {
				sub(c, field)[k] = v
			}
		}
	}
	fill(c, "Healthcheck", image["Healthcheck"])
	if c["Healthcheck"] == nil {
		delete(c, "Healthcheck")
	}
}

func (e *Engine) network(c *ctr, eps obj) error {
	mode := str(c.host, "NetworkMode")
	if ref, ok := strings.CutPrefix(mode, "container:"); ok {
		other, err := e.find(ref)
		if err == nil {
			c.config["Hostname"] = other.config["Hostname"]
			c.host["NetworkMode"] = "container:" + other.id
		}
		return err
	}
	if mode == "default" {
		mode = "bridge"
	}
	if mode == "host" {
		c.config["Hostname"] = "fakehost"
	}
	if len(eps) == 0 || eps[mode] == nil {
		n, err := e.findNetwork(mode)
		if err != nil {
			return err
		}
		if err := e.connect(c, n, obj{}); err != nil {
			return err
		}
	}
	for name := range eps {
		n, err := e.findNetwork(name)
		if err != nil {
			return err
		}
		if err := e.connect(c, n, sub(eps, name)); err != nil {
			return err
		}
	}
	return nil
}

// mount finds what a container mounts and makes the volumes.
func (e *Engine) mount(c *ctr) error {
	add := func(m *mnt) {
		if !slices.ContainsFunc(c.mounts, func(o *mnt) bool { return o.dest == m.dest }) {
			c.mounts = append(c.mounts, m)
		}
	}
	addVolume := func(name, dest string, ro bool) error {
		labels := obj(nil)
		if name == "" {
			name = newID()
		}
		_, existed := e.volumes[name]
		v, err := e.volume(name, obj{"Labels": labels})
		if err != nil {
			return err
		}
		if !existed {
			copyUp(filepath.Join(c.image.dir, dest), v.dir())
		}
		add(&mnt{kind: "volume", volume: name, source: v.path, dest: dest, ro: ro})
		return nil
	}
	for _, b := range strs(c.host, "Binds") {
		p := strings.SplitN(b, ":", 3)
		if len(p) < 2 {
			return refused(http.StatusBadRequest, "invalid volume specification: %q", b)
		}
		ro := len(p) == 3 && slices.Contains(strings.Split(p[2], ","), "ro")
		if !filepath.IsAbs(p[0]) {
			if err := addVolume(p[0], p[1], ro); err != nil {
				return err
			}
			continue
		}
		if _, err := os.Lstat(p[0]); err != nil {
			if err := os.MkdirAll(p[0], 0o755); err != nil {
				return err
			}
		}
		add(&mnt{kind: "bind", source: p[0], dest: p[1], ro: ro})
	}
	for _, m := range objs(c.host, "Mounts") {
		switch str(m, "Type") {
		case "bind":
			if _, err := os.Stat(str(m, "Source")); err != nil {
				return refused(http.StatusBadRequest, "invalid mount config for type \"bind\": bind source path does not exist: %s", str(m, "Source"))
			}
			add(&mnt{kind: "bind", source: str(m, "Source"), dest: str(m, "Target"), ro: boolean(m, "ReadOnly")})
		case "volume":
			if err := addVolume(str(m, "Source"), str(m, "Target"), boolean(m, "ReadOnly")); err != nil {
				return err
			}
		case "tmpfs":
			add(&mnt{kind: "tmpfs", dest: str(m, "Target")})
		}
	}
	for _, v := range strs(c.host, "VolumesFrom") {
		ref, mode, _ := strings.Cut(v, ":")
		o, err := e.find(ref)
		if err != nil {
			return err
		}
		for _, m := range o.mounts {
			copied := *m
			copied.ro = copied.ro || mode == "ro"
			add(&copied)
		}
	}
	for dest := range sub(c.config, "Volumes") {
		if slices.ContainsFunc(c.mounts, func(m *mnt) bool { return m.dest == dest }) {
			continue
		}
		if err := addVolume("", dest, false); err != nil {
			return err
		}
	}
	return nil
}

// copyUp fills a new volume with what the image has there.
func copyUp(from, to string) {
	if st, err := os.Stat(from); err == nil && st.IsDir() {
		_ = os.CopyFS(to, os.DirFS(from))
	}
}

func (e *Engine) rename(c *ctr, name string) error {
	if o, err := e.find(name); err == nil && o.name == name {
		return refused(http.StatusConflict, "Error when allocating new name: Conflict. The container name %q is already in use by container %q.", "/"+name, o.id)
	}
	c.name = name
	return nil
}

func (c *ctr) alive() bool {
	return c.state == "running" || c.state == "paused" || c.state == "restarting"
}

func (e *Engine) remove(c *ctr, force, volumes bool) error {
	if c.alive() {
		if !force {
			return refused(http.StatusConflict, "You cannot remove a running container %s. Stop the container before attempting removal or force remove", c.id)
		}
		c.stopped = true
		c.kill()
	}
	if e.containers[c.id] == nil {
		return nil
	}
	delete(e.containers, c.id)
	close(c.gone)
	if volumes {
		for _, m := range c.mounts {
			// A volume's name says whether the engine made it up.
			if m.kind == "volume" && len(m.volume) == 64 {
				_ = e.removeVolume(m.volume)
			}
		}
	}
	return os.RemoveAll(filepath.Dir(c.upper))
}

func (c *ctr) pause(on bool) error {
	switch {
	case on && c.state == "running":
		c.state = "paused"
	case !on && c.state == "paused":
		c.state = "running"
	case on:
		return refused(http.StatusConflict, "Container %s is not running or paused already", c.id)
	default:
		return refused(http.StatusInternalServerError, "Container %s is not paused", c.id)
	}
	return nil
}

// start runs a container's program.
func (e *Engine) start(c *ctr) error {
	if e.containers[c.id] == nil {
		return notFound("container", c.id)
	}
	if c.alive() || e.closed {
		return nil
	}
	if ref, ok := strings.CutPrefix(str(c.host, "NetworkMode"), "container:"); ok {
		if o, err := e.find(ref); err != nil || o.state != "running" {
			return refused(http.StatusConflict, "cannot join network of a non running container: %s", ref)
		}
	}
	if err := e.portsFree(c); err != nil {
		return err
	}
	argv := append(strs(c.config, "Entrypoint"), strs(c.config, "Cmd")...)
	if len(argv) == 0 || argv[0] != "/probe" {
		c.errorText = fmt.Sprintf("exec: %q: executable file not found in $PATH", argv)
		return refused(http.StatusBadRequest, "OCI runtime create failed: %s", c.errorText)
	}
	e.nextPID++
	c.run = newProgram(e.nextPID)
	c.run.out, c.run.err = c.log.stream(1), c.log.stream(2)
	if c.stdin != nil {
		c.run.in, c.run.inEnd, c.stdin = c.stdin, c.stdin, nil
	}
	c.state, c.started, c.errorText, c.stopped = "running", time.Now(), "", false
	if c.restarts > 0 || !c.finished.IsZero() {
		c.ended = make(chan struct{})
	}
	e.assign(c)
	if test := strs(sub(c.config, "Healthcheck"), "Test"); len(test) > 1 && test[0] == "CMD" {
		c.health = obj{"Status": "starting", "FailingStreak": 0, "Log": []obj{}}
		run := c.run
		e.background(func() { e.check(c, run, test[1:]) })
	}
	run := c.run
	w := e.world(c, run, nil)
	e.background(func() {
		code := steps.Run(w, argv[1:])
		e.exited(c, run, code)
	})
	return nil
}

func (e *Engine) portsFree(c *ctr) error {
	exposed := sub(c.config, "ExposedPorts")
	for port := range sub(c.host, "PortBindings") {
		if exposed[port] == nil {
			continue
		}
		for _, b := range objs(sub(c.host, "PortBindings"), port) {
			for _, o := range e.containers {
				for _, ob := range objs(sub(o.host, "PortBindings"), port) {
					if o != c && o.alive() && str(b, "HostPort") != "" && str(ob, "HostPort") == str(b, "HostPort") && str(ob, "HostIp") == str(b, "HostIp") {
						return refused(http.StatusInternalServerError, "driver failed programming external connectivity on endpoint %s: Bind for %s:%s failed: port is already allocated", c.name, str(b, "HostIp"), str(b, "HostPort"))
					}
				}
			}
		}
	}
	return nil
}

// exited is called by the goroutine of a program that ended.
func (e *Engine) exited(c *ctr, run *program, code int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if killed := run.killedBy(); killed != 0 {
		code = killed
	}
	run.finish()
	if c.run != run {
		return
	}
	c.state, c.exitCode, c.finished = "exited", code, time.Now()
	c.release(e.opts.API)
	close(c.ended)
	policy := sub(c.host, "RestartPolicy")
	again := str(policy, "Name") == "always" || str(policy, "Name") == "unless-stopped" ||
		str(policy, "Name") == "on-failure" && code != 0 && (number(policy, "MaximumRetryCount") == 0 || float64(c.restarts) < number(policy, "MaximumRetryCount"))
	switch {
	case boolean(c.host, "AutoRemove"):
		_ = e.remove(c, true, true)
	case again && !c.stopped && !e.closed:
		c.restarts++
		if err := e.start(c); err != nil {
			c.errorText = err.Error()
		}
	}
}

func (c *ctr) kill() {
	if c.run != nil {
		c.run.signal("SIGKILL")
	}
}

// end stops or kills a container.
func (e *Engine) end(w http.ResponseWriter, r *http.Request, c *ctr, how string) {
	e.mu.Lock()
	if !c.alive() {
		e.mu.Unlock()
		if how == "kill" {
			reply(w, refused(http.StatusConflict, "Cannot kill container: %s: Container %s is not running", c.name, c.id))
			return
		}
		w.WriteHeader(http.StatusNotModified)
		return
	}
	run := c.run
	c.state = "running" // a paused one is let go to end
	sig := "SIGTERM"
	if how == "kill" {
		if sig = r.URL.Query().Get("signal"); sig == "" {
			sig = "SIGKILL"
		}
	}
	c.stopped = true
	e.mu.Unlock()
	run.signal(sig)
	if how == "stop" {
		wait := 10 * time.Second
		if t, err := strconv.Atoi(r.URL.Query().Get("t")); err == nil {
			wait = time.Duration(t) * time.Second
		}
		select {
		case <-run.done:
		case <-time.After(wait):
			run.signal("SIGKILL")
			<-run.done
		}
	}
	reply(w, nil)
}
