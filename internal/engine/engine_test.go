package engine_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"lifeboat/internal/dr"
	"lifeboat/internal/engine"
	"lifeboat/internal/engine/enginetest"
	"lifeboat/internal/engine/fake"
)

// shortDir is a directory whose path is short enough for sockets.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "lbtest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// startFake gives a fake engine and a connection to it, with the probe's image.
func startFake(t *testing.T, o fake.Options) (*fake.Engine, *engine.Engine) {
	t.Helper()
	o.Dir = shortDir(t)
	f, err := fake.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		for _, x := range f.Unused() {
			t.Errorf("planned fault hit nothing: %+v", x)
		}
	})
	e := enginetest.Open(t, f.Host())
	enginetest.Import(t, e)
	return f, e
}

func plain(name string) dr.Container {
	return dr.Container{Name: name, ImageRef: enginetest.ImageRef, Config: json.RawMessage(`{}`), HostConfig: json.RawMessage(`{}`)}
}

func TestOpen(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	dead := filepath.Join(dir, "dead.sock")
	l, err := net.Listen("unix", dead)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	_ = l.Close()
	for _, c := range []struct {
		host, says string
		usage      bool
	}{
		{"unix://" + filepath.Join(dir, "none.sock"), "no such socket", false},
		{"unix://" + dead, "nothing answers", false},
		{"tcp://127.0.0.1:1", "nothing answers", false},
		{"ftp://x", "scheme", true},
		{"/var/run/docker.sock", "unix:///path", true},
		{"ssh://-oProxyCommand=x", "want ssh://", true},
		{"ssh://u:geheim@h", "password", true},
	} {
		_, err := engine.Open(t.Context(), engine.Options{Host: c.host})
		if err == nil || !strings.Contains(err.Error(), c.says) || errors.Is(err, dr.ErrUsage) != c.usage || strings.Contains(err.Error(), "geheim") {
			t.Errorf("%s: error %v, want one that says %q", c.host, err, c.says)
		}
	}
}

func TestOpenNeverAnswers(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err = engine.Open(ctx, engine.Options{Host: "unix://" + path}); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("error %v, want %v", err, context.DeadlineExceeded)
	}
}

