package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"lifeboat/internal/dr"
)

// HostFS says how this process reaches the files of the engine's host. Paths
// that the engine names (volume mount points, upper directories, bind sources)
// are paths of the engine's own mount namespace, which need not be ours.
//
// It names a process by pid, so it is to be asked for anew for each run; an
// engine that restarts has another pid.
type HostFS struct {
	// Prefix stands before a path of the engine's mount namespace; empty where
	// it is also ours. Only meaningful if Local.
	Prefix string
	// Local is false where the files cannot be reached from this process; the
	// caller then runs itself in the helper container.
	Local bool
	// Reason says why Local is false.
	Reason string
	// EnginePID is the process that serves the engine's API, 0 if unknown.
	EnginePID int
	// RootDir is the engine's data directory, in its own mount namespace.
	RootDir string

	facts facts
}

// Root is the prefix under which the engine's mount namespace is visible here,
// and whether it is visible at all.
func (h HostFS) Root() (prefix string, local bool) { return h.Prefix, h.Local }

// Info describes the engine whose files these are.
func (h HostFS) Info() dr.EngineInfo { return h.facts.EngineInfo }

// HostFS finds how to reach the engine's files. That they cannot be reached is
// no error: Local is false and Reason says why.
func (e *Engine) HostFS(ctx context.Context) (HostFS, error) {
	f, err := e.facts(ctx)
	if err != nil {
		return HostFS{}, err
	}
	return e.hostFS(f), nil
}

func (e *Engine) hostFS(f facts) HostFS {
	h := HostFS{RootDir: f.rootDir, facts: f}
	if e.socket == "" {
		h.Reason = "the engine is reached over the network (" + redactHost(e.host) + ")"
		return h
	}
	pid, err := enginePID(e.socket)
	if err != nil && e.hostRoot == "" {
		h.Reason = err.Error()
		return h
	}
	h.EnginePID = pid
	var why []string
	for _, prefix := range e.candidates(pid) {
		err := canSee(prefix, f.rootDir)
		if err == nil {
			err = canReadAll(prefix, f)
		}
		if err != nil {
			why = append(why, err.Error())
			continue
		}
		h.Prefix, h.Local = prefix, true
		return h
	}
	h.Reason = strings.Join(why, "; ")
	return h
}

// candidates lists the prefixes to try, the best first. An equal mount
// namespace needs none. Else /proc/PID/root is right even where paths look the
// same in both: what the engine mounted (volumes of the local driver with
// options, say) is visible in its own namespace only.
func (e *Engine) candidates(pid int) []string {
	var c []string
	if pid > 0 {
		if sameMountNamespace(pid) {
			return []string{""}
		}
		c = append(c, fmt.Sprintf("/proc/%d/root", pid))
	}
	if e.hostRoot != "" {
		c = append(c, e.hostRoot)
	}
	return c
}

func sameMountNamespace(pid int) bool {
	own, err1 := os.Readlink("/proc/self/ns/mnt")
	its, err2 := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err1 != nil || err2 != nil || own != its {
		return false
	}
	// A chroot in the same namespace still shifts paths.
	a, err1 := os.Stat("/")
	b, err2 := os.Stat(fmt.Sprintf("/proc/%d/root/", pid))
	return err1 == nil && err2 == nil && os.SameFile(a, b)
}

// canSee checks that the engine's data directory is there under prefix and can
// be listed, which is what tells a right prefix from a wrong one.
func canSee(prefix, rootDir string) error {
	h := HostFS{Prefix: prefix, Local: true}
	p, err := h.Path(rootDir)
	if err == nil {
		var d *os.File
		if d, err = os.Open(p); err == nil {
			_, err = d.Readdirnames(1)
			_ = d.Close()
			if err != nil && err.Error() == "EOF" {
				err = nil
			}
		}
	}
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("the engine's files cannot be read by this user (%s)", prefix+rootDir)
	}
	if err != nil {
		return fmt.Errorf("the engine's data directory %s is not visible (%v)", rootDir, err)
	}
	return nil
}

// canReadAll checks that this process may read files of any owner, not only see
// the directory: that takes root or its right to read. An engine without root
// keeps its containers' files under ids that only its own user namespace has.
func canReadAll(prefix string, f facts) error {
	if os.Geteuid() == 0 || mayReadAll() {
		return nil
	}
	h := HostFS{Prefix: prefix, Local: true}
	p, err := h.Path(f.rootDir)
	if err != nil {
		return err
	}
	st, err := os.Stat(p)
	if err != nil {
		return fmt.Errorf("the engine's data directory %s: %w", f.rootDir, err)
	}
	if own, ok := st.Sys().(*syscall.Stat_t); ok && int(own.Uid) == os.Geteuid() && !f.rootless {
		return nil
	}
	return errors.New("the engine's files cannot all be read by this user")
}

// mayReadAll reports whether the process has CAP_DAC_READ_SEARCH or
// CAP_DAC_OVERRIDE.
func mayReadAll() bool {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		if v, ok := strings.CutPrefix(line, "CapEff:"); ok {
			caps, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64)
			return err == nil && caps&(1<<2|1<<1) != 0
		}
	}
	return false
}

