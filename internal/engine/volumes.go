package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/volume"
	"github.com/moby/moby/client"

	"lifeboat/internal/dr"
	"lifeboat/internal/engine/compose"
)

// anonymousLabel marks, from Docker 23 on, volumes that the engine named.
const anonymousLabel = "com.docker.volume.anonymous"

var anonymousName = regexp.MustCompile(`^[0-9a-f]{64}$`)

// storage is what is known of volumes and binds besides their description,
// for coverage.
type storage struct {
	volumes map[string]volume.Volume
	mounts  []mountEntry // of the engine's mount namespace; nil if not readable
}

// discoverVolumes describes the volumes that the containers mount, and those
// that the project made and nobody mounts at the moment.
func (e *Engine) discoverVolumes(ctx context.Context, sel Selector, cs []inspected, all []container.Summary, inSystem map[string]bool) ([]Volume, storage, error) {
	st := storage{volumes: map[string]volume.Volume{}}
	want := map[string]bool{}
	for _, c := range cs {
		for _, m := range c.Mounts {
			if m.Type == "volume" && m.Name != "" {
				want[m.Name] = true
			}
		}
	}
	res, err := e.cli.VolumeList(ctx, client.VolumeListOptions{})
	if err != nil {
		return nil, st, failed("list volumes", err)
	}
	var out []Volume
	for _, v := range res.Items {
		own := sel.Project != "" && v.Labels[compose.LabelProject] == sel.Project
		if !own && !want[v.Name] {
			continue
		}
		delete(want, v.Name)
		st.volumes[v.Name] = v
		_, labelled := v.Labels[anonymousLabel]
		vol := Volume{Volume: describeVolume(v)}
		maps.DeleteFunc(vol.Labels, func(k, _ string) bool { return ownLabel(k) })
		if len(vol.Labels) == 0 {
			vol.Labels = nil
		}
		vol.Anonymous = labelled || anonymousName.MatchString(v.Name) && vol.Labels == nil
		vol.UsedBy = outsiders(all, inSystem, func(m container.MountPoint) bool { return m.Type == "volume" && m.Name == v.Name })
		out = append(out, vol)
	}
	for name := range want {
		// A volume plugin may not list what it serves.
		res, err := e.cli.VolumeInspect(ctx, name, client.VolumeInspectOptions{})
		if err != nil {
			return nil, st, failed("inspect volume "+name, err)
		}
		v := res.Volume
		st.volumes[name] = v
		out = append(out, Volume{Volume: describeVolume(v)})
	}
	slices.SortFunc(out, func(a, b Volume) int { return strings.Compare(a.Name, b.Name) })
	return out, st, nil
}

// describeVolume is a volume as a create request has it; nothing and an empty
// map are the same.
func describeVolume(v volume.Volume) dr.Volume {
	out := dr.Volume{Name: v.Name, Driver: v.Driver}
	if len(v.Options) > 0 {
		out.Options = v.Options
	}
	if len(v.Labels) > 0 {
		out.Labels = v.Labels
	}
	return out
}

// outsiders lists the containers outside the system of which a mount fits.
func outsiders(all []container.Summary, inSystem map[string]bool, fits func(container.MountPoint) bool) []string {
	var out []string
	for _, c := range all {
		if name := listName(c); !inSystem[name] && !isHelper(c.Labels) && slices.ContainsFunc(c.Mounts, fits) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// discoverBinds describes the host paths that the containers mount, each once.
func discoverBinds(h HostFS, cs []inspected, all []container.Summary, inSystem map[string]bool) []Bind {
	bySource := map[string]*Bind{}
	for _, c := range cs {
		for _, m := range c.Mounts {
			if m.Type != "bind" {
				continue
			}
			source := filepath.Clean(m.Source)
			b := bySource[source]
			if b == nil {
				b = &Bind{Bind: dr.Bind{Source: source}, Kind: h.kind(source)}
				b.File = b.Kind == "file"
				b.UsedBy = outsiders(all, inSystem, func(o container.MountPoint) bool { return o.Type == "bind" && filepath.Clean(o.Source) == source })
				bySource[source] = b
			}
			if p := string(m.Propagation); p != "" && p != "rprivate" {
				b.Propagation = p
			}
		}
	}
	out := make([]Bind, 0, len(bySource))
	for _, b := range bySource {
		out = append(out, *b)
	}
	slices.SortFunc(out, func(a, b Bind) int { return strings.Compare(a.Source, b.Source) })
	return out
}

// kind says what lies at a path of the engine's host.
func (h HostFS) kind(p string) string {
	if !h.Local {
		return "unknown"
	}
	real, err := h.Path(p)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
			return "missing"
		}
		return "unknown"
	}
	st, err := os.Lstat(real)
	if err != nil {
		return "unknown"
	}
	return kindOf(st.Mode())
}

// kindOf puts a type of file into a word.
func kindOf(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "dir"
	case m.IsRegular():
		return "file"
	case m&fs.ModeSocket != 0:
		return "socket"
	case m&fs.ModeSymlink != 0:
		return "link"
	}
	return "device"
}

// engineMounts reads the mount table of the engine's mount namespace.
func engineMounts(h HostFS) []mountEntry {
	if !h.Local {
		return nil
	}
	table := "/proc/self/mountinfo"
	if h.EnginePID > 0 {
		table = fmt.Sprintf("/proc/%d/mountinfo", h.EnginePID)
	}
	f, err := os.Open(table)
	if err != nil {
		return nil
	}
	defer f.Close()
	m, err := parseMountInfo(f)
	if err != nil {
		return nil
	}
	return m
}

// under reports whether path is dir or lies below it.
func under(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// mountAt is the mount that holds a path: the last one with the longest mount point.
func mountAt(mounts []mountEntry, path string) (mountEntry, bool) {
	var best mountEntry
	found := false
	for _, m := range mounts {
		if under(path, m.mountPoint) && (!found || len(m.mountPoint) >= len(best.mountPoint)) {
			best, found = m, true
		}
	}
	return best, found
}

// foreign says why data on a file system is not this host's to capture; empty
// where it is.
func foreign(m mountEntry) string {
	switch t := m.fsType; {
	case t == "nfs" || t == "nfs4" || t == "cifs" || t == "smb3" || t == "smbfs" || t == "9p" || t == "ceph" || t == "afs" || t == "lustre" || t == "virtiofs":
		return fmt.Sprintf("lies on the network file system %s (%s): it is not lost with this host, and must be reachable from the other site", m.source, t)
	case t == "fuse" || strings.HasPrefix(t, "fuse.") || t == "fuseblk":
		return fmt.Sprintf("lies on a file system served by a process (%s): reading it while that process is frozen would block", t)
	case t == "proc" || t == "sysfs" || t == "cgroup" || t == "cgroup2" || t == "devtmpfs" || t == "devpts" || t == "securityfs" || t == "debugfs" || t == "tracefs" || t == "bpf":
		return "is the kernel's (" + t + "), not data"
	}
	return ""
}
