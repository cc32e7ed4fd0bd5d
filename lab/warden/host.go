package warden

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"lifeboat/lab/cgroup"
	"lifeboat/lab/wan"
)

// host is one site: a disk, and while it is switched on a thread in its namespaces and perhaps an
// engine. Its methods are serialised by mu, as one hand works the switches of a real host.
type host struct {
	lab   Config
	conf  SiteConfig
	log   *slog.Logger
	procs *processes
	group cgroup.Tree
	relay *wan.Relay

	mu     sync.Mutex
	thread *thread // nil while switched off
	spaces []*os.File
	engine *engine // nil while there is none
}

// diskParts are the directories of an empty disk. etc is what the host changed in its /etc.
var diskParts = []string{"docker", "etc/upper", "etc/work", "home", "lifeboat", "srv"}

func (h *host) dir(parts ...string) string {
	return filepath.Join(append([]string{h.lab.SiteDir(h.conf.Name)}, parts...)...)
}

// formatDisk makes what is missing of an empty disk.
func (h *host) formatDisk() error {
	for _, d := range diskParts {
		if err := os.MkdirAll(h.dir("disk", d), 0o755); err != nil {
			return fmt.Errorf("format disk of %s: %w", h.conf.Name, err)
		}
	}
	return os.Chmod(h.dir("disk", "home"), 0o700)
}

// boot switches the host on: fresh namespaces, /run empty, /etc its own, a link to the WAN.
func (h *host) boot(ctx context.Context) (err error) {
	if h.thread != nil {
		return nil
	}
	if err := h.formatDisk(); err != nil {
		return err
	}
	if err := os.RemoveAll(h.dir("run")); err != nil {
		return fmt.Errorf("empty run directory of %s: %w", h.conf.Name, err)
	}
	for _, d := range []string{"run", "ns"} {
		if err := os.MkdirAll(h.dir(d), 0o755); err != nil {
			return fmt.Errorf("boot %s: %w", h.conf.Name, err)
		}
	}
	t := newThread()
	h.thread = t
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("boot %s: %w", h.conf.Name, err), h.powerOff(context.WithoutCancel(ctx)))
		}
	}()
	if err := t.do(func() error { return h.enterNamespaces(ctx) }); err != nil {
		return err
	}
	group, err := h.group.Make(filepath.Join(h.conf.Name, "host"))
	if err != nil {
		return err
	}
	return replaceLink(group, h.lab.HostGroup(h.conf.Name))
}

// enterNamespaces runs on the host's thread.
func (h *host) enterNamespaces(ctx context.Context) error {
	flags := unix.CLONE_NEWNS | unix.CLONE_NEWUTS
	if !h.conf.HostNetwork {
		flags |= unix.CLONE_NEWNET
	}
	if err := unix.Unshare(flags); err != nil {
		return fmt.Errorf("make namespaces: %w", err)
	}
	// Mounts of the machine come in, none goes out.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("detach mounts from the machine's: %w", err)
	}
	if err := unix.Sethostname([]byte(h.conf.Name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := h.mountEtc(); err != nil {
		return err
	}
	if !h.conf.HostNetwork {
		if err := mountSysfs(); err != nil {
			return err
		}
	}
	// The machine's containerd, systemd, lock files and sockets are not this host's.
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	if err := os.MkdirAll("/run/lock", 0o1777); err != nil {
		return fmt.Errorf("fill /run: %w", err)
	}
	if !h.conf.HostNetwork {
		if err := h.connect(ctx); err != nil {
			return err
		}
	}
	for _, kind := range []string{"net", "mnt", "uts"} {
		f, err := os.Open("/proc/thread-self/ns/" + kind)
		if err != nil {
			return fmt.Errorf("hold namespace: %w", err)
		}
		h.spaces = append(h.spaces, f)
		link := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())
		if err := replaceLink(link, h.lab.NamespaceFile(h.conf.Name, kind)); err != nil {
			return err
		}
	}
	return nil
}

// mountEtc lays the host's own files over the machine's /etc.
func (h *host) mountEtc() error {
	upper := h.dir("disk", "etc", "upper")
	resolv := "nameserver " + h.conf.IP.String() + "\noptions attempts:1 timeout:1\n"
	if h.conf.HostNetwork {
		data, err := os.ReadFile("/etc/resolv.conf")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("read the machine's resolver: %w", err)
		}
		resolv = string(data)
	}
	files := map[string]string{"resolv.conf": resolv, "hostname": h.conf.Name + "\n", "hosts": h.hosts()}
	for name, content := range files {
		path := filepath.Join(upper, name)
		// A link of the machine's must not be followed out of the disk: the name is made anew.
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("write /etc: %w", err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return fmt.Errorf("write /etc: %w", err)
		}
	}
	options := fmt.Sprintf("lowerdir=/etc,upperdir=%s,workdir=%s", upper, h.dir("disk", "etc", "work"))
	if err := unix.Mount("overlay", "/etc", "overlay", 0, options); err != nil {
		return fmt.Errorf("mount /etc (overlay on the file system of %s): %w", h.lab.Dir, err)
	}
	if err := os.MkdirAll("/etc/docker", 0o755); err != nil {
		return fmt.Errorf("fill /etc: %w", err)
	}
	return nil
}

