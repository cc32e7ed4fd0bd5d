package freeze

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// FactsConfig says what Lifeboat is about to freeze and what it depends on.
type FactsConfig struct {
	// ProcRoot is as for OpenHost.
	ProcRoot   string
	Containers []Container
	// Published are, by container id, the host's ports that the engine leads
	// to the container, as the engine tells them.
	Published map[string][]Endpoint
	// Engine is the engine's endpoint in the form of DOCKER_HOST. Only unix and
	// tcp endpoints are looked into.
	Engine string
	// Registry is every host:port through which the registry is reached: its
	// own, and the HTTP proxy's if there is one.
	Registry []string
	// ResolvConf are the resolver's files. Empty means /etc/resolv.conf and
	// that of systemd-resolved, which names the servers behind its stub.
	ResolvConf []string
	// Trees are the directories that will be walked while frozen.
	Trees []string
}

// lookupTimeout bounds what GatherFacts asks the network.
const lookupTimeout = 5 * time.Second

// GatherFacts collects what Refuse judges. It reads proc, connects to the
// engine's socket once, and resolves the registry's name. What it cannot find
// out is listed in Facts.Unknown; an error means that processes could not be
// read at all.
func GatherFacts(ctx context.Context, cfg FactsConfig) (Facts, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	g := &gatherer{cfg: cfg, host: &Host{proc: cfg.ProcRoot}}
	if err := g.processes(); err != nil {
		return Facts{}, fmt.Errorf("find out what must not be frozen: %w", err)
	}
	g.self()
	g.engine(ctx)
	g.resolver()
	g.registry(ctx)
	g.mounts()
	g.namespaces()
	return g.facts, nil
}

type gatherer struct {
	cfg   FactsConfig
	host  *Host
	facts Facts
	// open files of processes in the containers
	sockets map[uint64][]int // socket inode to processes
	tuns    map[string][]int // interface to processes
	fuse    []fuseFile
}

// fuseFile is an open /dev/fuse.
type fuseFile struct {
	pid        int
	connection string // "" where the kernel does not tell
}

func (g *gatherer) unknown(format string, args ...any) {
	g.facts.Unknown = append(g.facts.Unknown, fmt.Sprintf(format, args...))
}

// processes assigns every process to its container, by cgroup, and notes
// Docker's proxies.
func (g *gatherer) processes() error {
	for _, c := range g.cfg.Containers {
		if err := c.validate(); err != nil {
			return err
		}
		g.facts.Containers = append(g.facts.Containers, ContainerFacts{Container: c, Published: g.cfg.Published[c.ID]})
	}
	dirs, err := os.ReadDir(g.cfg.ProcRoot)
	if err != nil {
		return err
	}
	g.sockets, g.tuns = map[uint64][]int{}, map[string][]int{}
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		i := g.containerOf(pid)
		if i < 0 {
			if b, err := g.host.read(d.Name() + "/cmdline"); err == nil {
				if f, ok := parseProxy(b); ok {
					g.facts.Forwards = append(g.facts.Forwards, f)
				}
			}
			continue
		}
		g.facts.Containers[i].Pids = append(g.facts.Containers[i].Pids, pid)
		g.files(pid)
	}
	return nil
}

// containerOf gives the index of the container that a process is in, or -1.
func (g *gatherer) containerOf(pid int) int {
	entries, err := g.host.processCgroups(strconv.Itoa(pid))
	return slices.IndexFunc(g.facts.Containers, func(c ContainerFacts) bool {
		if c.Pid == pid {
			return true // also where it shares its cgroup or the path hides the id
		}
		return err == nil && slices.ContainsFunc(entries, func(e cgroupEntry) bool { return c.within(e.path) != "" })
	})
}

// files notes the sockets, TUN devices and FUSE connections of a process.
func (g *gatherer) files(pid int) {
	dir := filepath.Join(g.cfg.ProcRoot, strconv.Itoa(pid), "fd")
	fds, err := os.ReadDir(dir)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			g.unknown("open files of process %d: %v", pid, err)
		}
		return
	}
	for _, fd := range fds {
		to, err := os.Readlink(filepath.Join(dir, fd.Name()))
		if err != nil {
			continue
		}
		info := fmt.Sprintf("%d/fdinfo/%s", pid, fd.Name())
		switch {
		case strings.HasPrefix(to, "socket:["):
			ino, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimPrefix(to, "socket:["), "]"), 10, 64)
			if err == nil {
				g.sockets[ino] = append(g.sockets[ino], pid)
			}
		case strings.HasSuffix(to, "/net/tun"):
			if b, err := g.host.read(info); err == nil {
				if name, ok := fdinfoField(b, "iff"); ok && name != "" {
					g.tuns[name] = append(g.tuns[name], pid)
				}
			}
		case to == "/dev/fuse":
			b, _ := g.host.read(info)
			connection, _ := fdinfoField(b, "fuse_connection")
			g.fuse = append(g.fuse, fuseFile{pid, connection})
		}
	}
}

