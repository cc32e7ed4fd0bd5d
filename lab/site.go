package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"lifeboat/lab/warden"
)

// ErrDown says that a site is switched off: it crashed or was destroyed and was not started again.
var ErrDown = errors.New("site is down")

// Site is one host of a laboratory. It is safe for concurrent use; switching it on and off is serialised.
type Site struct {
	Name string
	IP   netip.Addr // on the WAN; also reachable as NAME and NAME.test from every site
	// Socket is the path of the engine's socket, reachable from inside and outside of the site.
	Socket string
	// StateDir is a directory on the site's disk for Lifeboat's own state; like Disk it is lost with the host.
	StateDir string
	// Disk is the site's disk: it survives Crash, not Destroy. Systems keep their files in srv below it.
	Disk string
	// NetNS leads to the network namespace while the site is up; it is another one after each start.
	NetNS string

	conf   warden.Config
	client *warden.Client
}

func newSite(conf warden.Config, s warden.SiteConfig, client *warden.Client) *Site {
	return &Site{
		Name: s.Name, IP: s.IP,
		Socket:   conf.EngineSocket(s.Name),
		StateDir: filepath.Join(conf.DiskDir(s.Name), "lifeboat"),
		Disk:     conf.DiskDir(s.Name),
		NetNS:    conf.NamespaceFile(s.Name, "net"),
		conf:     conf, client: client,
	}
}

// DockerHost is Socket as the environment variable DOCKER_HOST takes it.
func (s *Site) DockerHost() string { return "unix://" + s.Socket }

// Start switches the site on if it is off and starts its engine on whatever the disk holds. It returns
// when the engine answers.
func (s *Site) Start(ctx context.Context) error { return s.client.Start(ctx, s.Name) }

// Boot switches the site on without starting its engine.
func (s *Site) Boot(ctx context.Context) error { return s.client.Boot(ctx, s.Name) }

// StopEngine stops the engine in good order, and so its containers; the host stays on.
func (s *Site) StopEngine(ctx context.Context) error { return s.client.StopEngine(ctx, s.Name) }

// Crash is a loss of power: engine, containers and everything started by Command die by SIGKILL at
// once, the site's network is gone, the disk stays. (The page cache stays too: what an application
// wrote without fsync survives, other than on a real host.)
func (s *Site) Crash(ctx context.Context) error { return s.client.Crash(ctx, s.Name) }

// Destroy is the loss of the host: Crash, and all that was on the disk is gone: engine data, systems,
// StateDir, changes to /etc, home directory. Start brings up an empty host of the same name.
func (s *Site) Destroy(ctx context.Context) error { return s.client.Destroy(ctx, s.Name) }

// Reboot is Crash and Start.
func (s *Site) Reboot(ctx context.Context) error {
	if err := s.Crash(ctx); err != nil {
		return err
	}
	return s.Start(ctx)
}

// enterScript joins the site's control group and namespaces and keeps the working directory. It execs
// all the way, so that the command's process is the one that was started.
const enterScript = `ns=$1 && shift &&
echo 0 > "$ns/cgroup/cgroup.procs" &&
exec nsenter --net="$ns/net" --mount="$ns/mnt" --uts="$ns/uts" -- \
  /bin/sh -c 'cd "$1" && shift && exec "$@"' sh "$PWD" "$@"`

// Command prepares a command that runs on the site, as root: in its network, with its /etc, /run, host
// name and home directory, DOCKER_HOST set. Files of the machine are visible under the same paths. Set
// Dir, Stdin and so on as usual; add to Env, do not replace it. A crash of the site kills it. When the
// site is down, Start and Run of the command return ErrDown.
func (s *Site) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	ns := filepath.Dir(s.NetNS)
	cmd := exec.CommandContext(ctx, "/bin/sh", append([]string{"-c", enterScript, "sh", ns, name}, args...)...)
	cmd.Env = s.environ()
	if _, err := os.Stat(filepath.Join(ns, "cgroup")); err != nil && cmd.Err == nil {
		cmd.Err = fmt.Errorf("run %s on site %s: %w", name, s.Name, ErrDown)
	}
	return cmd
}

