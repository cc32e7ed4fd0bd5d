package lab_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lifeboat/lab"
	"lifeboat/lab/wan"
)

// parentEnv makes this test binary a program that makes a laboratory and waits to be killed.
const parentEnv = "LBTEST_PARENT_ROOT"

func TestMain(m *testing.M) {
	lab.Child()
	if root := os.Getenv(parentEnv); root != "" {
		l, err := lab.New(context.Background(), lab.Options{Root: root, Sites: []lab.SiteOptions{{Name: "main"}}})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		status, err := l.Status(context.Background())
		fmt.Println("up", status.PID, err)
		select {}
	}
	os.Exit(m.Run())
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// shortRoot is a root of laboratories for one test; sockets need a shorter path than t.TempDir gives.
func shortRoot(t *testing.T) string {
	t.Helper()
	parent, err := os.MkdirTemp("/var/tmp", "lbtest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(parent); err != nil {
			t.Error(err)
		}
	})
	return filepath.Join(parent, "r")
}

func newLab(t *testing.T, opts lab.Options) *lab.Lab {
	t.Helper()
	l, err := lab.New(testContext(t), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// traces lists everything of the machine that mentions root: processes, mounts, and control groups of
// the laboratory's name, besides network namespaces and devices of this namespace.
func traces(t *testing.T, root, group string) []string {
	t.Helper()
	var found []string
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		data, err := os.ReadFile(p)
		if err == nil && bytes.Contains(data, []byte(root+"/")) && filepath.Dir(p) != fmt.Sprintf("/proc/%d", os.Getpid()) {
			found = append(found, "process "+strings.ReplaceAll(string(data), "\x00", " "))
		}
		env, err := os.ReadFile(filepath.Join(filepath.Dir(p), "environ"))
		if err == nil && bytes.Contains(env, []byte("warden:"+root+"/")) {
			found = append(found, "warden "+p)
		}
	}
	mounts, err := filepath.Glob("/proc/[0-9]*/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		if data, err := os.ReadFile(m); err == nil && bytes.Contains(data, []byte(root+"/")) {
			found = append(found, "mount in "+m)
		}
	}
	groups, err := filepath.Glob("/sys/fs/cgroup/*/" + group)
	if err != nil {
		t.Fatal(err)
	}
	found = append(found, groups...)
	groups, err = filepath.Glob("/sys/fs/cgroup/" + group)
	if err != nil {
		t.Fatal(err)
	}
	found = append(found, groups...)
	if _, err := os.Stat(root); !errors.Is(err, os.ErrNotExist) {
		found = append(found, "directory "+root)
	}
	return found
}

// machineState is what engines could leave in the machine's own network namespace. (Mounts are looked
// for by traces, for other programs mount things at the same time.)
func machineState(t *testing.T) []string {
	t.Helper()
	var state []string
	ours := regexp.MustCompile(`docker|veth|br-|wan0|DOCKER|lifeboat`)
	for _, args := range [][]string{{"ip", "-o", "link"}, {"ip", "netns"}, {"iptables-save"}} {
		out, err := exec.Command(args[0], args[1:]...).Output()
		if err != nil {
			t.Fatalf("%v: %v", args, err)
		}
		for line := range strings.Lines(string(out)) {
			if !strings.HasPrefix(line, "#") && ours.MatchString(line) {
				state = append(state, args[0]+" "+strings.TrimSpace(line))
			}
		}
	}
	sort.Strings(state)
	return state
}

func groupOf(t *testing.T, s *lab.Site) string {
	t.Helper()
	target, err := os.Readlink(filepath.Join(filepath.Dir(s.NetNS), "cgroup"))
	if err != nil {
		t.Fatal(err)
	}
	for dir := target; ; dir = filepath.Dir(dir) {
		if strings.HasPrefix(filepath.Base(dir), "lifeboat-lab") {
			return filepath.Base(dir)
		}
		if dir == "/" {
			t.Fatalf("no group of a laboratory in %s", target)
		}
	}
}

