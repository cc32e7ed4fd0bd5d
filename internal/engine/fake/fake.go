// Package fake is a container engine in memory, behind the same HTTP API as the
// real ones: engine.Open works on its Host, and it passes the same conformance
// tests (package enginetest). Volumes and writable layers are real directories
// below Options.Dir, so what is laid into them is what containers see.
//
// Containers run no programs: the entry point /probe is the little language of
// package steps, anything else fails to start. There is no network, no
// isolation, no cgroup; init processes have numbers that no process has. What
// it is for: tests of what is built on package engine, above all with planned
// faults (Engine.Break), where an answer is refused, never comes, or is lost
// after the work was done.
package fake

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"
)

// Options of a fake engine.
type Options struct {
	// Dir holds everything; it must exist. Its path must be short, for the socket.
	Dir string
	// API is the version to speak; empty is 1.41.
	API string
	// Pull serves pulls: an archive as of docker save; nil refuses them.
	Pull func(ref string) (archive []byte, err error)
}

// Engine is a fake engine. It can be used concurrently.
type Engine struct {
	opts   Options
	host   string
	root   string
	server *http.Server
	done   chan struct{}

	mu         sync.Mutex
	containers map[string]*ctr
	images     map[string]*img
	networks   map[string]*nw
	volumes    map[string]*vol
	execs      map[string]*execution
	faults     []*Fault
	nextPID    int
	running    sync.WaitGroup // programs
	closed     bool
}

// New starts a fake engine; Close ends it.
func New(o Options) (*Engine, error) {
	if o.API == "" {
		o.API = "1.41"
	}
	e := &Engine{
		opts: o, root: filepath.Join(o.Dir, "root"), done: make(chan struct{}),
		containers: map[string]*ctr{}, images: map[string]*img{}, networks: map[string]*nw{}, volumes: map[string]*vol{}, execs: map[string]*execution{},
		nextPID: 1 << 22, // above what a kernel gives
	}
	for _, d := range []string{"volumes", "overlay2", "image/overlay2/imagedb/content/sha256"} {
		if err := os.MkdirAll(filepath.Join(e.root, d), 0o755); err != nil {
			return nil, fmt.Errorf("fake engine: %w", err)
		}
	}
	for i, name := range []string{"bridge", "host", "none"} {
		n := &nw{id: newID(), obj: obj{"Name": name, "Driver": []string{"bridge", "host", "null"}[i], "Scope": "local", "IPAM": obj{"Driver": "default"}, "Created": stamp(time.Now())}}
		if name == "bridge" {
			n.obj["IPAM"] = obj{"Driver": "default", "Config": []any{obj{"Subnet": "172.17.0.0/16", "Gateway": "172.17.0.1"}}}
		}
		e.networks[n.id] = n
	}
	socket := filepath.Join(o.Dir, "e.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, fmt.Errorf("fake engine: %w", err)
	}
	e.host = "unix://" + socket
	e.server = &http.Server{Handler: http.HandlerFunc(e.serve), ReadHeaderTimeout: time.Minute}
	go func() {
		defer close(e.done)
		_ = e.server.Serve(l)
	}()
	return e, nil
}

// Host is the engine's address in the form of DOCKER_HOST.
func (e *Engine) Host() string { return e.host }

// Close kills all containers and ends the engine.
func (e *Engine) Close() error {
	e.mu.Lock()
	e.closed = true
	for _, c := range e.containers {
		c.kill()
	}
	e.mu.Unlock()
	err := e.server.Close()
	<-e.done
	e.running.Wait()
	return err
}

// FaultKind says what goes wrong.
type FaultKind int

const (
	// Refuse answers with an internal error and does nothing.
	Refuse FaultKind = iota
	// DropBefore closes the connection and does nothing.
	DropBefore
	// DropAfter does the work and closes the connection without an answer.
	DropAfter
)

// Fault is one planned fault: it hits one request.
type Fault struct {
	Method string
	// Path is a regular expression for the path without the API version.
	Path string
	// Skip lets that many matching requests pass first.
	Skip int
	Kind FaultKind

	re   *regexp.Regexp
	used bool
}

// Break plans a fault. A malformed Path panics: it is of the test's own making.
func (e *Engine) Break(f Fault) {
	f.re = regexp.MustCompile("^(?:" + f.Path + ")$")
	e.mu.Lock()
	defer e.mu.Unlock()
	e.faults = append(e.faults, &f)
}

// Unused lists planned faults that hit nothing; a test that planned them did
// not test what it meant to.
func (e *Engine) Unused() []Fault {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []Fault
	for _, f := range e.faults {
		if !f.used {
			out = append(out, *f)
		}
	}
	return out
}

