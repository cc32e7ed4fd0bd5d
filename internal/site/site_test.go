package site_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"lifeboat/internal/dr"
	"lifeboat/internal/site"
)

const system dr.System = "shop"

// TestMain makes the test binary the other process where the tests need one.
func TestMain(m *testing.M) {
	if what := os.Getenv("LIFEBOAT_SITE_TEST"); what != "" {
		if err := other(what, os.Getenv("LIFEBOAT_SITE_DIR")); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// other is what the other process does; each line that it says is awaited by
// the test. It never ends by itself once it has begun.
func other(what, dir string) error {
	s, err := site.Open(dir, "engine")
	if err != nil {
		return err
	}
	switch what {
	case "lock":
		_, err := s.Lock(system)
		if errors.Is(err, dr.ErrHeld) {
			fmt.Println("held")
			return nil
		}
		if err != nil {
			return err
		}
		fmt.Println("locked")
		select {}
	case "write":
		for n := 1; ; n++ {
			if err := s.SetBringup(system, bringup(n)); err != nil {
				return err
			}
			if err := s.Mark(system, key(n), key(n+1)); err != nil {
				return err
			}
			if err := s.Unmark(system, key(n)); err != nil {
				return err
			}
			fmt.Println(n)
		}
	}
	return fmt.Errorf("what is %q", what)
}

func key(n int) string { return "volume:v" + strconv.Itoa(n) }

// bringup is a record of some size of which each part names n.
func bringup(n int) *site.Bringup {
	b := &site.Bringup{Epoch: dr.Epoch(n), Volumes: map[string]string{}, Containers: map[string]site.BroughtContainer{}}
	for i := range 50 {
		b.Volumes[strconv.Itoa(i)] = strconv.Itoa(n)
	}
	b.Containers["web"] = site.BroughtContainer{ID: strconv.Itoa(n), Local: json.RawMessage(`{"a":1}`)}
	return b
}

type process struct {
	cmd   *exec.Cmd
	lines *bufio.Scanner
}

func start(t *testing.T, what, dir string) *process {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: exec.CommandContext(t.Context(), exe)}
	p.cmd.Env = append(os.Environ(), "LIFEBOAT_SITE_TEST="+what, "LIFEBOAT_SITE_DIR="+dir)
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.lines = bufio.NewScanner(out)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return p
}

// line waits for the next thing that the process says; "" at its end.
func (p *process) line() string {
	p.lines.Scan()
	return p.lines.Text()
}

// kill ends it as the kernel would, and gives what it had said until then.
func (p *process) kill(t *testing.T) (last string) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for p.lines.Scan() {
		last = p.lines.Text()
	}
	_ = p.cmd.Wait()
	return last
}

func open(t *testing.T, dir string) *site.State {
	t.Helper()
	s, err := site.Open(dir, "engine")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// path is where a file of the system's state lies.
func path(t *testing.T, s *site.State, name string) string {
	t.Helper()
	dir, err := s.SystemDir(system)
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, name)
}

func TestLockOfTwoProcesses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir)
	p := start(t, "lock", dir)
	if got := p.line(); got != "locked" {
		t.Fatalf("the other process says %q", got)
	}
	if _, err := s.Lock(system); !errors.Is(err, dr.ErrHeld) || !strings.Contains(err.Error(), "lock") {
		t.Fatalf("lock that another process holds: %v", err)
	}
	// Another system, and another engine, have locks of their own.
	free, err := s.Lock("blog")
	if err != nil {
		t.Fatal(err)
	}
	free()
	engine2, err := site.Open(dir, "engine2")
	if err != nil {
		t.Fatal(err)
	}
	if free, err = engine2.Lock(system); err != nil {
		t.Fatal(err)
	}
	free()
	// A lock goes with its process, however that ended.
	p.kill(t)
	free, err = s.Lock(system)
	if err != nil {
		t.Fatalf("lock of a process that was killed: %v", err)
	}
	if _, err := s.Lock(system); !errors.Is(err, dr.ErrHeld) {
		t.Fatalf("the same process again: %v", err)
	}
	if got := start(t, "lock", dir).line(); got != "held" {
		t.Fatalf("another process finds %q", got)
	}
	free()
	p = start(t, "lock", dir)
	if got := p.line(); got != "locked" {
		t.Fatalf("after it was given back another process finds %q", got)
	}
	p.kill(t)
}

