package freeze

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The test binary also plays the processes in containers and, in a network
// namespace of its own, Lifeboat that gathers facts about them.
const (
	serverCommand = "lbtest-server"
	factsCommand  = "lbtest-facts"
)

// serverMain opens what its arguments say, prints "ready ADDRESS" and stays
// until its standard input ends.
func serverMain(args []string) int {
	var what string
	var err error
	switch args[0] {
	case "tcp", "unix":
		var l net.Listener
		if l, err = net.Listen(args[0], args[1]); err == nil {
			what = l.Addr().String()
		}
	case "udp":
		var l net.PacketConn
		if l, err = net.ListenPacket("udp", args[1]); err == nil {
			what = l.LocalAddr().String()
		}
	case "tun":
		err = openTun(args[1])
	case "fuse":
		err = serveFuse(args[1])
	case "none":
	}
	if err != nil {
		fmt.Println("failed", err)
		return 1
	}
	fmt.Println("ready", what)
	_, _ = io.Copy(io.Discard, os.Stdin)
	if args[0] == "fuse" {
		_ = unix.Unmount(args[1], unix.MNT_DETACH)
	}
	return 0
}

func openTun(name string) error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR, 0)
	if err != nil {
		return err
	}
	var req struct {
		name  [unix.IFNAMSIZ]byte
		flags uint16
		_     [22]byte
	}
	copy(req.name[:], name)
	req.flags = unix.IFF_TUN | unix.IFF_NO_PI
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TUNSETIFF, uintptr(unsafe.Pointer(&req))); e != 0 {
		return e
	}
	return nil
}

// serveFuse mounts and never answers, which is enough to be found.
func serveFuse(dir string) error {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR, 0)
	if err != nil {
		return err
	}
	return unix.Mount("lbtest", dir, "fuse.lbtest", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd))
}

// factsMain gathers and judges, and prints the result.
func factsMain(doc string) int {
	var cfg FactsConfig
	if err := json.Unmarshal([]byte(doc), &cfg); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	f, err := GatherFacts(context.Background(), cfg)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var out factsResult
	for _, r := range Refuse(f) {
		out.Reasons = append(out.Reasons, r.Container.Name+" "+string(r.What))
		out.Text = append(out.Text, r.String())
	}
	out.Unknown = f.Unknown
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		return 1
	}
	return 0
}

type factsResult struct {
	Reasons, Text, Unknown []string
}

// server is a process of serverMain.
type server struct {
	pid  int
	addr string
}

// startServer runs serverMain in a container's cgroup (none if nil), in the
// network namespace of a process (a new one if -1, this one if 0).
func startServer(t *testing.T, f *fixture, netOf int, args ...string) server {
	t.Helper()
	script := `exec /proc/self/exe`
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	script = `[ -z "$DIR" ] || echo $$ > "$DIR/cgroup.procs"; exec "$@"`
	line := []string{"-c", script, "sh"}
	if netOf > 0 {
		line = append(line, "nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", netOf))
	}
	cmd := exec.Command("sh", append(append(line, exe, serverCommand), args...)...)
	cmd.Env = os.Environ()
	if f != nil {
		cmd.Env = append(cmd.Env, "DIR="+f.dir)
	}
	cmd.SysProcAttr = &unix.SysProcAttr{}
	if netOf < 0 {
		cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWNET
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Wait()
	})
	var word, addr string
	if _, err := fmt.Fscanln(out, &word, &addr); word != "ready" {
		t.Fatalf("server %v: %s %s %v", args, word, addr, err)
	}
	return server{pid: cmd.Process.Pid, addr: addr}
}

// gatherIn runs factsMain in the network namespace of a process and, if f is
// not nil, in a container's cgroup.
func gatherIn(t *testing.T, netOf int, f *fixture, cfg FactsConfig) factsResult {
	t.Helper()
	if cfg.ProcRoot == "" {
		cfg.ProcRoot = "/proc"
	}
	if cfg.ResolvConf == nil {
		cfg.ResolvConf = []string{resolvConf(t, "203.0.113.53")}
	}
	doc, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", `[ -z "$DIR" ] || echo $$ > "$DIR/cgroup.procs"; exec "$@"`, "sh",
		"nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", netOf), exe, factsCommand, string(doc))
	cmd.Env = os.Environ()
	if f != nil {
		cmd.Env = append(cmd.Env, "DIR="+f.dir)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	b, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	var r factsResult
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", r)
	return r
}

