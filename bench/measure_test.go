package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMeasured(t *testing.T) {
	t.Parallel()
	var o outcome
	out, err := o.measured(exec.Command("/bin/sh", "-c", "echo done"), "shell")
	if err != nil {
		t.Fatal(err)
	}
	if string(out) != "done\n" || o.Seconds <= 0 {
		t.Errorf("output %q, %+v", out, o)
	}
	if _, err := o.measured(exec.Command("/bin/sh", "-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done"), "shell"); err != nil || o.CPU <= 0 {
		t.Errorf("%v, %+v: no processor time of a loop", err, o)
	}
	before := o.Seconds
	if _, err := o.measured(exec.Command("/bin/sh", "-c", "echo no luck >&2; exit 3"), "shell"); err == nil || !strings.Contains(err.Error(), "no luck") {
		t.Errorf("error %v, want what the command said", err)
	}
	if o.Seconds <= before {
		t.Error("the second command's time was not added")
	}
	if _, err := o.measured(exec.Command(filepath.Join(t.TempDir(), "none")), "nothing"); err == nil {
		t.Error("a program that is not there: no error")
	}
}

func TestSize(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"a", "b"} {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, 1000), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("a", filepath.Join(dir, "c")); err != nil {
		t.Fatal(err)
	}
	files, total, err := size(dir)
	if err != nil || files != 2 || total != 2000 {
		t.Errorf("%d files of %d bytes, %v", files, total, err)
	}
	if err := durable(dir); err != nil {
		t.Error(err)
	}
	if err := durable(filepath.Join(dir, "none")); err == nil {
		t.Error("sync of nothing: no error")
	}
}

func TestMemoryOf(t *testing.T) {
	t.Parallel()
	if m := memoryOf(os.Getpid()); m.own < 1<<20 || m.files < 1<<20 || m.high < 2<<20 {
		t.Errorf("%+v: less than a program that runs", m)
	}
	if m := memoryOf(1 << 30); m != (memory{}) {
		t.Errorf("%+v of a process that is not there", m)
	}
	if err := forgetPeak(1 << 30); err == nil {
		t.Error("a process that is not there: no error")
	}
}

// TestSameMemory: what shares an address space counts once, as a thread does here.
func TestSameMemory(t *testing.T) {
	t.Parallel()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if !sameMemory(os.Getpid(), unix.Gettid()) {
		t.Error("a thread has memory of its own")
	}
	if parentOf(os.Getpid()) != os.Getppid() || parentOf(1<<30) != 0 {
		t.Errorf("parent %d, want %d", parentOf(os.Getpid()), os.Getppid())
	}
	if sameMemory(os.Getpid(), os.Getppid()) || sameMemory(os.Getpid(), 1<<30) {
		t.Error("another process has this one's memory")
	}
}

// TestWatchMemory looks at a child's child that takes memory and then waits for its input to end.
func TestWatchMemory(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	// The last part is never more than what tail holds, until the input ends.
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", `{ head -c 67108864 /dev/zero; cat; } | tail -c 67108864 > /dev/null; echo done`)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	once, end := context.WithCancel(t.Context())
	end() // one look each time
	var peak int64
	for peak < 60<<20 && ctx.Err() == nil {
		peak = watchMemory(once, cmd.Process.Pid)
	}
	if err := errors.Join(in.Close(), cmd.Wait()); err != nil {
		t.Error(err)
	}
	if peak < 60<<20 {
		t.Errorf("peak of %d bytes seen, want 60 MiB at least", peak)
	}
}

func TestServerCPU(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	before := serverCPU(os.Getpid())
	for now := before; now <= before; now = serverCPU(os.Getpid()) {
		if ctx.Err() != nil {
			t.Fatal("a minute of work is not counted")
		}
	}
	if sum := serverCPU(1 << 30); sum != 0 {
		t.Errorf("%v seconds of a process that is not there", sum)
	}
}