func (h *host) hosts() string {
	var b strings.Builder
	b.WriteString("127.0.0.1 localhost\n")
	for _, s := range h.lab.Sites {
		if !s.HostNetwork {
			fmt.Fprintf(&b, "%s %s %s.test\n", s.IP, s.Name, s.Name)
		}
	}
	for _, line := range h.conf.Hosts {
		b.WriteString(line + "\n")
	}
	return b.String()
}

// mountSysfs shows the devices of the new network namespace and keeps what was mounted below /sys.
func mountSysfs() error {
	const old = "/run" // about to be covered anyway
	below, err := mountsBelow("/sys")
	if err != nil {
		return err
	}
	if err := unix.Mount("/sys", old, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("keep /sys: %w", err)
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	for _, m := range below {
		if err := unix.Mount(old+strings.TrimPrefix(m, "/sys"), m, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("mount %s in /sys: %w", m, err)
		}
	}
	if err := unix.Unmount(old, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let go of the old /sys: %w", err)
	}
	return nil
}

// mountsBelow lists mount points directly below dir, not those below another one of the list.
func mountsBelow(dir string) ([]string, error) {
	data, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	var found []string
	for line := range bytes.Lines(data) {
		fields := strings.Fields(string(line))
		if len(fields) < 5 || !strings.HasPrefix(fields[4], dir+"/") {
			continue
		}
		covered := false
		for _, f := range found {
			covered = covered || fields[4] == f || strings.HasPrefix(fields[4], f+"/")
		}
		if !covered {
			found = append(found, fields[4])
		}
	}
	return found, nil
}

// connect plugs the host into the WAN; it runs on the host's thread.
func (h *host) connect(ctx context.Context) error {
	dev, err := wan.OpenTUN("wan0")
	if err != nil {
		return err
	}
	script := fmt.Sprintf("link set lo up\naddr add %s/24 dev wan0\nlink set wan0 mtu 1500 txqueuelen 1000 up\n", h.conf.IP)
	if err := h.procs.run(ctx, script, "ip", "-batch", "-"); err != nil {
		dev.Close()
		return fmt.Errorf("address WAN device: %w", err)
	}
	h.relay.Attach(h.conf.IP, dev)
	return nil
}

// powerOff is the loss of power: every process of the host is killed, its namespaces and with them all
// mounts, devices and packet filter rules are gone. The disk stays.
func (h *host) powerOff(ctx context.Context) error {
	if h.thread == nil {
		return nil
	}
	// First nobody can enter any more.
	if err := os.RemoveAll(h.dir("ns")); err != nil {
		return fmt.Errorf("switch %s off: %w", h.conf.Name, err)
	}
	if err := h.group.Kill(ctx, h.conf.Name); err != nil {
		return fmt.Errorf("switch %s off: %w", h.conf.Name, err)
	}
	if h.engine != nil {
		<-h.engine.ended
		h.engine = nil
	}
	h.relay.Detach(h.conf.IP)
	for _, f := range h.spaces {
		f.Close()
	}
	h.spaces = nil
	h.thread.stop()
	h.thread = nil
	if err := h.group.Remove(ctx, h.conf.Name); err != nil {
		return fmt.Errorf("switch %s off: %w", h.conf.Name, err)
	}
	if err := os.RemoveAll(h.dir("run")); err != nil {
		return fmt.Errorf("switch %s off: %w", h.conf.Name, err)
	}
	return nil
}

// destroy switches the host off and wipes its disk.
func (h *host) destroy(ctx context.Context) error {
	if err := h.powerOff(ctx); err != nil {
		return err
	}
	if err := os.RemoveAll(h.dir("disk")); err != nil {
		return fmt.Errorf("wipe disk of %s: %w", h.conf.Name, err)
	}
	return h.formatDisk()
}

// replaceLink makes the symbolic link at path point to target, whatever was there.
func replaceLink(target, path string) error {
	next := path + ".new"
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("link %s: %w", path, err)
	}
	if err := os.Symlink(target, next); err != nil {
		return fmt.Errorf("link %s: %w", path, err)
	}
	if err := os.Rename(next, path); err != nil {
		return fmt.Errorf("link %s: %w", path, err)
	}
	return nil
}