// A process that is killed while it writes leaves the old record or the new
// one, and what it had said to be done is there.
func TestKilledWhileWriting(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir)
	for range 20 {
		p := start(t, "write", dir)
		said := p.line()
		for range 3 {
			said = p.line()
		}
		if last := p.kill(t); last != "" {
			said = last
		}
		n, err := strconv.Atoi(said)
		if err != nil {
			t.Fatalf("the other process says %q", said)
		}
		b, err := s.Bringup(system)
		if err != nil || b == nil || int(b.Epoch) < n || int(b.Epoch) > n+1 {
			t.Fatalf("after round %d: %+v, %v", n, b, err)
		}
		have := strconv.Itoa(int(b.Epoch))
		for _, v := range b.Volumes {
			if v != have || len(b.Volumes) != 50 || b.Containers["web"].ID != have {
				t.Fatalf("the record of round %s holds %+v", have, b)
			}
		}
		marked, err := s.Marked(system)
		if err != nil || !slices.Contains(marked, key(n+1)) && !slices.Contains(marked, key(n+2)) || slices.Contains(marked, key(n)) {
			t.Fatalf("after round %d marked: %v, %v", n, marked, err)
		}
		if err := s.Unmark(system, marked...); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMarks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir)
	want := func(keys ...string) {
		t.Helper()
		got, err := open(t, dir).Marked(system) // as another run sees it
		if err != nil || !slices.Equal(got, keys) {
			t.Fatalf("marked %v, %v; want %v", got, err, keys)
		}
	}
	for _, step := range []struct {
		do   func(dr.System, ...string) error
		keys []string
		want []string
	}{
		{s.Unmark, []string{"volume:a"}, nil},
		{s.Mark, []string{"volume:b", "volume:a"}, []string{"volume:a", "volume:b"}},
		{s.Mark, []string{"volume:b", "layer:c"}, []string{"layer:c", "volume:a", "volume:b"}},
		{s.Mark, nil, []string{"layer:c", "volume:a", "volume:b"}},
		{s.Unmark, []string{"volume:a", "volume:x"}, []string{"layer:c", "volume:b"}},
		{s.Unmark, []string{"volume:b", "layer:c"}, nil},
	} {
		if err := step.do(system, step.keys...); err != nil {
			t.Fatal(err)
		}
		want(step.want...)
	}
	if _, err := os.Stat(path(t, s, "marked.json")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file of no marks: %v", err)
	}
	if other, err := s.Marked("blog"); err != nil || len(other) != 0 {
		t.Errorf("marks of another system: %v, %v", other, err)
	}
}

// A file that cannot be read is never taken for none: then a half written tree
// would be served, or a stand-in's overrides would travel.
func TestDamagedFiles(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ file, content string }{
		"torn record":        {"bringup.json", `{"format":1,"snapshot":"`},
		"empty record":       {"bringup.json", ``},
		"record of zeros":    {"bringup.json", "\x00\x00\x00\x00"},
		"later record":       {"bringup.json", `{"format":2,"volumes":{"a":"a"}}`},
		"record of no kind":  {"bringup.json", `{}`},
		"record of nothing":  {"bringup.json", `null`},
		"torn marks":         {"marked.json", `{"volume:a":tr`},
		"empty marks":        {"marked.json", ``},
		"marks of zeros":     {"marked.json", "\x00\x00\x00\x00"},
		"marks in later way": {"marked.json", `{"format":2,"trees":["volume:a"]}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := open(t, t.TempDir())
			file := path(t, s, tc.file)
			if err := os.WriteFile(file, []byte(tc.content), 0o600); err != nil {
				t.Fatal(err)
			}
			tells := func(what string, err error) {
				t.Helper()
				if err == nil || !strings.Contains(err.Error(), tc.file) || !strings.Contains(err.Error(), "move the file away") {
					t.Errorf("%s: %v", what, err)
				}
			}
			if tc.file == "bringup.json" {
				b, err := s.Bringup(system)
				tells(fmt.Sprintf("bring-up %v", b), err)
				// A new bring-up replaces it.
				if err := s.SetBringup(system, bringup(7)); err != nil {
					t.Fatal(err)
				}
				if b, err := s.Bringup(system); err != nil || b.Epoch != 7 {
					t.Errorf("after a new one: %+v, %v", b, err)
				}
				return
			}
			marked, err := s.Marked(system)
			tells(fmt.Sprintf("marked %v", marked), err)
			tells("mark", s.Mark(system, "volume:b"))
			tells("unmark", s.Unmark(system, "volume:b"))
			if got, err := os.ReadFile(file); err != nil || string(got) != tc.content {
				t.Errorf("the damaged file was changed to %q, %v", got, err)
			}
		})
	}
}

func TestBringup(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir)
	if b, err := s.Bringup(system); b != nil || err != nil {
		t.Fatalf("never brought up: %v, %v", b, err)
	}
	for n := range 3 {
		if err := s.SetBringup(system, bringup(n)); err != nil {
			t.Fatal(err)
		}
		b, err := open(t, dir).Bringup(system)
		if err != nil || int(b.Epoch) != n || string(b.Containers["web"].Local) != `{"a":1}` {
			t.Fatalf("record %+v, %v", b, err)
		}
	}
	st, err := os.Stat(path(t, s, "bringup.json"))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	journal, err := s.JournalPath(system, "failover")
	if err != nil || filepath.Base(journal) != "failover.journal" || !strings.HasPrefix(journal, s.Dir()) {
		t.Errorf("journal %q, %v", journal, err)
	}
}

func TestStateDirectory(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := site.Open(file, "engine"); err == nil || !strings.Contains(err.Error(), "state_dir") {
		t.Errorf("state below a file: %v", err)
	}
	s := open(t, t.TempDir())
	st, err := os.Stat(s.Dir())
	if err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
}