// self finds this process, its ancestors, and the containers whose id its own
// cgroups and mounts carry.
func (g *gatherer) self() {
	to, err := os.Readlink(filepath.Join(g.cfg.ProcRoot, "self"))
	if err != nil {
		g.unknown("own process: %v", err)
		return
	}
	for pid := to; pid != "0" && pid != "" && len(g.facts.Self) < 64; pid = g.parent(pid) {
		if n, err := strconv.Atoi(pid); err == nil {
			g.facts.Self = append(g.facts.Self, n)
		}
	}
	var paths []string
	if entries, err := g.host.processCgroups("self"); err == nil {
		for _, e := range entries {
			paths = append(paths, e.path)
		}
	}
	if b, err := g.host.read("self/mountinfo"); err == nil {
		ms, err := parseMountinfo(b)
		if err != nil {
			g.unknown("own mounts: %v", err)
		}
		for _, m := range ms {
			// Engines mount .../containers/ID/resolv.conf and the like into
			// each container, over files of /etc.
			if strings.HasPrefix(m.point, "/etc/") {
				paths = append(paths, m.root)
			}
		}
	}
	for _, c := range g.facts.Containers {
		if slices.ContainsFunc(paths, func(p string) bool { return c.within(p) != "" }) {
			g.facts.SelfContainers = append(g.facts.SelfContainers, c.ID)
		}
	}
}

func (g *gatherer) parent(pid string) string {
	b, err := g.host.read(pid + "/status")
	if err != nil {
		return ""
	}
	p, _ := fdinfoField(b, "PPid")
	return p
}

// engine finds who serves the engine's endpoint.
func (g *gatherer) engine(ctx context.Context) {
	scheme, rest, _ := strings.Cut(g.cfg.Engine, "://")
	switch scheme {
	case "":
	case "unix":
		pid, err := peerOf(ctx, rest)
		if err != nil {
			g.unknown("who serves the engine's socket %s: %v", rest, err)
			return
		}
		if pid > 0 {
			g.facts.EngineServers = append(g.facts.EngineServers, pid)
		}
	case "tcp", "http", "https":
		host, _, _ := strings.Cut(rest, "/")
		g.need(ctx, WhatEngine, host)
	default:
		g.unknown("who serves the engine at %s", g.cfg.Engine)
	}
}

// peerOf gives the process that listens on a Unix socket; 0 if it is in a pid
// namespace that cannot be seen from here.
func peerOf(ctx context.Context, path string) (int, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if credErr != nil {
		return 0, credErr
	}
	return int(cred.Pid), nil
}

// need resolves host:port and notes each address.
func (g *gatherer) need(ctx context.Context, what What, hostPort string) []netip.Addr {
	host, port, err := net.SplitHostPort(hostPort)
	if err != nil {
		g.unknown("address %q: %v", hostPort, err)
		return nil
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		g.unknown("address %q: %v", hostPort, err)
		return nil
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		g.unknown("addresses of %s: %v", host, err)
		return nil
	}
	for i, a := range addrs {
		addrs[i] = a.Unmap()
		e := Endpoint{"tcp", netip.AddrPortFrom(addrs[i], uint16(n))}
		g.facts.Needs = append(g.facts.Needs, Need{Endpoint: e, What: what, For: host})
	}
	return addrs
}

// resolver notes the name servers.
func (g *gatherer) resolver() {
	files := g.cfg.ResolvConf
	if len(files) == 0 {
		files = []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"}
	}
	seen := map[netip.Addr]bool{}
	for i, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			if i == 0 || !errors.Is(err, fs.ErrNotExist) {
				g.unknown("name servers: %v", err)
			}
			continue
		}
		for _, a := range parseNameservers(b) {
			if seen[a] {
				continue
			}
			seen[a] = true
			for _, proto := range []string{"udp", "tcp"} {
				e := Endpoint{proto, netip.AddrPortFrom(a, 53)}
				g.facts.Needs = append(g.facts.Needs, Need{Endpoint: e, What: WhatResolver, For: "nameserver of " + f})
			}
		}
	}
}

// registry notes the registry's addresses and the first hops towards them.
func (g *gatherer) registry(ctx context.Context) {
	for _, hp := range g.cfg.Registry {
		for _, a := range g.need(ctx, WhatRegistry, hp) {
			if a.IsLoopback() {
				continue
			}
			r, err := lookupRoute(a)
			if err != nil {
				g.unknown("%v", err)
				continue
			}
			r.Servers = g.tuns[r.Interface]
			g.facts.Routes = append(g.facts.Routes, r)
		}
	}
}

