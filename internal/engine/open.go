package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"syscall"

	"github.com/moby/moby/client"
	"github.com/moby/moby/client/pkg/versions"

	"lifeboat/internal/dr"
)

// DefaultHost is the engine's address when none was given.
const DefaultHost = client.DefaultDockerHost

// Options say which engine to open and how.
type Options struct {
	// Host is the engine's address in the form of DOCKER_HOST: unix:///path,
	// tcp://host:port, ssh://[user@]host[:port][/socket]. Empty is DefaultHost.
	// TLS for tcp comes from DOCKER_TLS_VERIFY and DOCKER_CERT_PATH.
	Host string
	// SSH is the command that stands for ssh; empty is {"ssh"}.
	SSH []string
	// HostRoot is a path under which the engine's root directory is mounted in
	// this process's own mount namespace, as in the helper container. It is used
	// where the engine's /proc/PID/root cannot be entered. Usually empty.
	HostRoot string
	// Log receives what is worth knowing and no error; nil discards.
	Log *slog.Logger
}

// Engine is a connection to one container engine. Its methods can be used
// concurrently.
type Engine struct {
	cli      *client.Client
	raw      *http.Client
	host     string
	socket   string // path of the unix socket; empty with tcp and ssh
	hostRoot string
	api      string // the newest API version that the engine speaks
	log      *slog.Logger
}

// Open connects, agrees on an API version and returns the engine. An error
// names the host and what to do about it.
func Open(ctx context.Context, o Options) (*Engine, error) {
	host := o.Host
	if host == "" {
		host = DefaultHost
	}
	u, err := url.Parse(host)
	if err != nil || u.Scheme == "" {
		return nil, fmt.Errorf("container engine host %q: want unix:///path, tcp://host:port or ssh://user@host: %w", host, dr.ErrUsage)
	}
	e := &Engine{host: host, hostRoot: o.HostRoot, log: o.Log}
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	opts := []client.Opt{client.WithUserAgent("lifeboat")}
	switch u.Scheme {
	case "unix":
		e.socket = u.Path
		opts = append(opts, client.WithHost(host))
	case "tcp", "http", "https":
		opts = append(opts, client.WithTLSClientConfigFromEnv(), client.WithHost(host))
	case "ssh":
		d, err := newSSHDialer(u, o.SSH)
		if err != nil {
			return nil, err
		}
		opts = append(opts, client.WithHost("http://"+client.DummyHost), client.WithDialContext(d.dial))
	default:
		return nil, fmt.Errorf("container engine host %q: scheme %q is not one of unix, tcp, ssh: %w", host, u.Scheme, dr.ErrUsage)
	}
	if e.cli, err = client.New(opts...); err != nil {
		return nil, fmt.Errorf("container engine host %q: %w: %w", host, err, dr.ErrUsage)
	}
	ping, err := e.cli.Ping(ctx, client.PingOptions{NegotiateAPIVersion: true})
	if err != nil {
		_ = e.cli.Close()
		return nil, unreachable(host, err)
	}
	e.api = cmp.Or(ping.APIVersion, e.cli.ClientVersion())
	dial := e.cli.Dialer()
	e.raw = &http.Client{Transport: &http.Transport{
		DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		MaxIdleConnsPerHost: 4,
	}}
	return e, nil
}

// Close gives back the connections. Running calls fail.
func (e *Engine) Close() error {
	e.raw.CloseIdleConnections()
	return e.cli.Close()
}

// Host is the address that the engine was opened with.
func (e *Engine) Host() string { return e.host }

// Socket is the path of the engine's unix socket as this process reaches it;
// empty where the engine is reached through tcp or ssh.
func (e *Engine) Socket() string { return e.socket }

// unreachable turns a failure of the first call into advice.
func unreachable(host string, err error) error {
	var advice string
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("container engine at %s gave no answer: %w", host, err)
	case errors.Is(err, fs.ErrNotExist), strings.Contains(err.Error(), "no such file"):
		advice = "there is no such socket; start the engine, or name another one with DOCKER_HOST"
	case errors.Is(err, fs.ErrPermission), strings.Contains(err.Error(), "permission denied"):
		advice = "permission denied; run as root or as a member of the socket's group (usually docker)"
	case errors.Is(err, syscall.ECONNREFUSED), strings.Contains(err.Error(), "Is the docker daemon running"):
		advice = "nothing answers there; start the engine, or name another one with DOCKER_HOST"
	case strings.Contains(err.Error(), "is not supported by this client"):
		advice = "the engine is too old; Docker 20.10 or newer is needed"
	default:
		advice = "check DOCKER_HOST and that the engine runs"
	}
	return fmt.Errorf("container engine at %s cannot be reached: %s: %w", host, advice, err)
}

// before reports whether the API version agreed upon is older than v.
func (e *Engine) before(v string) bool { return versions.LessThan(e.cli.ClientVersion(), v) }

// Info describes the engine. Who needs HostFS as well has it there.
func (e *Engine) Info(ctx context.Context) (dr.EngineInfo, error) {
	f, err := e.facts(ctx)
	return f.EngineInfo, err
}

// facts is what the engine says about itself, with what only this package needs.
type facts struct {
	dr.EngineInfo
	rootDir           string // data directory, in the engine's mount namespace
	cgroupV2          bool
	rootless          bool
	containerdAddress string // empty before API 1.46
	containerdNS      string
}

// architectures are Go's names for what kernels call themselves.
var architectures = map[string]string{
	"x86_64": "amd64", "aarch64": "arm64", "armv6l": "arm", "armv7l": "arm", "armv8l": "arm",
	"i386": "386", "i486": "386", "i586": "386", "i686": "386",
}

// facts asks once: a Docker engine starts several programs to answer.
func (e *Engine) facts(ctx context.Context) (facts, error) {
	res, err := e.cli.Info(ctx, client.InfoOptions{})
	if err != nil {
		return facts{}, failed("ask the engine for its description", err)
	}
	in := res.Info
	arch := in.Architecture // Podman has Go's name, and so have the other architectures
	if a, ok := architectures[arch]; ok {
		arch = a
	}
	f := facts{
		EngineInfo: dr.EngineInfo{
			ID: in.ID, Name: in.Name, Version: in.ServerVersion, API: e.api,
			StorageDriver: in.Driver, OS: in.OSType, Arch: arch, Kernel: in.KernelVersion,
		},
		rootDir:  in.DockerRootDir,
		cgroupV2: in.CgroupVersion == "2",
		rootless: slices.ContainsFunc(in.SecurityOptions, func(s string) bool { return strings.Contains(s, "name=rootless") }),
	}
	for _, kv := range in.DriverStatus {
		if kv[0] == "driver-type" && strings.HasPrefix(kv[1], "io.containerd.snapshotter") {
			f.ContainerdStore = true
		}
	}
	if in.Containerd != nil {
		f.containerdAddress = in.Containerd.Address
		f.containerdNS = in.Containerd.Namespaces.Containers
	}
	return f, nil
}
