package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"lifeboat/lab"
	"lifeboat/lab/systems"
	"lifeboat/lab/treecmp"
)

// guest is somebody at a site who has the engine's API through a proxy with a
// policy, and nothing else: no root, no files of the host.
type guest struct {
	r      *rig
	site   *lab.Site
	dir    string
	binary string
	socket string
	policy *policy
}

const nobody = 65534

// policy is what an authorization plugin or socket proxy may do.
type policy struct {
	open   []string // host paths below which bind mounts are allowed
	engine http.Handler
}

func (p *policy) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.Method == http.MethodPost && strings.HasSuffix(req.URL.Path, "/containers/create") {
		body, err := io.ReadAll(req.Body)
		if err == nil {
			err = p.check(body)
		}
		if err != nil {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprintf(w, `{"message":"refused by the site's policy: %s"}`, err)
			return
		}
		req.Body = io.NopCloser(bytes.NewReader(body))
	}
	p.engine.ServeHTTP(w, req)
}

func (p *policy) check(body []byte) error {
	var c struct {
		HostConfig struct {
			Privileged bool
			PidMode    string
			Binds      []string
			Mounts     []struct{ Type, Source string }
		}
	}
	if err := json.Unmarshal(body, &c); err != nil {
		return errors.New("not understood")
	}
	if c.HostConfig.Privileged || c.HostConfig.PidMode == "host" {
		return errors.New("host process ids")
	}
	var sources []string
	for _, b := range c.HostConfig.Binds {
		sources = append(sources, strings.SplitN(b, ":", 2)[0])
	}
	for _, m := range c.HostConfig.Mounts {
		if m.Type == "bind" {
			sources = append(sources, m.Source)
		}
	}
	for _, s := range sources {
		if filepath.IsAbs(s) && !slices.ContainsFunc(p.open, func(o string) bool { return s == o || strings.HasPrefix(s, o+"/") }) {
			return fmt.Errorf("host path %s", s)
		}
	}
	return nil
}

// newGuest lets somebody without rights use a site's engine through a proxy.
func (r *rig) newGuest(s *lab.Site) *guest {
	t := r.t
	t.Helper()
	g := &guest{r: r, site: s, dir: filepath.Join(r.lab.Dir(), "guest-"+s.Name)}
	g.binary, g.socket = filepath.Join(g.dir, "lifeboat"), filepath.Join(g.dir, "engine.sock")
	for _, d := range []string{g.dir, filepath.Join(g.dir, "docker")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for from, to := range map[string]string{
		binary: g.binary, filepath.Join(s.Disk, "docker/config.json"): filepath.Join(g.dir, "docker/config.json"),
		filepath.Join(s.Disk, "etc-lifeboat/key.txt"): filepath.Join(g.dir, "key.txt"),
	} {
		raw, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, raw, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	g.configure("")
	err := filepath.WalkDir(g.dir, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Chown(path, nobody, nobody))
	})
	if err != nil {
		t.Fatal(err)
	}
	g.policy = &policy{engine: &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) { p.Out.URL.Scheme, p.Out.URL.Host = "http", "engine" },
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", s.Socket)
		}},
		ErrorLog:      slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), // clients go away on purpose
		FlushInterval: -1,
	}}
	l, err := net.Listen("unix", g.socket)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(g.socket, 0o666); err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: g.policy}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l) // ends with Close
	}()
	t.Cleanup(func() {
		_ = srv.Close()
		<-done
	})
	return g
}

// configure writes the guest's configuration.
func (g *guest) configure(more string) {
	g.r.t.Helper()
	path := filepath.Join(g.dir, "lifeboat.yaml")
	g.r.write(path, fmt.Sprintf("site: %s\nregistry:\n  fingerprint: %s\n%s", g.site.Name, g.r.print, more))
	if err := os.Chown(path, nobody, nobody); err != nil {
		g.r.t.Fatal(err)
	}
}

// command prepares lifeboat as the guest.
func (g *guest) command(args ...string) *exec.Cmd {
	cmd := g.site.Command(g.r.t.Context(), "setpriv", append([]string{"--reuid=65534", "--regid=65534", "--clear-groups", g.binary}, args...)...)
	cmd.Env = append(cmd.Env, "LIFEBOAT_CONFIG="+filepath.Join(g.dir, "lifeboat.yaml"), "LIFEBOAT_STATE_DIR="+filepath.Join(g.dir, "state"),
		"LIFEBOAT_REPO="+g.r.repo, "LIFEBOAT_KEY_FILE="+filepath.Join(g.dir, "key.txt"), "DOCKER_CONFIG="+filepath.Join(g.dir, "docker"),
		"DOCKER_HOST=unix://"+g.socket, "HOME="+g.dir)
	cmd.Dir = g.dir
	return cmd
}