// TestOutcomeUnknown: when the answer to a changing call is lost, the error says
// that the outcome is unknown, whether or not the change was made; when it is
// refused, it does not.
func TestOutcomeUnknown(t *testing.T) {
	t.Parallel()
	f, e := startFake(t, fake.Options{})
	ctx := t.Context()
	if _, err := e.CreateContainer(ctx, plain("there"), engine.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	calls := []struct {
		name, method, path string
		call               func() error
	}{
		{"create container", "POST", "/containers/create", func() error {
			_, err := e.CreateContainer(ctx, plain("new"), engine.CreateOptions{})
			return err
		}},
		{"start", "POST", "/containers/there/start", func() error { return e.Start(ctx, "there") }},
		{"stop", "POST", "/containers/there/stop", func() error { return e.Stop(ctx, "there", time.Second) }},
		{"rename", "POST", "/containers/there/rename", func() error { return e.Rename(ctx, "there", "there") }},
		{"policy", "POST", "/containers/there/update", func() error { return e.DisableRestart(ctx, "there") }},
		{"create network", "POST", "/networks/create", func() error {
			_, err := e.CreateNetwork(ctx, json.RawMessage(`{"Name":"n"}`), nil)
			return err
		}},
		{"create volume", "POST", "/volumes/create", func() error {
			_, err := e.CreateVolume(ctx, dr.Volume{Name: "v"}, nil)
			return err
		}},
		{"tag", "POST", "/images/.*/tag", func() error { return e.TagImage(ctx, enginetest.ImageRef, "x:1") }},
		{"untag", "DELETE", "/images/x:1", func() error { return e.UntagImage(ctx, "x:1") }},
		{"remove", "DELETE", "/containers/there", func() error { return e.Remove(ctx, "there", engine.RemoveOptions{}) }},
	}
	for _, c := range calls {
		f.Break(fake.Fault{Method: c.method, Path: c.path, Kind: fake.Refuse})
		if err := c.call(); err == nil || errors.Is(err, dr.ErrOutcomeUnknown) {
			t.Errorf("%s, refused: error %v, want one whose outcome is known", c.name, err)
		}
		f.Break(fake.Fault{Method: c.method, Path: c.path, Kind: fake.DropBefore})
		err := c.call()
		// A DELETE may be sent again by the transport, since doing it twice is
		// doing it once; then it succeeds.
		if !errors.Is(err, dr.ErrOutcomeUnknown) && !(err == nil && c.method == "DELETE") {
			t.Errorf("%s, dropped before it was done: error %v, want %v", c.name, err, dr.ErrOutcomeUnknown)
		}
		if err == nil {
			continue
		}
		f.Break(fake.Fault{Method: c.method, Path: c.path, Kind: fake.DropAfter})
		if err := c.call(); !errors.Is(err, dr.ErrOutcomeUnknown) && !(err == nil && c.method == "DELETE") {
			t.Errorf("%s, done but the answer lost: error %v, want %v", c.name, err, dr.ErrOutcomeUnknown)
		}
	}
	for _, name := range []string{"new"} {
		st, err := e.Container(ctx, name)
		if err != nil || st.State != "created" {
			t.Errorf("the container whose creation gave no answer: %+v, %v", st, err)
		}
	}
}

// TestCreateTakesBack: a container of which a network cannot be connected is
// removed again.
func TestCreateTakesBack(t *testing.T) {
	t.Parallel()
	f, e := startFake(t, fake.Options{})
	for _, n := range []string{"one", "two"} {
		if _, err := e.CreateNetwork(t.Context(), json.RawMessage(`{"Name":"`+n+`"}`), nil); err != nil {
			t.Fatal(err)
		}
	}
	c := plain("c")
	c.HostConfig = json.RawMessage(`{"NetworkMode":"one"}`)
	c.Endpoints = map[string]json.RawMessage{"one": json.RawMessage(`{}`), "two": json.RawMessage(`{}`)}
	f.Break(fake.Fault{Method: "POST", Path: "/networks/two/connect", Kind: fake.Refuse})
	if _, err := e.CreateContainer(t.Context(), c, engine.CreateOptions{}); err == nil {
		t.Fatal("a network that cannot be connected gave no error")
	}
	if _, err := e.Container(t.Context(), "c"); !errors.Is(err, dr.ErrNotFound) {
		t.Errorf("the container is still there: %v", err)
	}
	if _, err := e.CreateContainer(t.Context(), c, engine.CreateOptions{Name: "other", Labels: map[string]string{"k": "v"}}); err != nil {
		t.Fatal(err)
	}
	st, err := e.Container(t.Context(), "other")
	if err != nil || st.Labels["k"] != "v" || st.Labels["org.example.test"] != "yes" {
		t.Errorf("container by another name: %+v, %v", st, err)
	}
}

// TestOldEngineCannot: what an older engine would silently do otherwise is an error.
func TestOldEngineCannot(t *testing.T) {
	t.Parallel()
	_, e := startFake(t, fake.Options{})
	for host, says := range map[string]string{
		`{"Mounts":[{"Type":"volume","Source":"v","Target":"/x","VolumeOptions":{"Subpath":"a"}}]}`: "1.45",
		`{"Mounts":[{"Type":"image","Source":"i","Target":"/x"}]}`:                                  "1.48",
	} {
		c := plain("c")
		c.HostConfig = json.RawMessage(host)
		if _, err := e.CreateContainer(t.Context(), c, engine.CreateOptions{}); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: error %v, want one that says %s", host, err, says)
		}
	}
}

