package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// outcome is what one step of one tool took.
type outcome struct {
	Seconds  float64 `json:"seconds"`
	CPU      float64 `json:"cpu_seconds"`         // of the tool and of the servers that work for it
	Peak     int64   `json:"peak_bytes"`          // of resident memory
	Frozen   float64 `json:"frozen_ms,omitempty"` // how long the container was frozen; 0 where the tool does not freeze
	Stored   int64   `json:"stored_bytes"`        // in the repository, afterwards
	Registry int64   `json:"registry_peak_bytes,omitempty"`
}

// measured runs a command and returns its standard output. Time and memory are added to o. The command
// is shown in errors without its environment, which may hold a password.
func (o *outcome) measured(cmd *exec.Cmd, what string) ([]byte, error) {
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	cmd.WaitDelay = time.Minute
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	ctx, stop := context.WithCancel(context.Background())
	peak := make(chan int64, 1)
	go func() { peak <- watchMemory(ctx, cmd.Process.Pid) }()
	err := cmd.Wait()
	o.Seconds += time.Since(began).Seconds()
	o.CPU += (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
	stop()
	o.Peak = max(o.Peak, <-peak)
	if err != nil {
		text := strings.TrimSpace(errOut.String())
		return out.Bytes(), fmt.Errorf("%s: %w: %s", what, err, text[max(0, len(text)-2000):])
	}
	return out.Bytes(), nil
}

// watchMemory samples a process and its descendants until it is told to end: the peak is the largest sum
// of resident memory, or the peak that the kernel kept of a single process, if that is more. Pages of
// files count once, as those of the largest: processes of one program share them. What the kernel reports
// of a child that has ended would include this process's own memory before exec.
func watchMemory(ctx context.Context, pid int) int64 {
	var peak int64
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		var own, files int64
		for _, p := range descendants(pid, nil) {
			if p != pid && sameMemory(p, parentOf(p)) {
				continue
			}
			m := memoryOf(p)
			own += m.own
			files = max(files, m.files)
			peak = max(peak, m.high)
		}
		peak = max(peak, own+files)
		select {
		case <-ctx.Done():
			return peak
		case <-tick.C:
		}
	}
}

// sameMemory reports whether two processes have one address space: a child between vfork and exec, which
// the kernel shows with all of its parent's memory (kcmp(2), KCMP_VM).
func sameMemory(a, b int) bool {
	const kcmpVM = 1
	order, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(a), uintptr(b), kcmpVM, 0, 0, 0)
	return errno == 0 && order == 0
}

// parentOf is the parent of a process; 0 of one that has ended.
func parentOf(pid int) int {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	var state string
	var parent int
	if _, err := fmt.Sscan(string(data[bytes.LastIndexByte(data, ')')+1:]), &state, &parent); err != nil {
		return 0
	}
	return parent
}

// descendants are the process and its children's, as far as they are there.
func descendants(pid int, list []int) []int {
	list = append(list, pid)
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return list
	}
	for _, path := range tasks {
		data, err := os.ReadFile(path)
		if err != nil { // it has ended
			continue
		}
		for _, field := range strings.Fields(string(data)) {
			if child, err := strconv.Atoi(field); err == nil {
				list = descendants(child, list)
			}
		}
	}
	return list
}

// memory is what a process has in memory, in bytes.
type memory struct {
	own   int64 // pages of no file
	files int64 // pages of files, such as the program's
	high  int64 // the most that both together ever were
}

// memoryOf looks at a process; there is nothing of one that has ended.
func memoryOf(pid int) (m memory) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return m
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		key, value, _ := strings.Cut(lines.Text(), ":")
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		if err != nil {
			continue
		}
		switch key {
		case "RssAnon", "RssShmem":
			m.own += kib << 10
		case "RssFile":
			m.files = kib << 10
		case "VmHWM":
			m.high = kib << 10
		}
	}
	return m
}

// ticksPerSecond is the unit of times in /proc (proc(5)), which is the same on all machines that Linux runs on today.
const ticksPerSecond = 100

// serverCPU is how long processes and the children that they waited for have used a processor, in seconds.
func serverCPU(pids ...int) (sum float64) {
	for _, pid := range pids {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil { // it has ended, and whoever speaks to it will say so
			continue
		}
		// The name, in parentheses, may hold anything.
		fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
		for _, i := range []int{11, 12, 13, 14} { // utime, stime, cutime, cstime
			if len(fields) > i {
				n, err := strconv.ParseFloat(fields[i], 64)
				if err == nil {
					sum += n / ticksPerSecond
				}
			}
		}
	}
	return sum
}

// forgetPeak lets the kernel count a running process's peak anew (proc(5), clear_refs).
func forgetPeak(pid int) error {
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0o200); err != nil {
		return fmt.Errorf("forget peak memory of process %d: %w", pid, err)
	}
	return nil
}

// size is the bytes of all files below a directory.
func size(dir string) (files int, total int64, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) { // a file that a server has just removed
				return nil
			}
			return err
		}
		if d.Type().IsRegular() {
			info, err := d.Info()
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			files++
			total += info.Size()
		}
		return nil
	})
	if err != nil {
		return 0, 0, fmt.Errorf("measure %s: %w", dir, err)
	}
	return files, total, nil
}

// durable returns when everything that was written to the file system of dir is on the disk.
func durable(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("sync file system of %s: %w", dir, err)
	}
	return nil
}
