// Package lab is Lifeboat's laboratory: several sites on one machine, each a host with its own network,
// /etc, /run, disk and container engine, joined by an emulated WAN that can be slow, lossy or cut, and
// hosts that can crash or burn. Tests, the demo and the benchmarks run in it.
//
// Main types: [Lab], made by [New], and [Site]. Programs and test binaries that use the package must
// call [Child] first thing in main or TestMain, because a laboratory is held by a child process made
// from the same executable. It needs root and what lab/deps.sh installs. Package lab/images makes
// container images and lab/systems the systems that run in them; lab/treecmp compares file trees.
//
// What the package does not do: it is no security boundary (sites share the machine's processes table
// and file systems), and it does not emulate hosts with different kernels.
package lab

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/lab/wan"
	"lifeboat/lab/warden"
)

// DefaultRoot is the directory below which every laboratory has its own.
const DefaultRoot = "/var/tmp/lifeboat-lab"

// Engine says which container engine a site runs.
type Engine struct {
	// Suite is the Debian suite from which the engine comes; empty means the machine's own docker.io package.
	Suite string
	// ContainerdStore uses containerd's image store and snapshotter instead of the overlay2 graph driver.
	ContainerdStore bool
	// None means no engine at all.
	None bool
}

// Engines that the laboratory is tried with.
var (
	EngineDocker20     = Engine{}                                       // Debian 12's: Docker 20.10, API 1.41, overlay2
	EngineDocker28     = Engine{Suite: "forky"}                         // Docker 28, overlay2
	EngineContainerd   = Engine{Suite: "forky", ContainerdStore: true}  // Docker 28, containerd image store
	EngineDocker26     = Engine{Suite: "trixie"}                        // Docker 26, overlay2
	EngineContainerd26 = Engine{Suite: "trixie", ContainerdStore: true} // Docker 26, containerd image store
	EngineNone         = Engine{None: true}                             // a host without an engine
)

// Options of a laboratory; the zero value is two sites, main and standin, with Debian's engine and an ideal WAN.
type Options struct {
	// Name is unique among the laboratories that exist; empty means a random one.
	Name string
	// Sites default to "main" and "standin" with EngineDocker20.
	Sites []SiteOptions
	WAN   wan.Params
	// Linger lets the laboratory outlive this process, to be found again by Attach. Otherwise it ends
	// with this process, however that ends.
	Linger bool
	// Root is where the laboratory keeps its files; empty means DefaultRoot. Its path must be short and
	// its file system one that overlay can be laid on.
	Root string
	// Log gets what the laboratory does; nil means nothing.
	Log *slog.Logger
}

// SiteOptions describe one site.
type SiteOptions struct {
	Name   string
	Engine Engine
	// Daemon are settings for the engine's daemon.json.
	Daemon map[string]any
	// Hosts are more lines for /etc/hosts, like "10.99.0.2 registry.test".
	Hosts []string
	// HostNetwork gives the site the machine's own network: no WAN, no bridge, no published ports.
	// Building images needs it to fetch packages.
	HostNetwork bool
	// DataRoot, when set, is a directory for the engine's data that is not the site's and survives it.
	DataRoot string
	// Off leaves the site switched off; Site.Start switches it on.
	Off bool
}

// Lab is a laboratory. It is safe for concurrent use.
type Lab struct {
	conf   warden.Config
	client *warden.Client
	log    *slog.Logger
	sites  []*Site

	lifeline io.Closer     // its closing ends the warden; nil for one that lingers
	exited   chan struct{} // closed when the warden process was waited for; nil for one that was attached
}

// New sweeps what dead laboratories left behind, makes a new one and starts its sites. On error nothing
// is left. The first use of an engine of another suite fetches it, which takes a minute.
func New(ctx context.Context, opts Options) (*Lab, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("make laboratory: must be root, for namespaces, mounts and control groups; nothing was changed")
	}
	if os.Getenv(childEnv) != "" {
		return nil, errors.New("make laboratory: this process is itself the child of one; call lab.Child first in main or TestMain")
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Root == "" {
		opts.Root = DefaultRoot
	}
	conf, err := configure(ctx, opts)
	if err != nil {
		return nil, fmt.Errorf("make laboratory: %w", err)
	}
	lock, err := claim(ctx, opts.Root, conf, opts.Log)
	if err != nil {
		return nil, fmt.Errorf("make laboratory: %w", err)
	}
	l, err := spawn(conf, lock, opts.Log)
	if err != nil {
		// The lock is free again; what there is of the laboratory is swept as a dead one.
		return nil, errors.Join(fmt.Errorf("make laboratory: %w", err), Sweep(context.WithoutCancel(ctx), opts.Root, opts.Log))
	}
	if err := l.startAll(ctx, opts); err != nil {
		return nil, errors.Join(fmt.Errorf("make laboratory: %w", err), l.Close())
	}
	return l, nil
}