func (e *Engine) fault(method, path string) (FaultKind, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, f := range e.faults {
		if f.used || f.Method != method || !f.re.MatchString(path) {
			continue
		}
		if f.Skip > 0 {
			f.Skip--
			continue
		}
		f.used = true
		return f.Kind, true
	}
	return 0, false
}

var versioned = regexp.MustCompile(`^/v[0-9.]+`)

func (e *Engine) serve(w http.ResponseWriter, r *http.Request) {
	path := versioned.ReplaceAllString(r.URL.Path, "")
	w.Header().Set("Api-Version", e.opts.API)
	w.Header().Set("Ostype", "linux")
	if kind, hit := e.fault(r.Method, path); hit {
		switch kind {
		case Refuse:
			reply(w, refused(http.StatusInternalServerError, "a planned fault"))
			return
		case DropAfter:
			e.route(&lost{header: http.Header{}}, r, path)
		}
		if c, _, err := w.(http.Hijacker).Hijack(); err == nil {
			_ = c.Close()
		}
		return
	}
	e.route(w, r, path)
}

// lost takes an answer that nobody gets.
type lost struct{ header http.Header }

func (l *lost) Header() http.Header         { return l.header }
func (l *lost) Write(p []byte) (int, error) { return len(p), nil }
func (l *lost) WriteHeader(int)             {}

// apiErr is an answer with a status above 400.
type apiErr struct {
	status int
	msg    string
}

func (e *apiErr) Error() string { return e.msg }

func refused(status int, format string, args ...any) error {
	return &apiErr{status, fmt.Sprintf(format, args...)}
}

func notFound(what, name string) error {
	return refused(http.StatusNotFound, "No such %s: %s", what, name)
}

// reply answers with JSON, with an error, or with no content for nil.
func reply(w http.ResponseWriter, v any) {
	status := http.StatusOK
	if err, ok := v.(error); ok {
		status = http.StatusInternalServerError
		var a *apiErr
		if errors.As(err, &a) {
			status = a.status
		}
		v = obj{"message": err.Error()}
	}
	if v == nil {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func (e *Engine) route(w http.ResponseWriter, r *http.Request, path string) {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	switch parts[0] {
	case "_ping":
		_, _ = w.Write([]byte("OK"))
	case "version":
		reply(w, obj{"Version": "20.10.99-fake", "ApiVersion": e.opts.API, "MinAPIVersion": "1.12", "Os": "linux", "Arch": "amd64", "KernelVersion": "0-fake"})
	case "info":
		reply(w, obj{
			"ID": "FAKE:" + e.root, "Name": "fakehost", "ServerVersion": "20.10.99-fake", "Driver": "overlay2", "DriverStatus": [][2]string{{"Backing Filesystem", "extfs"}},
			"DockerRootDir": e.root, "OSType": "linux", "Architecture": "x86_64", "KernelVersion": "0-fake", "CgroupVersion": "1", "CgroupDriver": "cgroupfs",
		})
	case "containers":
		e.routeContainers(w, r, parts[1:])
	case "exec":
		e.routeExec(w, r, parts[1:])
	case "images":
		e.routeImages(w, r, strings.TrimPrefix(path, "/images/"))
	case "networks":
		e.routeNetworks(w, r, parts[1:])
	case "volumes":
		e.routeVolumes(w, r, parts[1:])
	default:
		reply(w, refused(http.StatusNotFound, "page not found: %s", path))
	}
}

// locked answers with what f gives while nothing else happens.
func (e *Engine) locked(w http.ResponseWriter, f func() (any, error)) {
	e.mu.Lock()
	v, err := f()
	e.mu.Unlock()
	if err != nil {
		v = err
	}
	reply(w, v)
}

// body decodes a request.
func body(r *http.Request) (obj, error) {
	o := obj{}
	if err := json.NewDecoder(r.Body).Decode(&o); err != nil {
		return nil, refused(http.StatusBadRequest, "invalid JSON: %v", err)
	}
	return o, nil
}

// background is for work that must end with the engine.
func (e *Engine) background(f func()) {
	e.running.Add(1)
	go func() {
		defer e.running.Done()
		f()
	}()
}

// hijack takes over the connection of a request for a raw stream and says so.
// What must be in place when the client goes on is put there under the lock
// that the caller holds.
func hijack(w http.ResponseWriter) (net.Conn, error) {
	h, ok := w.(http.Hijacker)
	if !ok {
		return nil, refused(http.StatusInternalServerError, "the stream is lost")
	}
	c, buf, err := h.Hijack()
	if err != nil {
		return nil, err
	}
	_, err = c.Write([]byte("HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.multiplexed-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"))
	if n := buf.Reader.Buffered(); n > 0 {
		return nil, errors.Join(err, errors.New("input before the upgrade"), c.Close())
	}
	return c, err
}

// until waits for done or the end of the request.
func until(ctx context.Context, done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	case <-ctx.Done():
		return false
	}
}