// try runs lifeboat as the guest.
func (g *guest) try(args ...string) outcome {
	t := g.r.t
	t.Helper()
	cmd := g.command(args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: lifeboat %v: %v", g.site.Name, args, err)
	}
	t.Logf("%s, guest: lifeboat %s: exit %d", g.site.Name, strings.Join(args, " "), cmd.ProcessState.ExitCode())
	return outcome{cmd.ProcessState.ExitCode(), out.String(), errOut.String()}
}

// killWhilePaused kills lifeboat once it has paused something; the guardian lets
// it go on, through the engine's API like everything else (invariant 5).
func (g *guest) killWhilePaused(args ...string) {
	t := g.r.t
	t.Helper()
	now := time.Now()
	events := g.site.Command(t.Context(), "docker", "events", "--since", fmt.Sprintf("%d.%09d", now.Unix(), now.Nanosecond()), "--filter", "event=pause", "--filter", "event=unpause", "--format", "{{.Action}}")
	pipe, err := events.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := events.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = events.Process.Kill()
		_ = events.Wait()
	}()
	lines := bufio.NewReader(pipe)
	cmd := g.command(args...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"pause", "unpause"} {
		line, err := lines.ReadString('\n')
		if err != nil || strings.TrimSpace(line) != want {
			t.Fatalf("event %q, %v; want %s", line, err, want)
		}
		if want == "pause" {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait() // it was killed
		}
	}
	nothingPaused(t, g.site)
}

// want is try with an exit code that must come.
func (g *guest) want(code int, into any, args ...string) outcome {
	t := g.r.t
	t.Helper()
	o := g.try(append(args, "--json", "--yes")...)
	if o.code != code {
		t.Fatalf("%s: lifeboat %v: exit %d, want %d\nstdout: %s\nstderr: %s", g.site.Name, args, o.code, code, o.stdout, o.stderr)
	}
	if into != nil {
		o.decode(t, into)
	}
	return o
}

// asKept takes out of a fingerprint what the archive API does not keep.
func asKept(tree treecmp.Tree) treecmp.Tree {
	out := treecmp.Tree{}
	for path, e := range tree {
		if e.Type == treecmp.Socket {
			continue
		}
		e.MtimeNsec, e.Data = 0, nil
		xattrs := map[string]string{}
		for k, v := range e.Xattrs {
			if k == "security.capability" {
				xattrs[k] = v
			}
		}
		e.Xattrs = xattrs
		out[path] = e
	}
	return out
}

// asWritten takes out of a fingerprint what cannot be written through the API.
func asWritten(tree treecmp.Tree) treecmp.Tree {
	out := treecmp.Tree{}
	for path, e := range tree {
		if e.Type == treecmp.Socket {
			continue
		}
		e.Data = nil
		out[path] = e
	}
	return out
}

// TestDegraded takes a system whose trees hold everything that a file system can
// hold from one engine to another, neither of which allows files or a helper.
func TestDegraded(t *testing.T) {
	r := newRig(t, lab.EngineDocker20, lab.EngineContainerd)
	sys := systems.Torture(systems.Params{})
	snapshotDegraded(t, r, sys)
	before := merged(t, sys, r.main)
	if err := r.main.Crash(t.Context()); err != nil {
		t.Fatal(err)
	}
	failoverDegraded(t, r, sys, before, asKept)
}

// TestDegradedContainerd: an engine with the containerd store as the source.
func TestDegradedContainerd(t *testing.T) {
	snapshotDegraded(t, newRig(t, lab.EngineContainerd, lab.EngineNone), systems.Torture(systems.Params{}))
}

// TestDegradedStandIn brings a snapshot that has everything to a stand-in that
// allows neither files nor a helper: only what cannot be written is lost.
func TestDegradedStandIn(t *testing.T) {
	r := newRig(t, lab.EngineDocker20, lab.EngineDocker20)
	sys := systems.Torture(systems.Params{})
	if err := sys.Up(t.Context(), r.main, nil); err != nil {
		t.Fatal(err)
	}
	r.init()
	r.must(r.main, nil, "protect", "rack", "--project", sys.Project)
	r.must(r.main, nil, "snapshot", "rack")
	before := merged(t, sys, r.main)
	if err := r.main.Crash(t.Context()); err != nil {
		t.Fatal(err)
	}
	failoverDegraded(t, r, sys, before, asWritten)
}