// Path maps an absolute path of the engine's mount namespace to one that this
// process can open. All symbolic links but those of what the path would create
// are followed inside the engine's root, so the result has none (invariant 10:
// an absolute link must not lead into this process's own root). A path that
// does not exist gives an error that is fs.ErrNotExist.
func (h HostFS) Path(p string) (string, error) {
	if !h.Local {
		return "", fmt.Errorf("path %s of the engine's host: %s", p, h.Reason)
	}
	if !filepath.IsAbs(p) {
		return "", fmt.Errorf("path %q of the engine's host is not absolute", p)
	}
	todo := strings.Split(filepath.Clean(p), "/")
	done := "" // resolved, in the engine's namespace
	for links := 0; len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			done = filepath.Dir("/" + done)
			if done == "/" {
				done = ""
			}
			continue
		}
		next := done + "/" + name
		target, err := os.Readlink(h.Prefix + next)
		if err != nil {
			if errors.Is(err, syscall.EINVAL) { // not a link
				done = next
				continue
			}
			return "", fmt.Errorf("path %s of the engine's host: %w", p, err)
		}
		if links++; links > 40 {
			return "", fmt.Errorf("path %s of the engine's host: %w", p, syscall.ELOOP)
		}
		if filepath.IsAbs(target) {
			done = ""
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	if h.Prefix+done == "" {
		return "/", nil
	}
	return h.Prefix + done, nil
}

// ServerRoot is the root directory of the process that serves a unix socket, as
// a path that this process can open (below /proc).
func ServerRoot(socket string) (string, error) {
	pid, err := enginePID(socket)
	if err != nil {
		return "", err
	}
	root := fmt.Sprintf("/proc/%d/root", pid)
	if _, err := os.Stat(root + "/"); err != nil {
		return "", fmt.Errorf("root directory of the engine's process: %w", err)
	}
	return root, nil
}

// enginePID finds the process that serves a unix socket. The kernel remembers
// who called listen; with socket activation that is init or systemd, so then
// whoever else holds the socket is taken.
func enginePID(socket string) (int, error) {
	pid, err := peerPID(socket)
	if err != nil {
		return 0, err
	}
	if pid == 0 {
		return 0, errors.New("the engine runs in another pid namespace")
	}
	if pid != 1 {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil {
			return pid, nil
		}
		// Whoever listened is gone, the socket was handed on.
	}
	if holder := socketHolder(socket); holder != 0 {
		return holder, nil
	}
	return pid, nil
}

func peerPID(socket string) (int, error) {
	path, done, err := shortSocketPath(socket)
	if err != nil {
		return 0, fmt.Errorf("engine socket %s: %w", socket, err)
	}
	defer done()
	c, err := net.Dial("unix", path)
	if err != nil {
		return 0, fmt.Errorf("engine socket %s: %w", socket, err)
	}
	defer c.Close()
	rc, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("engine socket %s: %w", socket, err)
	}
	var cred *syscall.Ucred
	var credErr error
	if err := rc.Control(func(fd uintptr) {
		cred, credErr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil {
		return 0, fmt.Errorf("engine socket %s: %w", socket, err)
	}
	if credErr != nil {
		return 0, fmt.Errorf("engine socket %s: credentials of the peer: %w", socket, credErr)
	}
	return int(cred.Pid), nil
}

// socketHolder finds a process other than init that holds the listening socket
// at path, 0 if there is none or it may not be looked at.
func socketHolder(path string) int {
	table, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return 0
	}
	want := map[string]bool{}
	for line := range strings.SplitSeq(string(table), "\n") {
		// Num RefCount Protocol Flags Type St Inode Path
		f := strings.Fields(line)
		if len(f) == 8 && f[3] == "00010000" && samePath(f[7], path) {
			want["socket:["+f[6]+"]"] = true
		}
	}
	if len(want) == 0 {
		return 0
	}
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, proc := range procs {
		pid, err := strconv.Atoi(filepath.Base(proc))
		if err != nil || pid == 1 {
			continue
		}
		fds, _ := os.ReadDir(proc + "/fd")
		for _, fd := range fds {
			if l, err := os.Readlink(proc + "/fd/" + fd.Name()); err == nil && want[l] {
				return pid
			}
		}
	}
	return 0
}

func samePath(a, b string) bool {
	if a == b {
		return true
	}
	ra, err1 := filepath.EvalSymlinks(a)
	rb, err2 := filepath.EvalSymlinks(b)
	return err1 == nil && err2 == nil && ra == rb
}

// shortSocketPath gives a name of at most 107 bytes, what a socket address
// holds, for a socket that may lie deeper. The name is good until done is called.
func shortSocketPath(path string) (short string, done func(), err error) {
	if len(path) < 108 {
		return path, func() {}, nil
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)), func() { _ = dir.Close() }, nil
}

// redactHost is the host without anything that could be a secret.
func redactHost(host string) string {
	if i := strings.LastIndex(host, "@"); i >= 0 {
		if j := strings.Index(host, "://"); j >= 0 && j < i {
			return host[:j+3] + host[i+1:]
		}
	}
	return host
}
