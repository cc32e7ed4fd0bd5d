package freeze

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Host is where containers' processes and cgroups are looked up: one proc root
// and the cgroup mounts below one cgroup root. It holds no open files and may
// be used concurrently.
type Host struct {
	proc   string
	mounts []mount // of cgroup file systems, in the order of mounting
	self   []cgroupEntry
	init   []cgroupEntry
}

// OpenHost reads the mount table. procRoot is "/proc", or where the host's proc
// is mounted in a helper container; its process ids must be those that this
// process sees itself. cgroupRoot is the directory below which cgroup mounts
// are accepted, "/sys/fs/cgroup" or "/host/sys/fs/cgroup", or "" for anywhere;
// which hierarchies there are, and where, is taken from the mount table and
// never assumed.
//
// A host without any cgroup mount is no error; Find will say ErrUnreachable.
func OpenHost(procRoot, cgroupRoot string) (*Host, error) {
	h := &Host{proc: procRoot}
	self, err := os.Readlink(filepath.Join(procRoot, "self"))
	if err != nil {
		return nil, fmt.Errorf("look up own process in %s: %w", procRoot, err)
	}
	if self != strconv.Itoa(os.Getpid()) {
		return nil, fmt.Errorf("%s belongs to another pid namespace (own pid %d, there %s): run with the host's pid namespace: %w",
			procRoot, os.Getpid(), self, ErrUnreachable)
	}
	b, err := h.read("self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read mount table: %w", err)
	}
	all, err := parseMountinfo(b)
	if err != nil {
		return nil, err
	}
	h.accept(all, cgroupRoot)
	if len(h.mounts) == 0 {
		// A helper that works in the root directory of another mount namespace
		// sees no mounts of its own there; the first process of the host does, at
		// the same paths. Find verifies what lies there.
		if b, err := h.read("1/mountinfo"); err == nil {
			if all, err := parseMountinfo(b); err == nil {
				h.accept(all, cgroupRoot)
			}
		}
	}
	if h.self, err = h.processCgroups("self"); err != nil {
		return nil, err
	}
	if h.init, err = h.processCgroups("1"); err != nil {
		return nil, err
	}
	return h, nil
}

// accept takes the cgroup mounts below the cgroup root.
func (h *Host) accept(all []mount, cgroupRoot string) {
	root := filepath.Clean("/" + cgroupRoot)
	for _, m := range all {
		if m.version() != 0 && below(root, m.point) {
			h.mounts = append(h.mounts, m)
		}
	}
}