// snapshotDegraded takes the system's first snapshot as a guest, with all that
// may go wrong, and compares what it holds.
func snapshotDegraded(t *testing.T, r *rig, sys *systems.System) {
	if err := sys.Up(t.Context(), r.main, nil); err != nil {
		t.Fatal(err)
	}
	r.init()
	g := r.newGuest(r.main)

	// Nothing happens by itself.
	g.want(0, nil, "protect", "rack", "--project", sys.Project, "--degraded")
	o := g.want(1, nil, "snapshot", "rack")
	for _, text := range []string{"refused by the site's policy", "nothing was done", "as root", "--degraded"} {
		if !strings.Contains(o.stderr, text) {
			t.Errorf("the refusal does not say %q: %s", text, o.stderr)
		}
	}

	// All data cannot be read within a second; the system runs on.
	system := "systems:\n  rack:\n    project: " + sys.Project + "\n"
	g.configure("freeze_max: 1s\n" + system)
	if o := g.want(1, nil, "snapshot", "rack", "--degraded"); !strings.Contains(o.stderr, "set freeze_max to") {
		t.Errorf("no larger freeze_max is named: %s", o.stderr)
	}
	nothingPaused(t, r.main)

	g.configure("freeze_max: 5m\n" + system)
	g.killWhilePaused("snapshot", "rack", "--degraded")

	var snap struct {
		snapshotJSON
		Consistency string
	}
	g.want(3, &snap, "snapshot", "rack", "--degraded")
	t.Logf("scanned %d, sent %d, frozen %.0f ms", snap.BytesScanned, snap.BytesSent, snap.FreezeMS)
	if snap.Consistency != "crash" || snap.FreezeMS <= 0 {
		t.Errorf("consistency %s, frozen %v ms", snap.Consistency, snap.FreezeMS)
	}
	for _, key := range []string{"volume:rack_precious", "bind:" + sys.Dir(r.main) + "/data", "layer:rack_busy_1"} {
		if !slices.ContainsFunc(snap.Coverage, func(c struct{ Object, Reason string }) bool {
			return strings.ReplaceAll(c.Object, "-", "_") == strings.ReplaceAll(key, "-", "_") && strings.Contains(c.Reason, "archive API")
		}) {
			t.Errorf("coverage does not say what of %s is lost", key)
		}
	}
	nothingPaused(t, r.main)
	places, err := sys.Places(t.Context(), r.main, systems.Merged)
	if err != nil {
		t.Fatal(err)
	}
	restored := filepath.Join(r.dir, "restored")
	r.must(r.main, nil, "restore", "rack", "--to", restored)
	for name, p := range places {
		kind, object, _ := strings.Cut(name, " ")
		at := filepath.Join(restored, kind+"_"+object)
		if kind == "bind" {
			at = filepath.Join(restored, "bind_"+strings.ReplaceAll(p.Path, "/", "_"))
		}
		if object == "rack_elsewhere" {
			continue // its mount point is another directory than its data
		}
		if st, err := os.Stat(at); kind == "layer" || err != nil || !st.IsDir() || !isDir(p.Path) {
			continue
		}
		compareKept(t, "restored "+name, p.Path, at)
	}
}

