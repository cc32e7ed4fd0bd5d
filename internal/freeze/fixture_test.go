package freeze

import (
	"bufio"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience is a generous upper bound for what must happen at all.
const patience = 60 * time.Second

// eventually polls until it holds.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("did not come to pass: %s", what)
		}
	}
}

func testHost(t testing.TB) *Host {
	t.Helper()
	h, err := OpenHost("/proc", "/sys/fs/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// versions gives the cgroup versions whose freezer this machine has: both on a
// hybrid one.
func versions(t testing.TB) []int {
	t.Helper()
	var vs []int
	for _, m := range testHost(t).mounts {
		if m.version() == 2 || slices.Contains(m.options, "freezer") {
			vs = append(vs, m.version())
		}
	}
	slices.Sort(vs)
	if vs = slices.Compact(vs); len(vs) == 0 {
		t.Fatal("no cgroup freezer on this machine; mount cgroups at /sys/fs/cgroup")
	}
	return vs
}

// fixture is a cgroup like a container's, with processes that count.
type fixture struct {
	Container
	version int
	dir     string
	count   string
}

func freezerRoot(t testing.TB, version int) string {
	t.Helper()
	for _, m := range testHost(t).mounts {
		if m.version() == version && (version == 2 || slices.Contains(m.options, "freezer")) {
			return m.point
		}
	}
	t.Fatalf("no freezer of version %d", version)
	return ""
}

// newFixture makes a cgroup with a loop that forks and counts. It leaves
// nothing behind, frozen or not.
func newFixture(t testing.TB, version int) *fixture {
	t.Helper()
	var id [32]byte
	if _, err := rand.Read(id[:]); err != nil {
		t.Fatal(err)
	}
	f := &fixture{version: version, count: filepath.Join(t.TempDir(), "count")}
	f.ID = hex.EncodeToString(id[:])
	f.Name = "lbtest-" + f.ID[:6]
	f.dir = filepath.Join(freezerRoot(t, version), "lbtest-"+f.ID)
	if err := os.Mkdir(f.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := f.run(t, f.dir, `i=0; while :; do i=$((i+1)); echo $i > "$COUNT.new"; mv "$COUNT.new" "$COUNT"; sleep 0.02; done`)
	f.Pid = cmd.Process.Pid
	t.Cleanup(func() { f.remove(t, cmd) })
	f.mustProgress(t)
	return f
}

// run starts a shell in the cgroup.
func (f *fixture) run(t testing.TB, dir, script string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sh", "-c", `echo $$ > "$DIR/cgroup.procs"; `+script)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "COUNT=" + f.count, "DIR=" + dir}
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// remove kills everything in the cgroup and removes it.
func (f *fixture) remove(t testing.TB, cmd *exec.Cmd) {
	waited := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(waited)
	}()
	f.removeNow(t)
	<-waited
}

// write freezes or thaws as somebody else would.
func (f *fixture) write(t testing.TB, freeze bool) {
	err := os.WriteFile(filepath.Join(f.dir, freezerFile(f.version)), []byte(freezerWord(f.version, freeze)), 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
		t.Error(err)
	}
}

func (f *fixture) open(t testing.TB) freezer {
	t.Helper()
	ino, err := inode(f.dir)
	if err != nil {
		t.Fatal(err)
	}
	fr, err := openFreezer(&Cgroup{Container: f.Container, Version: f.version, Dir: f.dir, Inode: ino})
	if err != nil {
		t.Fatal(err)
	}
	return fr
}

// asked and frozen look at the freezer by fresh files.
func (f *fixture) asked(t testing.TB) bool {
	t.Helper()
	fr := f.open(t)
	defer fr.close()
	on, err := fr.asked()
	if err != nil {
		t.Fatal(err)
	}
	return on
}

func (f *fixture) frozen(t testing.TB) bool {
	t.Helper()
	fr := f.open(t)
	defer fr.close()
	on, err := fr.frozen()
	if err != nil {
		t.Fatal(err)
	}
	return on
}

func (f *fixture) counter() int {
	b, _ := os.ReadFile(f.count)
	n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return n
}

// activity is a text that changes when the processes directly in the cgroup do
// something: which there are, and what they have counted.
func (f *fixture) activity(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(f.dir, "cgroup.procs"))
	if err != nil {
		t.Fatal(err)
	}
	pids := strings.Fields(string(b))
	slices.Sort(pids) // the kernel gives them in any order
	count, _ := os.ReadFile(f.count)
	return strings.Join(append(pids, string(count)), " ")
}

// mustProgress sees the processes inside do more work.
func (f *fixture) mustProgress(t testing.TB) {
	t.Helper()
	n := f.counter()
	eventually(t, "processes of "+f.Name+" go on", func() bool { return f.counter() > n+1 })
}

func mustRun(t testing.TB, fs []*fixture) {
	t.Helper()
	for _, f := range fs {
		eventually(t, f.Name+" is thawed", func() bool { return !f.asked(t) })
		f.mustProgress(t)
	}
}

func fixtures(t testing.TB, version, n int) []*fixture {
	t.Helper()
	var fs []*fixture
	for range n {
		fs = append(fs, newFixture(t, version))
	}
	return fs
}

func containers(fs []*fixture) []Container {
	var cs []Container
	for _, f := range fs {
		cs = append(cs, f.Container)
	}
	return cs
}

func newTestSet(t testing.TB, fs []*fixture) *Set {
	t.Helper()
	s, err := NewSet(SetConfig{Host: testHost(t), Containers: containers(fs)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// holder is a parent process under test.
type holder struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
	// guards are its guardians, known once it is past the step guarded.
	guards []int
}

func startHolder(t testing.TB, cfg holderConfig) *holder {
	t.Helper()
	doc, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	h := &holder{t: t, cmd: exec.Command("/proc/self/exe", holderCommand, string(doc))}
	h.cmd.Stderr = os.Stderr
	if h.in, err = h.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	h.out = bufio.NewReader(out)
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.signal(unix.SIGKILL)
		_ = h.cmd.Wait()
		for _, g := range h.guards {
			eventually(t, fmt.Sprintf("guardian %d ends", g), func() bool { return !alive(g) })
		}
	})
	return h
}

// line is the next line that the holder says.
func (h *holder) line() string {
	h.t.Helper()
	s, err := h.out.ReadString('\n')
	if err != nil {
		h.t.Fatalf("holder ended without a word: %v", err)
	}
	return strings.TrimSpace(s)
}

// await waits until the holder is at a step and learns who its guardians are.
func (h *holder) await(at string) {
	h.t.Helper()
	if got := h.line(); got != "at "+at {
		h.t.Fatalf("holder says %q, want it at %s", got, at)
	}
	h.guards = guardiansOf(h.t, h.cmd.Process.Pid)
}

// goOn lets a holder that waits go on.
func (h *holder) goOn() {
	if _, err := io.WriteString(h.in, "go\n"); err != nil {
		h.t.Fatal(err)
	}
}

func (h *holder) signal(s unix.Signal) { _ = unix.Kill(h.cmd.Process.Pid, s) }

// stop stops the holder and waits until every thread of it stands.
func (h *holder) stop() {
	h.t.Helper()
	h.signal(unix.SIGSTOP)
	eventually(h.t, "the holder stands", func() bool {
		states := threadStates(h.cmd.Process.Pid)
		return states != "" && strings.Trim(states, "T") == ""
	})
}

// kill kills the holder and waits until it is gone, with its locks.
func (h *holder) kill() {
	h.signal(unix.SIGKILL)
	_ = h.cmd.Wait()
}

// result is the holder's last word.
func (h *holder) result() string {
	h.t.Helper()
	h.goOn()
	s := h.line()
	h.t.Log("holder:", s)
	return strings.Fields(s)[0]
}

// guardiansOf finds the guardian processes of a parent.
func guardiansOf(t testing.TB, parent int) []int {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, d := range dirs {
		args, _ := os.ReadFile(filepath.Join(d, "cmdline"))
		stat, _ := os.ReadFile(filepath.Join(d, "stat"))
		_, rest, _ := strings.Cut(string(stat), ") ")
		f := strings.Fields(rest)
		if len(f) < 2 || f[0] == "Z" || f[1] != strconv.Itoa(parent) || !strings.HasPrefix(string(args), GuardianCommand+"\x00") {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(d))
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	slices.Sort(pids)
	return pids
}

// alive tells whether any thread of a process runs. The first one of a killed
// process may be a zombie while others still hold its files.
func alive(pid int) bool { return strings.Trim(threadStates(pid), "ZX") != "" }

// threadStates gives the state letters of a process's threads.
func threadStates(pid int) (states string) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, task := range tasks {
		b, err := os.ReadFile(task)
		_, rest, _ := strings.Cut(string(b), ") ")
		if err == nil && rest != "" {
			states += rest[:1]
		}
	}
	return states
}

// records lists the freeze records that are not empty.
func records(t testing.TB, dir string) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, recordPrefix+"*"))
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(all, func(p string) bool {
		st, err := os.Stat(p)
		return err != nil || st.Size() == 0
	})
}

// removeNow ends the container: its processes and its cgroups go away.
func (f *fixture) removeNow(t testing.TB) {
	t.Helper()
	eventually(t, "cgroup "+f.dir+" is removed", func() bool {
		f.write(t, false)
		pids, err := pidsBelow(f.dir)
		if errors.Is(err, os.ErrNotExist) {
			return true
		}
		for _, p := range pids {
			_ = unix.Kill(p, unix.SIGKILL)
		}
		nested, _ := filepath.Glob(filepath.Join(f.dir, "*", "cgroup.procs"))
		for _, n := range nested {
			_ = os.Remove(filepath.Dir(n))
		}
		return os.Remove(f.dir) == nil
	})
}
