package freeze

import (
	"fmt"
	"strings"
)

// Container names one container to freeze.
type Container struct {
	// ID is the engine's full id (64 hexadecimal digits with Docker and
	// Podman). It must be at least 12 characters long: it is looked for in the
	// path of the cgroup as the proof that the cgroup is the container's own.
	ID string
	// Name is what people call it; it appears in errors and reports.
	Name string
	// Pid is the container's init process as seen in the proc root of the Host;
	// 0 means that the container does not run and has nothing to freeze.
	Pid int
}

// minIDLength keeps a short id from matching a cgroup by accident.
const minIDLength = 12

// String gives the name and the short id.
func (c Container) String() string {
	short := c.ID
	if len(short) > minIDLength {
		short = short[:minIDLength]
	}
	name := strings.TrimPrefix(c.Name, "/")
	if name == "" {
		return short
	}
	return name + " (" + short + ")"
}

// validate checks the id before it is compared with any path (invariant 10:
// the engine's answers are not trusted to be well formed).
func (c Container) validate() error {
	if len(c.ID) < minIDLength || len(c.ID) > 128 {
		return fmt.Errorf("container %q: id %q is not a full container id", c.Name, c.ID)
	}
	for _, r := range c.ID {
		if !isIDRune(r) {
			return fmt.Errorf("container %q: id %q has a character that no container id has", c.Name, c.ID)
		}
	}
	if c.Pid < 0 {
		return fmt.Errorf("container %s: pid %d", c, c.Pid)
	}
	return nil
}

func isIDRune(r rune) bool {
	return r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
}

// componentOf tells whether a path component of a cgroup is that of the
// container itself. Engines name it ID (cgroupfs driver), docker-ID.scope,
// libpod-ID.scope, cri-containerd-ID.scope (systemd driver) and the like. The
// cgroup of Podman's monitor, libpod-conmon-ID.scope, is not the container's.
func (c Container) componentOf(component string) bool {
	before, after, found := strings.Cut(component, c.ID)
	if !found || strings.Contains(before, "conmon") {
		return false
	}
	if before != "" && isIDRune(rune(before[len(before)-1])) {
		return false
	}
	return after == "" || !isIDRune(rune(after[0]))
}

// within gives the part of a cgroup path that ends with the container's own
// component, or "" if the path has none. What comes below (docker in docker,
// systemd in the container) freezes with it.
func (c Container) within(path string) string {
	parts := strings.Split(path, "/")
	for i, p := range parts {
		if p != "" && c.componentOf(p) {
			return strings.Join(parts[:i+1], "/")
		}
	}
	return ""
}