// environ is this process's environment without what leads to another engine, identity or registry.
func (s *Site) environ() []string {
	drop := []string{"HOME=", "DOCKER_", "COMPOSE_", "LIFEBOAT_", "XDG_", "AWS_", childEnv + "="}
	keep := []string{"LIFEBOAT_LAB_CACHE="}
	var env []string
next:
	for _, e := range os.Environ() {
		for _, k := range keep {
			if strings.HasPrefix(e, k) {
				env = append(env, e)
				continue next
			}
		}
		for _, d := range drop {
			if strings.HasPrefix(e, d) {
				continue next
			}
		}
		env = append(env, e)
	}
	return append(env, "HOME="+filepath.Join(s.Disk, "home"), "DOCKER_HOST="+s.DockerHost())
}

// Run runs a command on the site and returns what it printed to standard output. An error has what it
// printed to standard error.
func (s *Site) Run(ctx context.Context, name string, args ...string) ([]byte, error) {
	return output(s.Command(ctx, name, args...), s.Name)
}

// Docker runs the docker client on the site and returns its standard output.
func (s *Site) Docker(ctx context.Context, args ...string) ([]byte, error) {
	return s.Run(ctx, dockerClient(), args...)
}

func output(cmd *exec.Cmd, site string) ([]byte, error) {
	var out, errOut bytes.Buffer
	if cmd.Stdout == nil {
		cmd.Stdout = &out
	}
	cmd.Stderr = &errOut
	if err := cmd.Run(); err != nil {
		shown := cmd.Args[min(5, len(cmd.Args)-1):]
		return out.Bytes(), fmt.Errorf("site %s: run %s: %w: %s", site, strings.Join(shown, " "), err, strings.TrimSpace(errOut.String()))
	}
	return out.Bytes(), nil
}

// dockerClient prefers Debian's, which every engine of the laboratory understands.
func dockerClient() string {
	const debian = "/usr/bin/docker"
	if _, err := os.Stat(debian); err == nil {
		return debian
	}
	return "docker"
}

// Dial connects to an address literal from inside the site's network.
func (s *Site) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	var conn net.Conn
	err := s.inNetwork(func() (err error) {
		// For an address literal the dialer makes the socket on the calling thread.
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens inside the site's network, for servers that run in this process. A crash of the site
// does not end the listener, but nobody can reach it any more.
func (s *Site) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	var l net.Listener
	err := s.inNetwork(func() (err error) {
		l, err = new(net.ListenConfig).Listen(ctx, network, address)
		return err
	})
	return l, err
}

// HTTPClient makes a client that connects from inside the site's network. Host names are those of the
// laboratory: sites by NAME or NAME.test, and "localhost".
func (s *Site) HTTPClient() *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		return s.Dial(ctx, network, net.JoinHostPort(s.lookup(host), port))
	}}}
}

func (s *Site) lookup(host string) string {
	if host == "localhost" {
		return "127.0.0.1"
	}
	for _, c := range s.conf.Sites {
		if host == c.Name || host == c.Name+".test" {
			return c.IP.String()
		}
	}
	return host
}

// inNetwork runs f on a thread in the site's network namespace. Sockets stay in the namespace in which they were made.
func (s *Site) inNetwork(f func() error) error {
	ns, err := os.Open(s.NetNS)
	if err != nil {
		return fmt.Errorf("enter network of site %s: %w", s.Name, ErrDown)
	}
	defer ns.Close()
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		own, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			result <- fmt.Errorf("remember own network: %w", err)
			return
		}
		defer own.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			result <- fmt.Errorf("enter network of site %s: %w", s.Name, err)
			return
		}
		err = f()
		if back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); back != nil {
			// The thread is spoilt: it ends with this goroutine, for it is not unlocked.
			result <- errors.Join(err, fmt.Errorf("leave network of site %s: %w", s.Name, back))
			return
		}
		runtime.UnlockOSThread()
		result <- err
	}()
	return <-result
}