// importShell gives the site an image with a shell and its libraries, packed from the machine's own.
func importShell(t *testing.T, s *lab.Site) {
	t.Helper()
	files := map[string]bool{}
	for _, bin := range []string{"/bin/sh", "/bin/sleep", "/bin/cat"} {
		out, err := exec.Command("ldd", bin).Output()
		if err != nil {
			t.Fatal(err)
		}
		files[bin] = true
		for _, f := range strings.Fields(string(out)) {
			if strings.HasPrefix(f, "/") {
				files[f] = true
			}
		}
	}
	var list bytes.Buffer
	for f := range files {
		list.WriteString(strings.TrimPrefix(f, "/") + "\n")
	}
	tar := exec.Command("tar", "-C", "/", "-ch", "-T", "-", "--hard-dereference")
	tar.Stdin = &list
	imp := s.Command(testContext(t), "docker", "import", "-", "lbtest/shell:1")
	pipe, err := tar.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	imp.Stdin = pipe
	if err := tar.Start(); err != nil {
		t.Fatal(err)
	}
	if out, err := imp.CombinedOutput(); err != nil {
		t.Fatalf("import: %v: %s", err, out)
	}
	if err := tar.Wait(); err != nil {
		t.Fatal(err)
	}
}

func mustRun(t *testing.T, s *lab.Site, name string, args ...string) string {
	t.Helper()
	out, err := s.Run(testContext(t), name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

func TestCloseLeavesNothing(t *testing.T) {
	ctx := testContext(t)
	before := machineState(t)
	root := shortRoot(t)
	start := time.Now()
	l := newLab(t, lab.Options{Root: root})
	t.Logf("up in %v", time.Since(start))
	group := groupOf(t, l.Main())
	importShell(t, l.Main())
	mustRun(t, l.Main(), "docker", "run", "-d", "--name", "cc", "-p", "8080:80", "-v", "vol:/v", "lbtest/shell:1", "/bin/sleep", "600")
	if len(traces(t, root, group)) == 0 {
		t.Fatal("the test does not see a laboratory that is up")
	}
	inside := l.Standin().Command(ctx, "sleep", "600")
	if err := inside.Start(); err != nil {
		t.Fatal(err)
	}
	start = time.Now()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	t.Logf("down in %v", time.Since(start))
	if err := inside.Wait(); err == nil {
		t.Error("a command on a site survived Close")
	}
	if left := traces(t, root, group); len(left) > 0 {
		t.Errorf("left behind: %s", strings.Join(left, "\n"))
	}
	if diff := cmp.Diff(before, machineState(t)); diff != "" {
		t.Errorf("the machine was changed (-before +after):\n%s", diff)
	}
	if err := l.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if _, err := l.Main().Run(ctx, "true"); !errors.Is(err, lab.ErrDown) {
		t.Errorf("command on a closed laboratory: %v, want ErrDown", err)
	}
}

func TestCrashRebootDestroy(t *testing.T) {
	ctx := testContext(t)
	l := newLab(t, lab.Options{Root: shortRoot(t)})
	s := l.Main()
	importShell(t, s)
	mustRun(t, s, "docker", "run", "-d", "--name", "cc", "--restart", "always", "--stop-signal", "KILL", "lbtest/shell:1", "/bin/sh", "-c", "echo here > /here; exec sleep 600")
	pid := mustRun(t, s, "docker", "inspect", "-f", "{{.State.Pid}}", "cc")
	for { // the container says when it has written
		if data, err := os.ReadFile("/proc/" + pid + "/root/here"); err == nil && len(data) > 0 {
			break
		}
		if ctx.Err() != nil {
			t.Fatal("the container wrote nothing")
		}
	}
	mustRun(t, s, "sh", "-c", "echo x > /etc/lbtest; hostname; grep -q 'standin.test' /etc/hosts")
	if err := s.Crash(ctx); err != nil {
		t.Fatal(err)
	}
	if stat, err := os.ReadFile("/proc/" + pid + "/stat"); err == nil && !bytes.Contains(stat, []byte(") Z ")) {
		t.Fatalf("container process %s survived the crash", pid)
	}
	if _, err := s.Docker(ctx, "ps"); !errors.Is(err, lab.ErrDown) {
		t.Fatalf("docker on a crashed site: %v, want ErrDown", err)
	}
	if err := s.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if got := mustRun(t, s, "docker", "exec", "cc", "/bin/cat", "/here"); got != "here" {
		t.Fatalf("after the crash the container holds %q", got)
	}
	if got := mustRun(t, s, "cat", "/etc/lbtest"); got != "x" {
		t.Fatalf("the site's /etc was lost: %q", got)
	}
	if _, err := os.Stat("/etc/lbtest"); err == nil {
		t.Fatal("the site changed the machine's /etc")
	}
	if err := s.StopEngine(ctx); err != nil {
		t.Fatal(err)
	}
	mustRun(t, s, "true") // the host is still on
	if err := os.WriteFile(filepath.Join(s.StateDir, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Destroy(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if got := mustRun(t, s, "docker", "ps", "-aq") + mustRun(t, s, "docker", "images", "-q"); got != "" {
		t.Fatalf("a destroyed site still has %q", got)
	}
	if _, err := os.Stat(filepath.Join(s.StateDir, "x")); err == nil {
		t.Fatal("StateDir survived the loss of the host")
	}
}

func TestWANCutAndHeal(t *testing.T) {
	ctx := testContext(t)
	l := newLab(t, lab.Options{Root: shortRoot(t), Sites: []lab.SiteOptions{
		{Name: "main", Engine: lab.EngineNone}, {Name: "standin", Engine: lab.EngineNone},
	}})
	listener, err := l.Standin().Listen(ctx, "tcp", l.Standin().IP.String()+":80")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") })}
	go server.Serve(listener)
	defer server.Close()
	client := l.Main().HTTPClient()
	get := func(wait time.Duration) (string, error) {
		ctx, cancel := context.WithTimeout(ctx, wait)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://standin.test/", nil)
		if err != nil {
			return "", err
		}
		resp, err := client.Do(req)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		data, err := io.ReadAll(resp.Body)
		return string(data), err
	}
	if got, err := get(time.Minute); got != "hello" {
		t.Fatalf("over the WAN: %q, %v", got, err)
	}
	if err := l.Cut(ctx); err != nil {
		t.Fatal(err)
	}
	if got, err := get(300 * time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("through a cut: %q, %v; want a hang", got, err)
	}
	if err := l.Heal(ctx); err != nil {
		t.Fatal(err)
	}
	if err := l.SetWAN(ctx, wan.Params{Delay: 20 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	client.CloseIdleConnections()
	start := time.Now()
	if got, err := get(time.Minute); got != "hello" {
		t.Fatalf("after the cut: %q, %v", got, err)
	}
	if took := time.Since(start); took < 80*time.Millisecond { // two round trips: connect and request
		t.Errorf("two round trips of 40 ms took %v", took)
	}
	if err := l.Cut(ctx, "nowhere"); err == nil {
		t.Error("cutting an unknown site succeeded")
	}
	if err := l.SetWAN(ctx, wan.Params{Loss: 2}); err == nil {
		t.Error("a loss of 2 was accepted")
	}
}

func TestLaboratoryDiesWithItsParent(t *testing.T) {
	root := shortRoot(t)
	parent := exec.Command("/proc/self/exe", "-test.run=^$")
	parent.Env = append(os.Environ(), parentEnv+"="+root)
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscanf(out, "up %d", &pid); err != nil {
		t.Fatalf("parent did not come up: %v", err)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait() // killed
	ctx := testContext(t)
	for { // the warden ends after it has taken everything away
		if _, err := os.Stat(root); errors.Is(err, os.ErrNotExist) {
			break
		}
		if ctx.Err() != nil {
			t.Fatal("the laboratory outlives its parent")
		}
		time.Sleep(5 * time.Millisecond)
	}
	if left := traces(t, root, "lifeboat-lab-none"); len(left) > 0 {
		// The warden process itself may be about to end.
		for _, l := range left {
			if !strings.HasPrefix(l, "warden ") {
				t.Errorf("left behind: %s", l)
			}
		}
	}
}

func TestSweepAfterEverythingWasKilled(t *testing.T) {
	ctx := testContext(t)
	root := shortRoot(t)
	l, err := lab.New(ctx, lab.Options{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	group := groupOf(t, l.Main())
	importShell(t, l.Main())
	mustRun(t, l.Main(), "docker", "run", "-d", "lbtest/shell:1", "/bin/sleep", "600")
	status, err := l.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	warden, err := os.FindProcess(status.PID)
	if err != nil {
		t.Fatal(err)
	}
	if err := warden.Kill(); err != nil {
		t.Fatal(err)
	}
	for { // killed is not yet dead
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", status.PID)); err != nil {
			break
		}
		if ctx.Err() != nil {
			t.Fatal("the warden does not die")
		}
		time.Sleep(time.Millisecond)
	}
	// The next laboratory sweeps; its own life is not disturbed.
	l2 := newLab(t, lab.Options{Root: root, Sites: []lab.SiteOptions{{Name: "main", Engine: lab.EngineNone}}})
	if left := traces(t, l.Dir(), group); len(left) > 0 {
		t.Errorf("left behind: %s", strings.Join(left, "\n"))
	}
	mustRun(t, l2.Main(), "true")
}

func TestLaboratoriesSideBySide(t *testing.T) {
	ctx := testContext(t)
	root := shortRoot(t)
	sites := []lab.SiteOptions{{Name: "main", Engine: lab.EngineNone}}
	a := newLab(t, lab.Options{Root: root, Sites: sites})
	b := newLab(t, lab.Options{Root: root, Sites: sites})
	for _, l := range []*lab.Lab{a, b} { // the same address twice
		listener, err := l.Main().Listen(ctx, "tcp", l.Main().IP.String()+":80")
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
	}
	if _, err := lab.New(ctx, lab.Options{Root: root, Name: a.Name(), Sites: sites}); err == nil {
		t.Fatal("two laboratories of one name")
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	mustRun(t, b.Main(), "ip", "link", "show", "wan0")
	if _, err := a.Main().Dial(ctx, "tcp", "127.0.0.1:1"); !errors.Is(err, lab.ErrDown) {
		t.Fatalf("dial from a closed laboratory: %v", err)
	}
	var refused *net.OpError
	if _, err := b.Main().Dial(ctx, "tcp", "127.0.0.1:1"); !errors.As(err, &refused) {
		t.Fatalf("dial to a closed port: %v", err)
	}
}

func TestAttachToLingering(t *testing.T) {
	ctx := testContext(t)
	root := shortRoot(t)
	l, err := lab.New(ctx, lab.Options{Root: root, Name: "demo", Linger: true, Sites: []lab.SiteOptions{{Name: "one", Engine: lab.EngineNone}}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	other, err := lab.Attach(ctx, root, "demo")
	if err != nil {
		t.Fatal(err)
	}
	mustRun(t, other.Site("one"), "true")
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := lab.Attach(ctx, root, "demo"); err == nil {
		t.Fatal("attached to a laboratory that is gone")
	}
	if _, err := os.Stat(root); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("root is still there: %v", err)
	}
}

// TestWANIsNotTheBottleneck logs what an ideal WAN carries; it only fails when bytes are lost.
func TestWANIsNotTheBottleneck(t *testing.T) {
	ctx := testContext(t)
	l := newLab(t, lab.Options{Root: shortRoot(t), Sites: []lab.SiteOptions{
		{Name: "main", Engine: lab.EngineNone}, {Name: "standin", Engine: lab.EngineNone},
	}})
	listener, err := l.Standin().Listen(ctx, "tcp", l.Standin().IP.String()+":9")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	received := make(chan int64, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			received <- 0
			return
		}
		defer conn.Close()
		n, _ := io.Copy(io.Discard, conn) // an error shows in n
		received <- n
	}()
	conn, err := l.Main().Dial(ctx, "tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	const size = 64 << 20
	start := time.Now()
	block := make([]byte, 1<<20)
	for sent := 0; sent < size; sent += len(block) {
		if _, err := conn.Write(block); err != nil {
			t.Fatal(err)
		}
	}
	conn.Close()
	if n := <-received; n != size {
		t.Fatalf("%d bytes of %d arrived", n, size)
	}
	took := time.Since(start)
	t.Logf("%.0f Mbit/s", float64(size)*8/1e6/took.Seconds())
	status, err := l.Status(ctx)
	if err != nil || status.Sites[0].BytesCarried < size {
		t.Errorf("the warden counted %d bytes, %v", status.Sites[0].BytesCarried, err)
	}
}
