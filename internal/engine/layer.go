package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"lifeboat/internal/engine/containerdsnap"
)

// Layer says where the writable layer of a container lies. All paths are of the
// engine's mount namespace (see HostFS.Path).
type Layer struct {
	// Driver is the graph driver or snapshotter.
	Driver string
	// Upper holds what the container changed.
	Upper string
	// Lower are the directories below, topmost first; nil where only the mount
	// table named the upper directory.
	Lower []string
	// Merged is where the engine mounts the whole while the container runs;
	// empty if unknown. Needed where overlay redirects are in use.
	Merged string
	// Sources says who named Upper: "graph driver", "snapshot", "mount table".
	Sources []string
}

// UnsupportedLayerError says that a writable layer cannot be captured because
// of how the engine stores it.
type UnsupportedLayerError struct {
	Container string
	Driver    string
}

func (e *UnsupportedLayerError) Error() string {
	return fmt.Sprintf("writable layer of container %s: storage driver %q keeps no directory of changes; only overlay drivers are supported", e.Container, e.Driver)
}

// WritableLayer finds the writable layer of a container, running or not, by
// everything that can name it: the graph driver's data, containerd's snapshot
// API, the mount table of the running container. Those that answer must agree,
// else an error says what each said. An *UnsupportedLayerError means that this
// engine stores layers in a way that has no upper directory.
func (e *Engine) WritableLayer(ctx context.Context, nameOrID string) (Layer, error) {
	res, err := e.cli.ContainerInspect(ctx, nameOrID, client.ContainerInspectOptions{})
	if err != nil {
		return Layer{}, failed("inspect container "+nameOrID, err)
	}
	h, err := e.HostFS(ctx)
	if err != nil {
		return Layer{}, err
	}
	return e.layerOf(ctx, h, res.Container)
}

// claim is what one source says about a layer.
type claim struct {
	source string
	layer  Layer
}

func (e *Engine) layerOf(ctx context.Context, h HostFS, c container.InspectResponse) (Layer, error) {
	name := strings.TrimPrefix(c.Name, "/")
	driver := layerDriver(c)
	var claims []claim
	var notes []error
	if c.GraphDriver != nil && c.GraphDriver.Data["UpperDir"] != "" {
		d := c.GraphDriver.Data
		claims = append(claims, claim{"graph driver", Layer{Upper: d["UpperDir"], Lower: splitLower(d["LowerDir"]), Merged: d["MergedDir"]}})
	} else {
		l, err := e.snapshotLayer(ctx, h, c.ID, driver)
		if err == nil {
			claims = append(claims, claim{"snapshot", l})
		} else {
			notes = append(notes, err)
		}
	}
	if c.State != nil && c.State.Pid > 0 && h.Local {
		l, err := mountedLayer(c.State.Pid)
		if err == nil {
			claims = append(claims, claim{"mount table", l})
		} else {
			notes = append(notes, err)
		}
	}
	if len(claims) == 0 {
		if !strings.Contains(driver, "overlay") {
			return Layer{}, &UnsupportedLayerError{Container: name, Driver: driver}
		}
		return Layer{}, fmt.Errorf("writable layer of container %s: nothing names its directory: %w", name, errors.Join(notes...))
	}
	out := claims[0].layer
	out.Driver = driver
	for _, cl := range claims {
		if !sameUpper(h, out.Upper, cl.layer.Upper) {
			return Layer{}, fmt.Errorf("writable layer of container %s: the %s names %s, the %s names %s; they must agree",
				name, claims[0].source, out.Upper, cl.source, cl.layer.Upper)
		}
		out.Sources = append(out.Sources, cl.source)
	}
	return out, nil
}

func layerDriver(c container.InspectResponse) string {
	if c.GraphDriver != nil && c.GraphDriver.Name != "" {
		return c.GraphDriver.Name
	}
	if c.Storage != nil && c.Storage.RootFS != nil && c.Storage.RootFS.Snapshot != nil {
		return c.Storage.RootFS.Snapshot.Name
	}
	return c.Driver
}