func TestPull(t *testing.T) {
	t.Parallel()
	var archive []byte
	f, e := startFake(t, fake.Options{Pull: func(ref string) ([]byte, error) {
		if !strings.HasPrefix(ref, "127.0.0.1:5000/x") {
			return nil, fmt.Errorf("manifest for %s not found: manifest unknown", ref)
		}
		return archive, nil
	}})
	r, err := e.SaveImage(t.Context(), enginetest.ImageRef)
	if err != nil {
		t.Fatal(err)
	}
	if archive, err = io.ReadAll(r); err != nil {
		t.Fatal(err)
	}
	if err := e.UntagImage(t.Context(), enginetest.ImageRef); err != nil {
		t.Fatal(err)
	}
	var seen []engine.PullProgress
	err = e.PullImage(t.Context(), "127.0.0.1:5000/x:1", engine.PullOptions{
		Auth: engine.RegistryAuth{Username: "u", Password: "p"}, Stall: time.Minute, Progress: func(p engine.PullProgress) { seen = append(seen, p) },
	})
	if err != nil || len(seen) == 0 || seen[0].Total != int64(len(archive)) {
		t.Fatalf("pull: %v, progress %v", err, seen)
	}
	if has, err := e.HasImage(t.Context(), enginetest.ImageRef); err != nil || !has {
		t.Errorf("pulled image: %v, %v", has, err)
	}
	if err := e.PullImage(t.Context(), "127.0.0.1:5000/none:1", engine.PullOptions{}); !errors.Is(err, dr.ErrNotFound) {
		t.Errorf("pull of what is not there: %v", err)
	}
	if err := e.PullImage(t.Context(), "127.0.0.1:5000/x:1", engine.PullOptions{Platform: "linux"}); !errors.Is(err, dr.ErrUsage) {
		t.Errorf("pull for half a platform: %v", err)
	}
	f.Break(fake.Fault{Method: "POST", Path: "/images/create", Kind: fake.DropBefore})
	if err := e.PullImage(t.Context(), "127.0.0.1:5000/x:1", engine.PullOptions{}); err == nil {
		t.Error("a pull that was cut off gave no error")
	}
}

// TestPullStalls: a registry that goes silent ends the pull after Stall.
func TestPullStalls(t *testing.T) {
	t.Parallel()
	hang := make(chan struct{})
	_, e := startFake(t, fake.Options{Pull: func(string) ([]byte, error) {
		<-hang
		return nil, errors.New("too late")
	}})
	t.Cleanup(func() { close(hang) }) // before the engine is closed
	err := e.PullImage(t.Context(), "127.0.0.1:5000/x:1", engine.PullOptions{Stall: 20 * time.Millisecond})
	if err == nil || !strings.Contains(err.Error(), "no progress for 20ms") {
		t.Fatalf("error %v", err)
	}
}