// read reads a file below the proc root, at most maxProcFile bytes of it.
func (h *Host) read(name string) ([]byte, error) {
	f, err := os.Open(filepath.Join(h.proc, name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxProcFile+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxProcFile {
		return nil, fmt.Errorf("%s: longer than %d bytes", name, maxProcFile)
	}
	return b, nil
}

// bootID identifies the running kernel's boot; a freeze does not outlive it.
func (h *Host) bootID() (string, error) {
	b, err := h.read("sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// cgroupEntry is one line of /proc/PID/cgroup.
type cgroupEntry struct {
	controllers []string // empty for version 2
	path        string
}

func (e cgroupEntry) version() int {
	if len(e.controllers) == 0 {
		return 2
	}
	return 1
}

// sameHierarchy tells whether two entries speak of one hierarchy.
func (e cgroupEntry) sameHierarchy(o cgroupEntry) bool {
	return slices.Equal(e.controllers, o.controllers)
}

func (h *Host) processCgroups(pid string) ([]cgroupEntry, error) {
	b, err := h.read(pid + "/cgroup")
	if err != nil {
		return nil, fmt.Errorf("read cgroups of process %s: %w", pid, err)
	}
	es, err := parseCgroups(b)
	if err != nil {
		return nil, fmt.Errorf("cgroups of process %s: %w", pid, err)
	}
	return es, nil
}

// parseCgroups reads the format of /proc/PID/cgroup: hierarchy number,
// controllers, path, with colons between.
func parseCgroups(b []byte) ([]cgroupEntry, error) {
	var es []cgroupEntry
	sc := bufio.NewScanner(bytes.NewReader(b))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		f := strings.SplitN(sc.Text(), ":", 3)
		if len(f) != 3 || !strings.HasPrefix(f[2], "/") {
			return nil, fmt.Errorf("cgroup line %q: %w", sc.Text(), errMalformed)
		}
		e := cgroupEntry{path: cleanCgroup(f[2])}
		if f[1] != "" {
			e.controllers = strings.Split(f[1], ",")
		}
		es = append(es, e)
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("read cgroups: %w", err)
	}
	return es, nil
}

// Cgroup is the freezer cgroup of one container, found by Host.Find.
type Cgroup struct {
	Container Container
	// Version is 1 (freezer controller) or 2 (unified hierarchy).
	Version int
	// Dir is the cgroup's directory as this process sees it.
	Dir string
	// Path is the cgroup within its mount; with Inode it identifies the cgroup
	// for the life of the kernel, from wherever it is looked at.
	Path string
	// Inode is the directory's inode number, which the kernel gives once.
	Inode uint64
}

// Find gives the freezer cgroup that belongs to the container alone. It looks
// at the hierarchies that the init process is in, version 1's freezer first
// (where both exist, engines freeze through that one), and accepts the cgroup
// whose last path component carries the container's id; nested cgroups lie
// below it and freeze with it.
//
// ErrUnreachable: no such cgroup can be reached and frozen from here.
// ErrForbidden: it holds this process or process 1, or is the root.
func (h *Host) Find(c Container) (*Cgroup, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	if c.Pid == 0 {
		return nil, fmt.Errorf("container %s does not run: %w", c, ErrUnreachable)
	}
	entries, err := h.processCgroups(strconv.Itoa(c.Pid))
	if err != nil {
		return nil, fmt.Errorf("container %s: %w: %w", c, err, ErrUnreachable)
	}
	var candidates []cgroupEntry
	for _, v := range []int{1, 2} {
		for _, e := range entries {
			if e.version() == v && (v == 2 || slices.Contains(e.controllers, "freezer")) {
				candidates = append(candidates, e)
			}
		}
	}
	var problems []error
	for _, e := range candidates {
		cg, err := h.resolve(c, e)
		if err == nil {
			return cg, nil
		}
		if errors.Is(err, ErrForbidden) {
			return nil, err
		}
		problems = append(problems, err)
	}
	if len(problems) == 0 {
		return nil, fmt.Errorf("container %s: its process %d is in no freezer hierarchy: %w", c, c.Pid, ErrUnreachable)
	}
	return nil, errors.Join(problems...)
}

func (h *Host) resolve(c Container, e cgroupEntry) (*Cgroup, error) {
	own := c.within(e.path)
	if own == "" && h.sharesOwn(e) {
		return nil, fmt.Errorf("container %s is in one cgroup with Lifeboat: %w", c, ErrForbidden)
	}
	if own == "" {
		return nil, fmt.Errorf("container %s: cgroup %s of process %d is not the container's own: %w", c, e.path, c.Pid, ErrUnreachable)
	}
	if err := h.mayFreeze(e, own); err != nil {
		return nil, fmt.Errorf("container %s: %w", c, err)
	}
	control := freezerFile(e.version())
	for _, m := range slices.Backward(h.mounts) {
		rel, ok := relative(m.root, own)
		if !m.controls(e) || !ok || rel == "" {
			continue
		}
		dir := filepath.Join(m.point, rel)
		if unix.Access(filepath.Join(dir, control), unix.W_OK) != nil {
			continue // elsewhere, or mounted read-only as in containers
		}
		if held, err := holdsPid(dir, c.Pid); err != nil || !held {
			continue // the mount shows another part of the hierarchy
		}
		ino, err := inode(dir)
		if err != nil {
			return nil, fmt.Errorf("container %s: %w", c, err)
		}
		return &Cgroup{Container: c, Version: e.version(), Dir: dir, Path: rel, Inode: ino}, nil
	}
	return nil, fmt.Errorf("container %s: no mount shows version %d cgroup %s with process %d in it: %w",
		c, e.version(), own, c.Pid, ErrUnreachable)
}

// mayFreeze refuses a cgroup that holds this process or process 1, which
// includes every ancestor of this process's own cgroup. A guardian is born in
// this process's cgroup; it is checked again once it runs (outside).
func (h *Host) mayFreeze(e cgroupEntry, own string) error {
	if own == "" || own == "/" {
		return fmt.Errorf("cgroup %q is the root: %w", own, ErrForbidden)
	}
	for who, entries := range map[string][]cgroupEntry{"Lifeboat itself": h.self, "process 1": h.init} {
		if holds(entries, e, own) {
			return fmt.Errorf("cgroup %s holds %s: %w", own, who, ErrForbidden)
		}
	}
	return nil
}

// sharesOwn tells whether this process is in the cgroup or below it, the root of
// the hierarchy excepted. In a cgroup namespace of its own a process sees its
// cgroup as "/", without the container's id, and process 1 above it.
func (h *Host) sharesOwn(e cgroupEntry) bool {
	if !holds(h.self, e, e.path) {
		return false
	}
	return e.path != "/" || slices.ContainsFunc(h.init, func(o cgroupEntry) bool {
		return o.sameHierarchy(e) && below("/..", o.path)
	})
}

// holds tells whether a process with these entries is in the cgroup or below.
func holds(entries []cgroupEntry, hierarchy cgroupEntry, cgroup string) bool {
	for _, o := range entries {
		if o.sameHierarchy(hierarchy) && below(cgroup, o.path) {
			return true
		}
	}
	return false
}

// outside confirms that a process, a guardian, is in none of the cgroups.
func (h *Host) outside(pid int, cgs []*Cgroup) error {
	for _, cg := range cgs {
		held, err := holdsPid(cg.Dir, pid)
		if err != nil {
			return fmt.Errorf("container %s: list processes of its cgroup: %w", cg.Container, err)
		}
		if held {
			return fmt.Errorf("cgroup %s of container %s holds the guardian, process %d: %w", cg.Path, cg.Container, pid, ErrForbidden)
		}
	}
	return nil
}

// holdsPid tells whether the process is in the cgroup or in one nested in it.
func holdsPid(dir string, pid int) (bool, error) {
	pids, err := pidsBelow(dir)
	if err != nil {
		return false, err
	}
	return slices.Contains(pids, pid), nil
}

// pidsBelow lists the processes of a cgroup and of those nested in it.
func pidsBelow(dir string) ([]int, error) {
	var pids []int
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) && p != dir {
				return nil // a nested cgroup went away meanwhile
			}
			return err
		}
		if !d.IsDir() {
			return nil
		}
		b, err := os.ReadFile(filepath.Join(p, "cgroup.procs"))
		if err != nil {
			if p != dir {
				return nil // gone, or a threaded cgroup, whose processes its parent lists
			}
			return err
		}
		for _, w := range strings.Fields(string(b)) {
			n, err := strconv.Atoi(w)
			if err != nil {
				return fmt.Errorf("%s/cgroup.procs: %q: %w", p, w, errMalformed)
			}
			pids = append(pids, n)
		}
		return nil
	})
	return pids, err
}