func splitLower(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ":")
}

// sameUpper compares by name, and where names differ by what they lead to.
func sameUpper(h HostFS, a, b string) bool {
	if filepath.Clean(a) == filepath.Clean(b) {
		return true
	}
	pa, err1 := h.Path(a)
	pb, err2 := h.Path(b)
	if err1 != nil || err2 != nil {
		return false
	}
	fa, err1 := os.Stat(pa)
	fb, err2 := os.Stat(pb)
	return err1 == nil && err2 == nil && os.SameFile(fa, fb)
}

// mountedLayer reads the upper directory from the mount table of a running
// container's init process.
func mountedLayer(pid int) (Layer, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return Layer{}, fmt.Errorf("mount table of process %d: %w", pid, err)
	}
	defer f.Close()
	mounts, err := parseMountInfo(f)
	if err != nil {
		return Layer{}, fmt.Errorf("mount table of process %d: %w", pid, err)
	}
	// The last mount on / is the one in force.
	for _, m := range slices.Backward(mounts) {
		if m.mountPoint != "/" {
			continue
		}
		upper := m.options["upperdir"]
		if m.fsType != "overlay" || !filepath.IsAbs(upper) {
			// Engines with many layers mount by relative names; those say nothing here.
			return Layer{}, fmt.Errorf("mount table of process %d: the root is %s and names no absolute upper directory", pid, m.fsType)
		}
		return Layer{Upper: upper}, nil
	}
	return Layer{}, fmt.Errorf("mount table of process %d: no root", pid)
}

// snapshotLayer asks containerd. Only the snapshotters that are overlays have
// an upper directory.
func (e *Engine) snapshotLayer(ctx context.Context, h HostFS, id, driver string) (Layer, error) {
	if !h.Local {
		return Layer{}, errors.New(h.Reason)
	}
	c, err := e.containerd(ctx, h)
	if err != nil {
		return Layer{}, err
	}
	defer c.Close()
	s, err := c.Layer(ctx, driver, id)
	if err != nil {
		return Layer{}, err
	}
	return Layer{Upper: s.Upper, Lower: s.Lower}, nil
}

// containerd connects to the containerd that the engine uses.
func (e *Engine) containerd(ctx context.Context, h HostFS) (*containerdsnap.Client, error) {
	var errs []error
	for _, addr := range containerdAddresses(h) {
		p, err := h.Path(addr)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		c, err := containerdsnap.Dial(ctx, p, h.facts.containerdNS)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		return c, nil
	}
	return nil, fmt.Errorf("find the engine's containerd: %w", errors.Join(errs...))
}

// containerdAddresses lists where the engine's containerd may listen, the
// surest first: what the engine says, what its command line says, defaults.
func containerdAddresses(h HostFS) []string {
	var out []string
	add := func(a string) {
		a = strings.TrimPrefix(a, "unix://")
		if filepath.IsAbs(a) && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	add(h.facts.containerdAddress)
	if h.EnginePID > 0 {
		args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", h.EnginePID))
		if err == nil {
			argv := strings.Split(strings.TrimRight(string(args), "\x00"), "\x00")
			add(flagValue(argv, "containerd"))
			if root := flagValue(argv, "exec-root"); root != "" {
				add(filepath.Join(root, "containerd/containerd.sock"))
			}
		}
	}
	add("/run/containerd/containerd.sock")
	add("/run/docker/containerd/containerd.sock")
	return out
}

// flagValue finds --name=value or --name value in a command line.
func flagValue(argv []string, name string) string {
	for i, a := range argv {
		a, ok := strings.CutPrefix(a, "--"+name)
		if !ok {
			continue
		}
		if v, ok := strings.CutPrefix(a, "="); ok {
			return v
		}
		if a == "" && i+1 < len(argv) {
			return argv[i+1]
		}
	}
	return ""
}
