// Package cgroup keeps the processes of a laboratory in control groups of its own, so that every one of
// them can be found and killed whatever became of its parents. It works with control groups of version 1,
// of version 2 and with both mounted.
//
// Main type: [Tree]. The package sets no limits and does not freeze; engines make groups below a Tree
// by themselves and the Tree kills and removes those too.
package cgroup

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Tree is one top-level control group, present under the same name in every mounted hierarchy.
type Tree struct {
	name    string
	mounts  []string // every hierarchy
	track   string   // the hierarchy in which processes are kept and looked for
	freezer string   // version 1 freezer, or empty
}

// New finds the hierarchies; it creates nothing.
func New(name string) (Tree, error) {
	t := Tree{name: name}
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return t, fmt.Errorf("find control group hierarchies: %w", err)
	}
	var pids, unified string
	for line := range bytes.Lines(data) {
		// 30 23 0:26 / /sys/fs/cgroup/pids rw,relatime shared:9 - cgroup cgroup rw,pids
		left, right, ok := strings.Cut(string(line), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 5 || len(r) < 3 || (r[0] != "cgroup" && r[0] != "cgroup2") || slices.Contains(t.mounts, l[4]) {
			continue
		}
		t.mounts = append(t.mounts, l[4])
		controllers := strings.Split(r[2], ",")
		switch {
		case r[0] == "cgroup2":
			unified = l[4]
		case slices.Contains(controllers, "pids"):
			pids = l[4]
		case slices.Contains(controllers, "freezer"):
			t.freezer = l[4]
		}
	}
	switch {
	case pids != "":
		t.track = pids
	case unified != "":
		t.track = unified
	default:
		return t, errors.New("find control group hierarchies: neither version 2 nor the pids hierarchy of version 1 is mounted")
	}
	return t, nil
}

// Name is the path of the tree from the root of each hierarchy, as dockerd's --cgroup-parent takes it.
func (t Tree) Name() string { return "/" + t.name }

// Make creates the group sub of the tree and returns its directory; a process joins by having its
// number written to cgroup.procs there.
func (t Tree) Make(sub string) (string, error) {
	dir := filepath.Join(t.track, t.name, sub)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make control group: %w", err)
	}
	return dir, nil
}

// Processes lists those in sub and below it ("" for the whole tree). Dead ones that nobody has waited for are not in it.
func (t Tree) Processes(sub string) ([]int, error) {
	var pids []int
	err := eachDir(filepath.Join(t.track, t.name, sub), func(dir string) error {
		data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EOPNOTSUPP) {
			return nil // removed meanwhile, or a threaded group whose processes its parent lists
		}
		if err != nil {
			return err
		}
		lines := bufio.NewScanner(bytes.NewReader(data))
		for lines.Scan() {
			if pid, err := strconv.Atoi(lines.Text()); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list processes of control group: %w", err)
	}
	return pids, nil
}

// Kill sends SIGKILL to everything in sub and below until nothing is left there or ctx ends. Frozen
// processes are killed too: those of version 1 are thawed after the signal is pending, so that they
// run no further instruction of their own.
func (t Tree) Kill(ctx context.Context, sub string) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		pids, err := t.Processes(sub)
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			// Gone already is as good as killed.
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		t.thaw(sub)
		select {
		case <-ctx.Done():
			return fmt.Errorf("kill control group %s: processes %v are still there: %w", filepath.Join(t.name, sub), pids, ctx.Err())
		case <-time.After(wait):
		}
	}
}

func (t Tree) thaw(sub string) {
	if t.freezer == "" {
		return
	}
	// Errors mean that a group has gone meanwhile; Kill looks again.
	_ = eachDir(filepath.Join(t.freezer, t.name, sub), func(dir string) error {
		_ = os.WriteFile(filepath.Join(dir, "freezer.state"), []byte("THAWED"), 0o644)
		return nil
	})
}

// Remove removes sub and all below it from every hierarchy; nothing may run there any more. The
// kernel takes a moment to let go of a group whose last process was killed, Remove tries until ctx ends.
func (t Tree) Remove(ctx context.Context, sub string) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		var errs []error
		for _, m := range t.mounts {
			errs = append(errs, removeAll(filepath.Join(m, t.name, sub)))
		}
		err := errors.Join(errs...)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("remove control group %s: %w: %w", filepath.Join(t.name, sub), ctx.Err(), err)
		case <-time.After(wait):
		}
	}
}

// List names the top-level groups that begin with prefix, in any hierarchy.
func (t Tree) List(prefix string) ([]string, error) {
	var names []string
	for _, m := range t.mounts {
		entries, err := os.ReadDir(m)
		if err != nil {
			return nil, fmt.Errorf("list control groups: %w", err)
		}
		for _, e := range entries {
			if e.IsDir() && strings.HasPrefix(e.Name(), prefix) && !slices.Contains(names, e.Name()) {
				names = append(names, e.Name())
			}
		}
	}
	return names, nil
}

func removeAll(dir string) error {
	var dirs []string
	if err := eachDir(dir, func(d string) error { dirs = append(dirs, d); return nil }); err != nil {
		return err
	}
	var errs []error
	for _, d := range slices.Backward(dirs) {
		if err := os.Remove(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// eachDir calls f for dir and every directory below it, parents first; what is gone is passed over.
func eachDir(dir string, f func(string) error) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV):
			return nil
		case err != nil:
			return err
		case !d.IsDir():
			return nil
		}
		return f(path)
	})
}
