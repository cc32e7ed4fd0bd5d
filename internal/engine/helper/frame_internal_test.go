package helper

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func stream(t *testing.T, frames ...any) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	for i := 0; i < len(frames); i += 2 {
		if err := writeFrame(&b, byte(frames[i].(rune)), []byte(frames[i+1].(string))); err != nil {
			t.Fatal(err)
		}
	}
	return &b
}

func TestSession(t *testing.T) {
	t.Parallel()
	s, err := newSession(stream(t, frameJob, `{"args":["snapshot","shop"],"env":{"K":"v"}}`, frameInput, "one ", frameInput, "two", frameEnd, ""))
	if err != nil || len(s.Args) != 2 || s.Env["K"] != "v" {
		t.Fatalf("%+v, %v", s, err)
	}
	in, err := io.ReadAll(s.Stdin)
	if err != nil || string(in) != "one two" {
		t.Errorf("input %q, %v", in, err)
	}
	<-s.Gone // the stream has ended
}

// TestSessionBreaks: an input that breaks off is no complete input.
func TestSessionBreaks(t *testing.T) {
	t.Parallel()
	s, err := newSession(stream(t, frameJob, `{}`, frameInput, "half"))
	if err != nil {
		t.Fatal(err)
	}
	if in, err := io.ReadAll(s.Stdin); !errors.Is(err, io.ErrUnexpectedEOF) || string(in) != "half" {
		t.Errorf("input %q, %v", in, err)
	}
	<-s.Gone
}

func TestSessionRefuses(t *testing.T) {
	t.Parallel()
	for name, in := range map[string]string{
		"nothing":       "",
		"half a head":   "J\x00",
		"half a job":    "J\x00\x00\x00\x09{}",
		"too long":      "J\xff\xff\xff\xff",
		"no job first":  "I\x00\x00\x00\x01x",
		"no JSON":       "J\x00\x00\x00\x06geheim",
		"other program": "GET / HTTP/1.1\r\n",
	} {
		if _, err := newSession(strings.NewReader(in)); err == nil || strings.Contains(err.Error(), "geheim") {
			t.Errorf("%s: error %v, want one without the content", name, err)
		}
	}
}

func TestInsideOutside(t *testing.T) {
	if s, ok, err := Inside(strings.NewReader("")); s != nil || ok || err != nil {
		t.Errorf("a process that is no helper: %v, %v, %v", s, ok, err)
	}
	t.Setenv(variable, "1")
	if _, ok, err := Inside(strings.NewReader("")); !ok || err == nil {
		t.Errorf("a helper without a job: %v, %v", ok, err)
	}
}

func TestLeaveCgroupFiles(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		files []string
		want  []string
		ok    bool
	}{
		"version 2": {[]string{"cgroup.controllers", "cgroup.procs"}, []string{"cgroup.procs"}, true},
		"version 1": {[]string{"cpu,cpuacct/cgroup.procs", "freezer/cgroup.procs", "other/x"}, []string{"cpu,cpuacct/cgroup.procs", "freezer/cgroup.procs"}, true},
		"none":      {[]string{"x"}, nil, false},
	} {
		root := t.TempDir()
		base := filepath.Join(root, "sys/fs/cgroup")
		for _, f := range c.files {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(base, f)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(base, f), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := LeaveCgroup(root, 42); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
		for _, f := range c.want {
			if b, err := os.ReadFile(filepath.Join(base, f)); err != nil || string(b) != "42" {
				t.Errorf("%s: %s holds %q, %v", name, f, b, err)
			}
		}
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte("J\x00\x00\x00\x02{}"))
	f.Add([]byte("E\x00\x00\x00\x00I\x00\x00\x00\x01x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		for {
			kind, body, err := readFrame(r)
			if err != nil {
				return
			}
			var again bytes.Buffer
			if err := writeFrame(&again, kind, body); err != nil {
				t.Fatal(err)
			}
			k, bb, err := readFrame(&again)
			if err != nil || k != kind || !bytes.Equal(bb, body) {
				t.Fatalf("frame does not come back: %v", err)
			}
		}
	})
}