// failoverDegraded brings the system up at the stand-in, whose engine allows
// neither files nor a helper either.
func failoverDegraded(t *testing.T, r *rig, sys *systems.System, before map[string]treecmp.Tree, as func(treecmp.Tree) treecmp.Tree) {
	h := r.newGuest(r.standin)
	h.policy.open = []string{r.standin.Disk}
	over := []string{"--override", "paths." + r.main.Disk + "=" + r.standin.Disk}
	if o := h.want(1, nil, append([]string{"failover", "rack"}, over...)...); !strings.Contains(o.stderr, "--degraded") {
		t.Errorf("the refusal names no way out: %s", o.stderr)
	}

	// Somebody else's files are in the way: nothing is written over them.
	stranger := filepath.Join(sys.Dir(r.standin), "data", "stranger")
	r.write(stranger, "not of the system")
	if o := h.want(11, nil, append([]string{"failover", "rack", "--degraded"}, over...)...); !strings.Contains(o.stderr, "holds something") {
		t.Errorf("the path that is in the way is not named: %s", o.stderr)
	}
	if raw, err := os.ReadFile(stranger); err != nil || string(raw) != "not of the system" {
		t.Errorf("what was in the way: %q, %v", raw, err)
	}
	if err := os.Remove(stranger); err != nil {
		t.Fatal(err)
	}

	var up struct {
		bringJSON
		NotKept []struct{ Object, Reason string } `json:"not_kept"`
	}
	h.want(3, &up, append([]string{"failover", "rack", "--degraded"}, over...)...)
	if up.Epoch != 2 {
		t.Errorf("epoch %d, want 2", up.Epoch)
	}
	deletions := false
	for _, n := range up.NotKept {
		t.Logf("not kept: %s: %s", n.Object, n.Reason)
		deletions = deletions || strings.HasPrefix(n.Object, "layer:") && strings.Contains(n.Reason, "deletions")
	}
	if !deletions {
		t.Error("the deletions that are not made are not named")
	}
	if err := sys.AwaitServing(t.Context(), r.standin); err != nil {
		t.Fatal(err)
	}
	after := merged(t, sys, r.standin)
	for name, want := range before {
		got, ok := after[name]
		if !ok {
			t.Errorf("%s is missing", name)
			continue
		}
		if text := treecmp.Report(treecmp.Compare(as(want), as(got), treecmp.Rules{Ignore: notWritten}), 20); text != "" {
			t.Errorf("%s differs:\n%s", name, text)
		}
	}

	// What exists is not restored in place.
	if o := h.want(11, nil, append([]string{"failover", "rack", "--degraded"}, over...)...); !strings.Contains(o.stdout+o.stderr, "restored in place") {
		t.Errorf("why nothing is restored in place is not said: %s\n%s", o.stdout, o.stderr)
	}
	if o := h.want(1, nil, "failback", "rack"); !strings.Contains(o.stderr, "refused by the site's policy") || strings.Contains(o.stderr, "--degraded") {
		t.Errorf("a failback, which restores in place: %s", o.stderr)
	}
	if out, err := r.standin.Docker(t.Context(), "ps", "--all", "--quiet", "--filter", "label=dev.lifeboat.helper"); err != nil || len(fields(out)) > 0 {
		t.Errorf("carriers left behind: %s, %v", out, err)
	}
}

// merged takes the fingerprints of what the containers see.
func merged(t *testing.T, sys *systems.System, s *lab.Site) map[string]treecmp.Tree {
	t.Helper()
	trees, err := sys.Fingerprints(t.Context(), s, systems.Merged)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"volume rack_memory", "volume rack_elsewhere"} { // mounted only while a container runs
		delete(trees, name)
	}
	return trees
}

// notWritten is what the archive API cannot write, and what each engine makes
// by itself.
func notWritten(d treecmp.Difference) bool {
	switch d.Field {
	case "mtime":
		return d.Path == "." || d.Path == "etc" || d.Path == "etc/mtab" || d.Path == ".dockerenv" ||
			strings.HasPrefix(d.Want, "-") && strings.HasPrefix(d.Got, "0.0")
	case "xattr user.empty":
		return d.Got == "none"
	case "hard link":
		return d.Path == "image/links/a" // its other name was deleted
	}
	if d.Field != "unexpected" {
		return false
	}
	for _, p := range []string{
		"image/deleted", "image/deleted-dir", "image/emptied/of-the-image", "image/links/b", "image/mixed/deleted",
		"image/replaced/sub", "image/replaced/of-the-image", "image/replaced-twice/of-the-image", "image/replaced-twice/sub",
	} {
		if d.Path == p || strings.HasPrefix(d.Path, p+"/") {
			return true
		}
	}
	return false
}

func nothingPaused(t *testing.T, s *lab.Site) {
	t.Helper()
	out, err := s.Docker(t.Context(), "ps", "--filter", "status=paused", "--quiet")
	if err != nil || len(fields(out)) > 0 {
		t.Errorf("still paused: %s, %v", out, err)
	}
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

func compareKept(t *testing.T, what, want, got string) {
	t.Helper()
	w, err := treecmp.Fingerprint(want, treecmp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	g, err := treecmp.Fingerprint(got, treecmp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: %d entries", what, len(w))
	if text := treecmp.Report(treecmp.Compare(asKept(w), asKept(g), treecmp.Rules{}), 20); text != "" {
		t.Errorf("%s differs:\n%s", what, text)
	}
}
