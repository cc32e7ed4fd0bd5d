package engine

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"lifeboat/internal/dr"
)

// cover writes the coverage report: one line for each object of the system,
// captured or not, with what is lost and why. Where something is not captured,
// the key of its tree is taken out of the description. Sizes are not known yet.
func (d *discovery) cover() {
	d.coverImages()
	d.coverVolumes()
	d.coverBinds()
	d.coverContainers()
	d.coverNetworks()
	d.coverFiles()
	d.setTrees()
	slices.SortStableFunc(d.sys.Coverage, func(a, b dr.CoverageItem) int { return strings.Compare(a.Object, b.Object) })
}

func (d *discovery) item(object string, captured bool, reasons ...string) {
	d.sys.Coverage = append(d.sys.Coverage, dr.CoverageItem{Object: object, Captured: captured, Reason: join(reasons), Bytes: -1})
}

// part is item for what is captured except for what lost names, if anything;
// notes are only worth knowing.
func (d *discovery) part(object string, lost []string, notes ...string) {
	reason := join(lost)
	d.sys.Coverage = append(d.sys.Coverage, dr.CoverageItem{
		Object: object, Captured: true, Partial: reason != "", Reason: join(append([]string{reason}, notes...)), Bytes: -1,
	})
}

// join makes one text of what is not empty.
func join(reasons []string) string {
	return strings.Join(slices.DeleteFunc(slices.Clone(reasons), func(s string) bool { return s == "" }), "; ")
}

func (d *discovery) coverImages() {
	for _, img := range d.sys.Images {
		name := img.ID
		if len(img.Tags) > 0 {
			name = img.Tags[0]
		}
		d.sys.Coverage = append(d.sys.Coverage, dr.CoverageItem{Object: "image:" + name, Captured: true, Bytes: img.Size})
	}
	for id, by := range d.missingImages {
		d.item("image:"+id, false, "the engine no longer has it although container "+by+" uses it: the container cannot be created elsewhere; pull or build it again and recreate the container")
	}
}

func alsoUsed(by []string) string {
	if len(by) == 0 {
		return ""
	}
	return "also mounted by " + strings.Join(by, ", ") + " outside the system, which is not frozen with it"
}

func (d *discovery) coverVolumes() {
	for i := range d.sys.Volumes {
		v := &d.sys.Volumes[i]
		path, why := d.volumePath(v)
		note := ""
		if v.Anonymous {
			note = "anonymous: comes back under the same generated name"
		}
		if why != "" {
			d.item("volume:"+v.Name, false, why, alsoUsed(v.UsedBy))
			continue
		}
		if d.sel.Archive && v.Via == nil {
			d.item("volume:"+v.Name, false, notReached, alsoUsed(v.UsedBy))
			continue
		}
		v.Path = path
		v.Tree = "volume:" + v.Name
		if dev := v.Options["device"]; dev != "" {
			note = join([]string{note, "its option device=" + dev + " must be possible at the other site"})
		}
		d.part("volume:"+v.Name, []string{d.kept(false)}, note, alsoUsed(v.UsedBy))
	}
}

// volumePath says where the data of a volume lies, or why it is not captured.
func (d *discovery) volumePath(v *Volume) (path, why string) {
	in := d.st.volumes[v.Name]
	if v.Driver != "local" {
		return "", fmt.Sprintf("is served by the volume plugin %s: its data is not on this host's disk as files; the plugin must serve it at the other site too", v.Driver)
	}
	if in.ClusterVolume != nil {
		return "", "is a cluster volume of the swarm"
	}
	path = in.Mountpoint
	kind := strings.ToLower(v.Options["type"])
	options := strings.Split(v.Options["o"], ",")
	switch {
	case kind == "nfs" || kind == "nfs4":
		return "", "is on NFS (" + v.Options["device"] + "): it is not lost with this host, and must be reachable from the other site"
	case kind == "cifs" || kind == "smb3" || kind == "smbfs":
		return "", "is on CIFS (" + v.Options["device"] + "): it is not lost with this host, and must be reachable from the other site"
	case kind == "tmpfs":
		return "", "is in memory (tmpfs) and starts empty"
	case slices.Contains(options, "bind") || slices.Contains(options, "rbind"):
		// Mounted only while a container runs, so what is bound is read.
		path = v.Options["device"]
	case v.Options["device"] != "" && d.h.Local:
		m, ok := mountAt(d.st.mounts, path)
		if !ok || m.mountPoint != path {
			return "", "is the device " + v.Options["device"] + ", which is mounted only while a container uses it, and none does"
		}
	}
	if !filepath.IsAbs(path) {
		return "", "the engine names no directory for it"
	}
	if !d.h.Local || d.sel.Archive {
		return path, ""
	}
	if m, ok := mountAt(d.st.mounts, path); ok {
		if f := foreign(m); f != "" {
			return "", f
		}
	}
	switch d.h.kind(path) {
	case "dir":
		return path, ""
	case "missing":
		return "", "its directory " + path + " does not exist"
	}
	return "", "its directory " + path + " cannot be read"
}