// Attach finds a laboratory that was made with Linger by another process.
func Attach(ctx context.Context, root, name string) (*Lab, error) {
	if root == "" {
		root = DefaultRoot
	}
	data, err := os.ReadFile(filepath.Join(root, name, warden.ConfigFile))
	if err != nil {
		return nil, fmt.Errorf("attach to laboratory %q (is it up?): %w", name, err)
	}
	var conf warden.Config
	if err := json.Unmarshal(data, &conf); err != nil {
		return nil, fmt.Errorf("attach to laboratory %q: %w", name, err)
	}
	l := newLab(conf, slog.New(slog.DiscardHandler))
	if _, err := l.client.Status(ctx); err != nil {
		return nil, fmt.Errorf("attach to laboratory %q: %w", name, err)
	}
	return l, nil
}

// Name is the unique name of the laboratory.
func (l *Lab) Name() string { return l.conf.ID }

// Dir is the laboratory's own directory, for files that shall go with it.
func (l *Lab) Dir() string { return l.conf.Dir }

// Site returns the site of that name, or nil.
func (l *Lab) Site(name string) *Site {
	for _, s := range l.sites {
		if s.Name == name {
			return s
		}
	}
	return nil
}

// Sites returns all sites in the order of Options.Sites.
func (l *Lab) Sites() []*Site { return l.sites }

// Main is the first site, "main" unless Options named it otherwise.
func (l *Lab) Main() *Site { return l.sites[0] }

// Standin is the second site, "standin" unless Options named it otherwise; nil when there is one only.
func (l *Lab) Standin() *Site {
	if len(l.sites) < 2 {
		return nil
	}
	return l.sites[1]
}

// SetWAN changes delay, jitter, loss and rate for what is sent from now on.
func (l *Lab) SetWAN(ctx context.Context, p wan.Params) error { return l.client.SetWAN(ctx, p) }

// Cut makes all packets between sites vanish, or all from and to the named sites: connections hang, as
// when an excavator cuts the line. Loopback and the engine's socket of a site go on.
func (l *Lab) Cut(ctx context.Context, sites ...string) error { return l.client.Cut(ctx, sites...) }

// Heal ends the cuts of the named sites, without names all of them.
func (l *Lab) Heal(ctx context.Context, sites ...string) error { return l.client.Heal(ctx, sites...) }

// Status tells which sites are up and what they sent.
func (l *Lab) Status(ctx context.Context) (warden.Status, error) { return l.client.Status(ctx) }

// Close takes the laboratory away: when it returns nil there is no process, namespace, mount, control
// group, device or file of it left. It may take some seconds and is not cut short; it may be called again.
func (l *Lab) Close() error {
	if _, err := os.Stat(l.conf.Dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	lock, err := os.Open(filepath.Join(l.conf.Dir, warden.LockFile))
	if err != nil {
		return fmt.Errorf("close laboratory %s: %w", l.conf.ID, err)
	}
	defer lock.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := l.client.Close(ctx); err != nil {
		return fmt.Errorf("close laboratory %s: %w; sweep it with: lab sweep", l.conf.ID, err)
	}
	if l.lifeline != nil {
		l.lifeline.Close()
	}
	if l.exited != nil {
		<-l.exited
		return nil
	}
	// The lock is free when the warden process has ended.
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("close laboratory %s: wait for its warden: %w", l.conf.ID, err)
	}
	return nil
}

func newLab(conf warden.Config, log *slog.Logger) *Lab {
	l := &Lab{conf: conf, client: warden.NewClient(conf), log: log}
	for _, s := range conf.Sites {
		l.sites = append(l.sites, newSite(conf, s, l.client))
	}
	return l
}