func resolvConf(t *testing.T, server string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(p, []byte("search x\nnameserver "+server+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}

func ip(t *testing.T, netOf int, args ...string) {
	t.Helper()
	out, err := exec.Command("nsenter", append([]string{fmt.Sprintf("--net=/proc/%d/ns/net", netOf), "ip"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("ip %v: %v: %s", args, err, out)
	}
}

// want checks that exactly this is refused.
func (r factsResult) want(t *testing.T, want ...string) {
	t.Helper()
	if !slices.Equal(r.Reasons, want) {
		t.Errorf("refused %q, want %q", r.Reasons, want)
	}
}

// TestGatherFacts lays out two network namespaces, Lifeboat's and a
// container's, with a link between them.
func TestGatherFacts(t *testing.T) {
	own := startServer(t, nil, -1, "none").pid
	f := newFixture(t, versions(t)[0])
	inside := startServer(t, f, -1, "none").pid
	f.Pid = inside
	ip(t, own, "link", "set", "lo", "up")
	ip(t, inside, "link", "set", "lo", "up")
	ip(t, own, "link", "add", "lb0", "type", "veth", "peer", "name", "lb1")
	ip(t, own, "link", "set", "lb1", "netns", strconv.Itoa(inside))
	ip(t, own, "addr", "add", "10.231.0.1/24", "dev", "lb0")
	ip(t, own, "link", "set", "lb0", "up")
	ip(t, inside, "addr", "add", "10.231.0.2/24", "dev", "lb1")
	ip(t, inside, "link", "set", "lb1", "up")
	cs := []Container{f.Container}

	t.Run("nothing", func(t *testing.T) {
		gatherIn(t, own, nil, FactsConfig{Containers: cs, Registry: []string{"10.231.0.77:5000"}}).want(t)
	})
	t.Run("registry at the container's address", func(t *testing.T) {
		s := startServer(t, f, inside, "tcp", "0.0.0.0:0")
		_, port, _ := net.SplitHostPort(s.addr)
		gatherIn(t, own, nil, FactsConfig{Containers: cs, Registry: []string{"10.231.0.2:" + port}}).want(t, f.Name+" "+string(WhatRegistry))
	})
	t.Run("registry in a container on the host's network", func(t *testing.T) {
		h := newFixture(t, f.version)
		s := startServer(t, h, own, "tcp", "127.0.0.1:0")
		h.Pid = s.pid
		gatherIn(t, own, nil, FactsConfig{Containers: []Container{f.Container, h.Container}, Registry: []string{s.addr}}).
			want(t, h.Name+" "+string(WhatRegistry))
	})
	t.Run("registry beside the containers", func(t *testing.T) {
		s := startServer(t, nil, own, "tcp", "127.0.0.1:0")
		gatherIn(t, own, nil, FactsConfig{Containers: cs, Registry: []string{s.addr}}).want(t)
	})
	t.Run("resolver", func(t *testing.T) {
		startServer(t, f, own, "udp", "127.0.0.1:53")
		gatherIn(t, own, nil, FactsConfig{Containers: cs, ResolvConf: []string{resolvConf(t, "127.0.0.1")}}).want(t, f.Name+" "+string(WhatResolver))
	})
	t.Run("engine's socket", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "docker.sock")
		startServer(t, f, 0, "unix", path)
		gatherIn(t, own, nil, FactsConfig{Containers: cs, Engine: "unix://" + path}).want(t, f.Name+" "+string(WhatEngine))
	})
	t.Run("engine over TCP", func(t *testing.T) {
		s := startServer(t, f, own, "tcp", "127.0.0.1:0")
		gatherIn(t, own, nil, FactsConfig{Containers: cs, Engine: "tcp://" + s.addr}).want(t, f.Name+" "+string(WhatEngine))
	})
	t.Run("gateway", func(t *testing.T) {
		ip(t, own, "route", "add", "198.51.100.0/24", "via", "10.231.0.2")
		gatherIn(t, own, nil, FactsConfig{Containers: cs, Registry: []string{"198.51.100.7:443"}}).want(t, f.Name+" "+string(WhatRoute))
	})
	t.Run("tunnel", func(t *testing.T) {
		startServer(t, f, own, "tun", "lbtun0")
		ip(t, own, "link", "set", "lbtun0", "up")
		ip(t, own, "route", "add", "192.0.2.0/24", "dev", "lbtun0")
		gatherIn(t, own, nil, FactsConfig{Containers: cs, Registry: []string{"192.0.2.7:443"}}).want(t, f.Name+" "+string(WhatRoute))
	})
	t.Run("FUSE", func(t *testing.T) {
		dir := t.TempDir()
		startServer(t, f, 0, "fuse", dir)
		gatherIn(t, own, nil, FactsConfig{Containers: cs, Trees: []string{filepath.Dir(dir)}}).want(t, f.Name+" "+string(WhatMount))
		gatherIn(t, own, nil, FactsConfig{Containers: cs, Trees: []string{"/usr"}}).want(t)
	})
	t.Run("FUSE served from elsewhere", func(t *testing.T) {
		dir := t.TempDir()
		startServer(t, nil, 0, "fuse", dir)
		gatherIn(t, own, nil, FactsConfig{Containers: cs, Trees: []string{dir}}).want(t)
	})
	t.Run("itself", func(t *testing.T) {
		gatherIn(t, own, f, FactsConfig{Containers: cs}).want(t, f.Name+" "+string(WhatSelf), f.Name+" "+string(WhatSelf))
	})
	t.Run("what cannot be found out", func(t *testing.T) {
		r := gatherIn(t, own, nil, FactsConfig{Containers: cs, Engine: "ssh://somewhere", Registry: []string{"no port"}, ResolvConf: []string{"/nonexistent"}})
		// Process 1 may be out of sight too, where it has more rights than root.
		for _, want := range []string{"ssh://somewhere", "no port", "/nonexistent"} {
			if !slices.ContainsFunc(r.Unknown, func(u string) bool { return strings.Contains(u, want) }) {
				t.Errorf("unknown %q does not tell of %s", r.Unknown, want)
			}
		}
	})
}

// NewSet in a process that is in the container itself gives ErrForbidden and
// does not fall back to the engine.
func TestNewSetRefusesOwnCgroup(t *testing.T) {
	eachVersion(t, func(t *testing.T, v int) {
		f := newFixture(t, v)
		doc, err := json.Marshal(holderConfig{StateDir: t.TempDir(), Containers: []Container{f.Container}, Engine: map[string]string{f.ID: f.dir}})
		if err != nil {
			t.Fatal(err)
		}
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("sh", "-c", `echo $$ > "$0/cgroup.procs"; exec "$@"`, f.dir, exe, holderCommand, string(doc))
		out, _ := cmd.CombinedOutput()
		if s := string(out); !strings.HasPrefix(s, resultError) || !strings.Contains(s, ErrForbidden.Error()) {
			t.Errorf("holder in the container says %q", s)
		}
		mustRun(t, []*fixture{f})
	})
}