func (d *discovery) coverBinds() {
	for i := range d.sys.Binds {
		b := &d.sys.Binds[i]
		object := "bind:" + b.Source
		if why := d.bindReason(b); why != "" {
			d.item(object, false, why)
			continue
		}
		b.Tree = object
		var nested []string
		for _, m := range d.st.mounts {
			if m.mountPoint != b.Source && under(m.mountPoint, b.Source) && b.Source != "/" {
				if f := foreign(m); f != "" {
					nested = append(nested, m.mountPoint+" inside it "+f)
				}
			}
		}
		d.part(object, append(nested, d.kept(false)), alsoUsed(b.UsedBy))
	}
}

// hostOwned are paths that describe the host and not the application: a
// container that mounts them wants those of the host that it runs on, and
// writing the captured ones to another host would break it.
var hostOwned = []string{
	"/etc/localtime", "/etc/timezone", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/etc/machine-id",
	"/etc/passwd", "/etc/group", "/etc/shadow", "/etc/os-release", "/etc/ssl/certs", "/etc/pki",
}

// hostTrees are such paths with everything below them.
var hostTrees = []string{
	"/lib/modules", "/usr/lib/modules", "/usr/share/zoneinfo", "/usr/src", "/boot", "/lib/firmware",
	"/run/udev", "/run/dbus", "/run/systemd", "/var/run/dbus", "/var/run/systemd", "/tmp/.X11-unix",
}

// hostWhole are directories that are too much of the host to be the data of a
// container. What administrators do use for data (/srv, /opt, /home) is not here.
var hostWhole = []string{"/etc", "/usr", "/lib", "/lib64", "/bin", "/sbin", "/run", "/var", "/var/lib", "/var/run"}

// bindReason says why a bind mount is not captured; empty if it is.
func (d *discovery) bindReason(b *Bind) string {
	src := b.Source
	switch {
	case src == "/":
		return "is the host's whole root directory; put what belongs to the system into volumes or mounts of its own"
	case under(src, "/proc") || under(src, "/sys"):
		return "is the kernel's, not data"
	case under(src, "/dev"):
		return "is a device of this host"
	case d.f.rootDir != "" && under(src, d.f.rootDir):
		return "lies in the engine's own data directory"
	case isEngineSocket(src) || d.e.socket != "" && src == d.e.socket:
		return "is the engine's control socket, not data; the other site's engine gives its own"
	case slices.Contains(hostOwned, src) || slices.ContainsFunc(hostTrees, func(t string) bool { return under(src, t) }):
		return "describes this host; the other site's own is mounted there"
	case slices.Contains(hostWhole, src):
		return "is a system directory of this host; mount the directories that belong to the system instead"
	case d.f.rootDir != "" && under(d.f.rootDir, src):
		return "contains the engine's own data directory " + d.f.rootDir
	}
	switch b.Kind {
	case "missing":
		return "does not exist on this host"
	case "socket":
		return "is a socket of this host, not data"
	case "device":
		return "is a device or pipe of this host, not data"
	}
	if d.sel.Archive && b.Via == nil {
		return notReached
	}
	if !d.h.Local || d.sel.Archive {
		return ""
	}
	if b.Kind == "unknown" {
		return "cannot be read"
	}
	if m, ok := mountAt(d.st.mounts, src); ok {
		return foreign(m)
	}
	return ""
}

func isEngineSocket(p string) bool {
	switch p {
	case "/var/run/docker.sock", "/run/docker.sock", "/run/podman/podman.sock", "/var/run/podman/podman.sock",
		"/run/containerd/containerd.sock", "/var/run/containerd/containerd.sock":
		return true
	}
	return false
}

func (d *discovery) coverFiles() {
	for _, f := range d.sys.Files {
		if d.sel.Archive {
			d.item("file:"+f.Path, false, "is a file of the host, which the archive API does not reach; keep a copy of it elsewhere")
			continue
		}
		d.item("file:"+f.Path, true)
	}
	if d.sel.Archive {
		d.sys.Files = nil
	}
	for object, notes := range d.notes {
		if strings.HasPrefix(object, "files:") {
			for _, n := range notes {
				d.item(object, false, n)
			}
		}
	}
}

// setTrees gives each mount of each container the key of its tree.
func (d *discovery) setTrees() {
	keys := map[string]string{}
	for _, v := range d.sys.Volumes {
		keys["volume:"+v.Name] = v.Tree
	}
	for _, b := range d.sys.Binds {
		keys["bind:"+b.Source] = b.Tree
	}
	for i := range d.sys.Containers {
		for j := range d.sys.Containers[i].Mounts {
			m := &d.sys.Containers[i].Mounts[j]
			switch m.Type {
			case "volume":
				m.Tree = keys["volume:"+m.Name]
			case "bind":
				m.Tree = keys["bind:"+filepath.Clean(m.Source)]
			}
		}
	}
}