// TestSSH reaches an engine through a command in place of ssh.
func TestSSH(t *testing.T) {
	t.Parallel()
	f, _ := startFake(t, fake.Options{})
	dir := shortDir(t)
	args := filepath.Join(dir, "args")
	// The stand-in for ssh notes its arguments and connects to the engine.
	script := filepath.Join(dir, "ssh")
	body := fmt.Sprintf("#!/bin/sh\necho \"$@\" > %s\necho 'Warning: something harmless' >&2\nexec %s -test.run=^TestDialStdio$ -- %s\n", args, os.Args[0], strings.TrimPrefix(f.Host(), "unix://"))
	if err := os.WriteFile(script, []byte(body), 0o755); err != nil {
		t.Fatal(err)
	}
	e, err := engine.Open(t.Context(), engine.Options{Host: "ssh://me@far.test:2222/run/it's.sock", SSH: []string{script}})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	in, err := e.Info(t.Context())
	if err != nil || in.Name != "fakehost" {
		t.Fatalf("info %+v, %v", in, err)
	}
	got, err := os.ReadFile(args)
	want := `-o ConnectTimeout=30 -o BatchMode=yes -T -l me -p 2222 -- far.test docker --host 'unix:///run/it'\''s.sock' system dial-stdio`
	if err != nil || strings.TrimSpace(string(got)) != want {
		t.Errorf("ssh got %s\nwant    %s", got, want)
	}
	var out bytes.Buffer
	if _, err := e.CreateContainer(t.Context(), plain("c"), engine.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := e.Start(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	code, err := e.Exec(t.Context(), "c", engine.ExecOptions{Cmd: []string{"/probe", "stdin", "exit", "3"}, Stdin: strings.NewReader("over ssh"), Stdout: &out})
	if err != nil || code != 3 || out.String() != "over ssh" {
		t.Errorf("exec over ssh: exit %d, %v, %q", code, err, out.String())
	}
	h, err := e.HostFS(t.Context())
	if err != nil || h.Local || !strings.Contains(h.Reason, "network") {
		t.Errorf("host files over ssh: %+v, %v", h, err)
	}
}

func TestSSHFails(t *testing.T) {
	t.Parallel()
	script := filepath.Join(shortDir(t), "ssh")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho 'me@far.test: Permission denied (publickey).' >&2\nexit 255\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := engine.Open(t.Context(), engine.Options{Host: "ssh://me@far.test", SSH: []string{script}})
	if err == nil || !strings.Contains(err.Error(), "publickey") {
		t.Fatalf("error %v, want what ssh said", err)
	}
}

// TestDialStdio is no test: it is what TestSSH's stand-in for ssh runs, and does
// nothing without the argument that it gives.
func TestDialStdio(t *testing.T) {
	i := slices.Index(os.Args, "--")
	if i < 0 || i+1 >= len(os.Args) {
		return
	}
	conn, err := net.Dial("unix", os.Args[i+1])
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = io.Copy(conn, os.Stdin)
		_ = conn.(*net.UnixConn).CloseWrite()
	}()
	_, _ = io.Copy(os.Stdout, conn)
	os.Exit(0)
}

// TestDiscoverFails: what the engine refuses to tell is an error, never a gap.
func TestDiscoverFails(t *testing.T) {
	t.Parallel()
	f, e := startFake(t, fake.Options{})
	if _, err := e.CreateContainer(t.Context(), plain("c"), engine.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/info", "/containers/json", "/containers/[0-9a-f]{64}/json", "/images/.*/json", "/networks", "/volumes"} {
		f.Break(fake.Fault{Method: "GET", Path: path, Kind: fake.Refuse})
		if _, err := e.Discover(t.Context(), engine.Selector{Containers: []string{"c"}}); err == nil {
			t.Errorf("%s refused: no error", path)
		}
	}
	if _, err := e.Discover(t.Context(), engine.Selector{Containers: []string{"c"}}); err != nil {
		t.Error(err)
	}
}

// TestAnotherUser: a user who may use the engine but not read its files is told
// so, and gets everything that does not need them.
func TestAnotherUser(t *testing.T) {
	t.Parallel()
	f, e := startFake(t, fake.Options{})
	if _, err := e.CreateContainer(t.Context(), plain("c"), engine.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	socket := strings.TrimPrefix(f.Host(), "unix://")
	dir := filepath.Dir(socket)
	binary := filepath.Join(dir, "self")
	self, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(binary, self, 0o755), os.Chmod(dir, 0o755), os.Chmod(socket, 0o666)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), binary, "-test.run=^TestAsAnotherUser$", "--", "discover", f.Host())
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "local false") || !strings.Contains(string(out), "layer layer:c") {
		t.Fatalf("%v\n%s", err, out)
	}
}

// TestAsAnotherUser is what TestAnotherUser runs, and does nothing otherwise.
func TestAsAnotherUser(t *testing.T) {
	i := slices.Index(os.Args, "discover")
	if i < 0 || i+1 >= len(os.Args) {
		return
	}
	e := enginetest.Open(t, os.Args[i+1])
	sys, err := e.Discover(t.Context(), engine.Selector{Containers: []string{"c"}})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("local %v (%s)\nlayer %s\n", sys.HostFS.Local, sys.HostFS.Reason, sys.Containers[0].Layer)
}