// configure turns options into the warden's configuration and fetches engines.
func configure(ctx context.Context, opts Options) (warden.Config, error) {
	name := opts.Name
	if name == "" {
		name = "l" + strings.ToLower(base32.StdEncoding.EncodeToString(random(5)))[:7]
	}
	conf := warden.Config{
		ID: name, Dir: filepath.Join(opts.Root, name), Cgroup: groupPrefix(opts.Root) + name,
		WAN: opts.WAN, Linger: opts.Linger,
	}
	sites := opts.Sites
	if len(sites) == 0 {
		sites = []SiteOptions{{Name: "main"}, {Name: "standin"}}
	}
	if len(sites) > 200 {
		return conf, errors.New("more than 200 sites")
	}
	for i, s := range sites {
		engine, err := s.Engine.resolve(ctx, opts.Log)
		if err != nil {
			return conf, err
		}
		engine.DataRoot = s.DataRoot
		engine.Daemon = merge(engine.Daemon, s.Daemon)
		number := byte(i + 1)
		conf.Sites = append(conf.Sites, warden.SiteConfig{
			Name: s.Name, Engine: engine, Hosts: s.Hosts, HostNetwork: s.HostNetwork,
			// Every laboratory has these addresses to itself, for its namespaces lead nowhere else.
			IP:     netip.AddrFrom4([4]byte{10, 99, 0, number}),
			Bridge: netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 31, number, 1}), 24),
		})
	}
	return conf, conf.Validate()
}

func merge(a, b map[string]any) map[string]any {
	m := map[string]any{}
	for _, from := range []map[string]any{a, b} {
		for k, v := range from {
			m[k] = v
		}
	}
	return m
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

// groupPrefix begins the names of the control groups of all laboratories below root.
func groupPrefix(root string) string {
	return fmt.Sprintf("lifeboat-lab-%08x.", crc32.ChecksumIEEE([]byte(filepath.Clean(root))))
}

// spawn starts the warden, which inherits the lock. The lock is given up in any case.
func spawn(conf warden.Config, lock *os.File, log *slog.Logger) (*Lab, error) {
	defer lock.Close()
	logFile, err := os.OpenFile(filepath.Join(conf.Dir, warden.LogFile), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start warden: %w", err)
	}
	defer logFile.Close()
	readyRead, readyWrite, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start warden: %w", err)
	}
	defer readyRead.Close()
	lifeRead, lifeWrite, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start warden: %w", err), readyWrite.Close())
	}
	// A test binary that does not call Child runs no test with this argument instead of all of them.
	cmd := exec.Command("/proc/self/exe", "-test.run=^$")
	cmd.Env = append(os.Environ(), childEnv+"=warden:"+conf.Dir)
	cmd.Dir = "/"
	cmd.Stdin = lifeRead
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.ExtraFiles = []*os.File{readyWrite, lock} // 3 and 4
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	readyWrite.Close()
	lifeRead.Close()
	if err != nil {
		lifeWrite.Close()
		return nil, fmt.Errorf("start warden: %w", err)
	}
	l := newLab(conf, log)
	l.lifeline, l.exited = lifeWrite, make(chan struct{})
	go func() {
		// How it ended is in its log, and Close has its answer.
		_ = cmd.Wait()
		close(l.exited)
	}()
	word, err := io.ReadAll(io.LimitReader(readyRead, 16))
	if err != nil || string(word) != "ready\n" {
		lifeWrite.Close()
		<-l.exited
		text, _ := os.ReadFile(filepath.Join(conf.Dir, warden.LogFile))
		return nil, fmt.Errorf("start warden: it ended before it was ready (does main or TestMain call lab.Child first?): %s",
			strings.TrimSpace(string(text)))
	}
	return l, nil
}

func (l *Lab) startAll(ctx context.Context, opts Options) error {
	errs := make(chan error)
	for i, s := range l.sites {
		go func() {
			if len(opts.Sites) > 0 && opts.Sites[i].Off {
				errs <- nil
				return
			}
			errs <- s.Start(ctx)
		}()
	}
	var all error
	for range l.sites {
		all = errors.Join(all, <-errs)
	}
	return all
}