// mounts finds walked mounts that a process of a container may serve, by FUSE
// or over the network.
func (g *gatherer) mounts() {
	b, err := g.host.read("self/mountinfo")
	if err != nil {
		g.unknown("mounts: %v", err)
		return
	}
	all, err := parseMountinfo(b)
	if err != nil {
		g.unknown("%v", err)
		return
	}
	for _, m := range walked(all, g.cfg.Trees) {
		switch base, _, _ := strings.Cut(m.fstype, "."); base {
		case "fuse", "fuseblk":
			g.facts.Mounts = append(g.facts.Mounts, ServedMount{Path: m.point, Type: m.fstype, Servers: g.fuseServers(m)})
		case "nfs", "nfs4":
			g.remote(m, "2049")
		case "cifs", "smb3":
			g.remote(m, "445")
		}
	}
}

// walked gives the mounts that a walk of the trees meets: the one that each
// tree lies on, and those below.
func walked(all []mount, trees []string) []mount {
	var out []mount
	for i, m := range all {
		for _, t := range trees {
			t = filepath.Clean(t)
			// The last of the longest mount points over the tree is the one
			// that shows.
			over := below(m.point, t) && !slices.ContainsFunc(all[i+1:], func(o mount) bool {
				return below(o.point, t) && len(o.point) >= len(m.point)
			}) && !slices.ContainsFunc(all[:i], func(o mount) bool {
				return below(o.point, t) && len(o.point) > len(m.point)
			})
			if over || below(t, m.point) {
				out = append(out, m)
				break
			}
		}
	}
	return out
}

// fuseServers are the container processes that hold the mount's connection, or
// any connection where the kernel does not tell which.
func (g *gatherer) fuseServers(m mount) []int {
	_, minor, _ := strings.Cut(m.dev, ":")
	var pids []int
	for _, f := range g.fuse {
		// A fuseblk mount goes by its block device, not by its connection.
		if f.connection == "" || f.connection == minor || m.fstype == "fuseblk" {
			pids = append(pids, f.pid)
		}
	}
	return pids
}

// remote notes the server of a network file system.
func (g *gatherer) remote(m mount, port string) {
	addr := ""
	for _, o := range m.options {
		if v, ok := strings.CutPrefix(o, "addr="); ok {
			addr = v
		}
		if v, ok := strings.CutPrefix(o, "port="); ok && v != "0" {
			port = v
		}
	}
	ap, err := addrPort(addr, port)
	if err != nil {
		g.unknown("server of the %s mount %s", m.fstype, m.point)
		return
	}
	e := Endpoint{"tcp", ap}
	g.facts.Needs = append(g.facts.Needs, Need{Endpoint: e, What: WhatMount, For: m.fstype + " mount " + m.point})
}

// namespaces reads the network namespaces of this process, of process 1 and of
// each container.
func (g *gatherer) namespaces() {
	byID := map[uint64]*Namespace{}
	var order []uint64
	visit := func(pid string) *Namespace {
		id, err := inode(filepath.Join(g.cfg.ProcRoot, pid, "ns/net"))
		if err != nil {
			g.unknown("network namespace of process %s: %v", pid, err)
			return nil
		}
		if byID[id] == nil {
			byID[id] = g.namespace(id, pid)
			order = append(order, id)
		}
		return byID[id]
	}
	if ns := visit("self"); ns != nil {
		ns.Own = true
	}
	if ns := visit("1"); ns != nil {
		ns.Host = true
	}
	for _, c := range g.facts.Containers {
		if c.Pid == 0 {
			continue
		}
		if ns := visit(strconv.Itoa(c.Pid)); ns != nil {
			ns.Containers = append(ns.Containers, c.ID)
		}
	}
	for _, id := range order {
		g.facts.Namespaces = append(g.facts.Namespaces, *byID[id])
	}
}

func (g *gatherer) namespace(id uint64, pid string) *Namespace {
	ns := &Namespace{ID: id}
	if b, err := g.host.read(pid + "/net/fib_trie"); err == nil {
		ns.Addrs = parseLocalAddrs4(b)
	}
	if b, err := g.host.read(pid + "/net/if_inet6"); err == nil {
		ns.Addrs = append(ns.Addrs, parseLocalAddrs6(b)...)
	}
	for _, file := range []string{"tcp", "tcp6", "udp", "udp6"} {
		b, err := g.host.read(pid + "/net/" + file)
		if err != nil {
			continue // a kernel without IPv6
		}
		sockets, err := parseSockets(b, strings.TrimSuffix(file, "6"))
		if err != nil {
			g.unknown("sockets of process %s: %v", pid, err)
			continue
		}
		for _, s := range sockets {
			if pids := g.sockets[s.inode]; len(pids) > 0 {
				ns.Listeners = append(ns.Listeners, Listener{s.Endpoint, pids})
			}
		}
	}
	return ns
}
