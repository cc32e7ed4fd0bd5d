package cgroup

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestKillAndRemove needs root, as everything in the laboratory does.
func TestKillAndRemove(t *testing.T) {
	name := fmt.Sprintf("lbtest-cgroup.%d", os.Getpid())
	tree, err := New(name)
	if err != nil {
		t.Fatal(err)
	}
	killAndRemove(t, tree, name)
}

// TestKillAndRemoveInVersion2 keeps the processes in the version 2 hierarchy, which is mounted besides
// version 1 on older systems.
func TestKillAndRemoveInVersion2(t *testing.T) {
	name := fmt.Sprintf("lbtest-cgroup2.%d", os.Getpid())
	tree, err := New(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range tree.mounts {
		if _, err := os.Stat(filepath.Join(m, "cgroup.controllers")); err == nil {
			tree.track, tree.freezer = m, ""
			killAndRemove(t, tree, name)
		}
	}
}

func killAndRemove(t *testing.T, tree Tree, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	dir, err := tree.Make("site/host")
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Remove(ctx, "")
	cmd := exec.Command("/bin/sh", "-c", `echo 0 > "$0/cgroup.procs" && echo in && exec sleep 600`, dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	if pids, err := tree.Processes(""); err != nil || len(pids) != 1 || pids[0] != cmd.Process.Pid {
		t.Fatalf("processes %v, %v; want %d", pids, err, cmd.Process.Pid)
	}
	if tree.freezer != "" { // version 1 does not deliver a signal to what is frozen
		frozen := filepath.Join(tree.freezer, name, "site", "frozen")
		if err := os.MkdirAll(frozen, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, w := range [][2]string{{"cgroup.procs", fmt.Sprint(cmd.Process.Pid)}, {"freezer.state", "FROZEN"}} {
			if err := os.WriteFile(filepath.Join(frozen, w[0]), []byte(w[1]), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	if names, err := tree.List(name); err != nil || len(names) != 1 {
		t.Fatalf("list: %v, %v", names, err)
	}
	if err := tree.Kill(ctx, ""); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Fatal("the process ended well instead of being killed")
	}
	if err := tree.Remove(ctx, ""); err != nil {
		t.Fatal(err)
	}
	if names, err := tree.List(name); err != nil || len(names) != 0 {
		t.Fatalf("left behind: %v, %v", names, err)
	}
	// Twice is as good as once.
	if err := tree.Kill(ctx, ""); err != nil {
		t.Fatal(err)
	}
	if err := tree.Remove(ctx, ""); err != nil {
		t.Fatal(err)
	}
}

func TestRemoveNeedsNoTimeForEmptyGroups(t *testing.T) {
	tree, err := New(fmt.Sprintf("lbtest-cgroup-left.%d", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	dir, err := tree.Make("x")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "y"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := tree.Remove(ctx, "x"); err != nil {
		t.Fatalf("an empty group needs no time: %v", err)
	}
	if err := tree.Remove(context.Background(), ""); err != nil {
		t.Fatal(err)
	}
}
