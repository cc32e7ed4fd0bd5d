package freeze

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var (
	idA = strings.Repeat("a1", 32)
	idB = strings.Repeat("b2", 32)
)

// fakeHost lays out a proc and a cgroup tree as the kernel shows them. Keys of
// procs are "self", "1" or a pid; cgroups maps directories, relative to the
// cgroup root, to the pids in them.
type fakeHost struct {
	mounts  []string // type|root|mount point below the cgroup root|options
	procs   map[string]string
	cgroups map[string][]int
}

func (f fakeHost) open(t *testing.T) (*Host, string) {
	t.Helper()
	dir := t.TempDir()
	proc, root := filepath.Join(dir, "proc"), filepath.Join(dir, "cg roup")
	var info strings.Builder
	fmt.Fprintf(&info, "22 1 0:20 / / rw - ext4 /dev/root rw\n")
	for i, m := range f.mounts {
		p := strings.Split(m, "|")
		point := strings.ReplaceAll(filepath.Join(root, p[2]), " ", `\040`)
		fmt.Fprintf(&info, "%d 22 0:%d %s %s rw,relatime shared:4 - %s cgroup rw,%s\n", i+30, i+30, p[1], point, p[0], p[3])
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	self := strconv.Itoa(os.Getpid())
	write(filepath.Join(proc, self, "mountinfo"), info.String())
	if err := os.Symlink(self, filepath.Join(proc, "self")); err != nil {
		t.Fatal(err)
	}
	for pid, text := range f.procs {
		if pid == "self" {
			pid = self
		}
		write(filepath.Join(proc, pid, "cgroup"), text)
	}
	for d, pids := range f.cgroups {
		var list string
		for _, p := range pids {
			list += fmt.Sprintln(p)
		}
		write(filepath.Join(root, d, "cgroup.procs"), list)
		write(filepath.Join(root, d, "freezer.state"), "THAWED\n")
		write(filepath.Join(root, d, "freezer.self_freezing"), "0\n")
		write(filepath.Join(root, d, "cgroup.freeze"), "0\n")
		write(filepath.Join(root, d, "cgroup.events"), "populated 1\nfrozen 0\n")
	}
	h, err := OpenHost(proc, root)
	if err != nil {
		t.Fatal(err)
	}
	return h, root
}

const (
	v1Mount = "cgroup|/|freezer|freezer"
	v2Mount = "cgroup2|/||nsdelegate"
)

func TestFind(t *testing.T) {
	plain := map[string]string{"self": "0::/user.slice\n", "1": "0::/init.scope\n"}
	with := func(m map[string]string, pid, text string) map[string]string {
		out := map[string]string{pid: text}
		for k, v := range m {
			if k != pid {
				out[k] = v
			}
		}
		return out
	}
	v1 := map[string]string{"self": "6:freezer:/\n0::/\n", "1": "6:freezer:/\n0::/\n"}
	for _, tc := range []struct {
		name string
		host fakeHost
		want string // directory relative to the cgroup root
		v    int
		err  error
	}{
		{name: "v2 systemd driver", v: 2, want: "system.slice/docker-" + idA + ".scope", host: fakeHost{
			mounts:  []string{v2Mount},
			procs:   with(plain, "77", "0::/system.slice/docker-"+idA+".scope\n"),
			cgroups: map[string][]int{"system.slice/docker-" + idA + ".scope": {77, 78}},
		}},
		{name: "v1 cgroupfs driver", v: 1, want: "freezer/docker/" + idA, host: fakeHost{
			mounts:  []string{v1Mount, "cgroup|/|cpu|cpu"},
			procs:   with(v1, "77", "6:freezer:/docker/"+idA+"\n2:cpu:/docker/"+idA+"\n0::/\n"),
			cgroups: map[string][]int{"freezer/docker/" + idA: {77}, "cpu/docker/" + idA: {77}},
		}},
		{name: "hybrid prefers the freezer of version 1", v: 1, want: "freezer/docker/" + idA, host: fakeHost{
			mounts:  []string{v1Mount, "cgroup2|/|unified|rw"},
			procs:   with(v1, "77", "6:freezer:/docker/"+idA+"\n0::/docker/"+idA+"\n"),
			cgroups: map[string][]int{"freezer/docker/" + idA: {77}, "unified/docker/" + idA: {77}},
		}},
		{name: "hybrid, container in version 2 only", v: 2, want: "unified/docker/" + idA, host: fakeHost{
			mounts:  []string{v1Mount, "cgroup2|/|unified|rw"},
			procs:   with(v1, "77", "6:freezer:/\n0::/docker/"+idA+"\n"),
			cgroups: map[string][]int{"freezer": {77}, "unified/docker/" + idA: {77}},
		}},
		{name: "freezer mounted together with another controller", v: 1, want: "both/docker/" + idA, host: fakeHost{
			mounts:  []string{"cgroup|/|both|devices,freezer"},
			procs:   with(v1, "77", "6:devices,freezer:/docker/"+idA+"\n"),
			cgroups: map[string][]int{"both/docker/" + idA: {77}},
		}},
		{name: "init process in a nested cgroup", v: 2, want: "docker/" + idA, host: fakeHost{
			mounts:  []string{v2Mount},
			procs:   with(plain, "77", "0::/docker/"+idA+"/init.scope\n"),
			cgroups: map[string][]int{"docker/" + idA: nil, "docker/" + idA + "/init.scope": {77}},
		}},
		{name: "docker in docker: the inner container", v: 2, want: "docker/" + idB + "/docker/" + idA, host: fakeHost{
			mounts:  []string{v2Mount},
			procs:   with(plain, "77", "0::/docker/"+idB+"/docker/"+idA+"\n"),
			cgroups: map[string][]int{"docker/" + idB + "/docker/" + idA: {77}},
		}},
		{name: "podman", v: 2, want: "machine.slice/libpod-" + idA + ".scope", host: fakeHost{
			mounts:  []string{v2Mount},
			procs:   with(plain, "77", "0::/machine.slice/libpod-"+idA+".scope/container\n"),
			cgroups: map[string][]int{"machine.slice/libpod-" + idA + ".scope/container": {77}, "machine.slice/libpod-" + idA + ".scope": nil},
		}},
		{name: "podman's monitor is not the container", err: ErrUnreachable, host: fakeHost{
			mounts:  []string{v2Mount},
			procs:   with(plain, "77", "0::/machine.slice/libpod-conmon-"+idA+".scope\n"),
			cgroups: map[string][]int{"machine.slice/libpod-conmon-" + idA + ".scope": {77}},
		}},
		{name: "helper container with a cgroup namespace", v: 2, want: "system.slice/docker-" + idA + ".scope", host: fakeHost{
			mounts:  []string{"cgroup2|/../..||rw"},
			procs:   map[string]string{"self": "0::/\n", "1": "0::/../../init.scope\n", "77": "0::/../../system.slice/docker-" + idA + ".scope\n"},
			cgroups: map[string][]int{"system.slice/docker-" + idA + ".scope": {77}},
		}},
		{name: "mount shows only the own subtree", err: ErrUnreachable, host: fakeHost{
			mounts:  []string{v2Mount},
			procs:   map[string]string{"self": "0::/\n", "1": "0::/../init.scope\n", "77": "0::/../docker-" + idA + ".scope\n"},
			cgroups: map[string][]int{"docker-" + idA + ".scope": {5}},
		}},
		{name: "bind mount of a part of the hierarchy", v: 1, want: "freezer/" + idA, host: fakeHost{
			mounts:  []string{"cgroup|/docker|freezer|freezer"},
			procs:   with(v1, "77", "6:freezer:/docker/"+idA+"\n"),
			cgroups: map[string][]int{"freezer/" + idA: {77}},
		}},
		{name: "path without the id", err: ErrUnreachable, host: fakeHost{
			mounts:  []string{v2Mount},
			procs:   with(plain, "77", "0::/system.slice/shared.scope\n"),
			cgroups: map[string][]int{"system.slice/shared.scope": {77}},
		}},
		{name: "id as part of a longer word", err: ErrUnreachable, host: fakeHost{
			mounts:  []string{v2Mount},
			procs:   with(plain, "77", "0::/docker/"+idA+"f\n"),
			cgroups: map[string][]int{"docker/" + idA + "f": {77}},
		}},
		{name: "root", err: ErrUnreachable, host: fakeHost{
			mounts:  []string{v2Mount},
			procs:   with(plain, "77", "0::/\n"),
			cgroups: map[string][]int{"": {77}},
		}},
		{name: "process is not in it", err: ErrUnreachable, host: fakeHost{
			mounts:  []string{v2Mount},
			procs:   with(plain, "77", "0::/docker/"+idA+"\n"),
			cgroups: map[string][]int{"docker/" + idA: {78}},
		}},
		{name: "holds Lifeboat", err: ErrForbidden, host: fakeHost{
			mounts:  []string{v2Mount},
			procs:   with(with(plain, "self", "0::/docker/"+idA+"\n"), "77", "0::/docker/"+idA+"\n"),
			cgroups: map[string][]int{"docker/" + idA: {77}},
		}},
		{name: "is an ancestor of Lifeboat's", err: ErrForbidden, host: fakeHost{
			mounts:  []string{v2Mount},
			procs:   with(with(plain, "self", "0::/docker/"+idA+"/docker/"+idB+"\n"), "77", "0::/docker/"+idA+"\n"),
			cgroups: map[string][]int{"docker/" + idA: {77}},
		}},
		{name: "holds process 1", err: ErrForbidden, host: fakeHost{
			mounts:  []string{v1Mount},
			procs:   with(with(v1, "1", "6:freezer:/docker/"+idA+"/x\n"), "77", "6:freezer:/docker/"+idA+"\n"),
			cgroups: map[string][]int{"freezer/docker/" + idA: {77}},
		}},
		{name: "forbidden in version 1, no way round by version 2", err: ErrForbidden, host: fakeHost{
			mounts:  []string{v1Mount, "cgroup2|/|unified|rw"},
			procs:   with(with(v1, "self", "6:freezer:/docker/"+idA+"\n0::/\n"), "77", "6:freezer:/docker/"+idA+"\n0::/docker/"+idA+"\n"),
			cgroups: map[string][]int{"freezer/docker/" + idA: {77}, "unified/docker/" + idA: {77}},
		}},
		{name: "runs Lifeboat, in a cgroup namespace", err: ErrForbidden, host: fakeHost{
			mounts:  []string{"cgroup2|/../..||rw"},
			procs:   map[string]string{"self": "0::/\n", "1": "0::/../../init.scope\n", "77": "0::/\n"},
			cgroups: map[string][]int{"docker/" + idA: {77}},
		}},
		{name: "shares Lifeboat's cgroup", err: ErrForbidden, host: fakeHost{
			mounts:  []string{v2Mount},
			procs:   with(plain, "77", "0::/user.slice\n"),
			cgroups: map[string][]int{"user.slice": {77}},
		}},
		{name: "no cgroup mounts", err: ErrUnreachable, host: fakeHost{
			procs: with(plain, "77", "0::/docker/"+idA+"\n"),
		}},
		{name: "process ended", err: ErrUnreachable, host: fakeHost{mounts: []string{v2Mount}, procs: plain}},
		{name: "cgroup removed", err: ErrUnreachable, host: fakeHost{
			mounts: []string{v2Mount},
			procs:  with(plain, "77", "0::/docker/"+idA+" (deleted)\n"),
		}},
		{name: "garbage", err: ErrUnreachable, host: fakeHost{mounts: []string{v2Mount}, procs: with(plain, "77", "what\n")}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h, root := tc.host.open(t)
			cg, err := h.Find(Container{ID: idA, Name: "a", Pid: 77})
			if tc.err != nil {
				if !errors.Is(err, tc.err) {
					t.Fatalf("error %v, want %v", err, tc.err)
				}
				if tc.err == ErrForbidden && errors.Is(err, ErrUnreachable) {
					t.Errorf("a fallback would be tried: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if cg.Dir != filepath.Join(root, tc.want) || cg.Version != tc.v {
				t.Errorf("found %s version %d, want %s version %d", cg.Dir, cg.Version, tc.want, tc.v)
			}
		})
	}
}

func TestFindRefusesBadContainers(t *testing.T) {
	h, _ := fakeHost{mounts: []string{v2Mount}, procs: map[string]string{"self": "0::/\n", "1": "0::/\n"}}.open(t)
	for _, c := range []Container{
		{},
		{ID: "short"},
		{ID: idA},
		{ID: "../../../etc/passwd", Pid: 1},
		{ID: strings.Repeat("x", 200), Pid: 1},
		{ID: idA, Pid: -1},
	} {
		if cg, err := h.Find(c); err == nil {
			t.Errorf("found %v for %v", cg, c)
		}
	}
}

// Without a cgroup root every cgroup mount is looked at.
func TestOpenHostAnywhere(t *testing.T) {
	h, err := OpenHost("/proc", "")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(testHost(t).mounts, h.mounts, cmp.AllowUnexported(mount{})); diff != "" {
		t.Error(diff)
	}
}

func TestOpenHostOfAnotherPidNamespace(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("1", filepath.Join(dir, "self")); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenHost(dir, "/sys/fs/cgroup"); !errors.Is(err, ErrUnreachable) {
		t.Errorf("error %v", err)
	}
}

// The files of a version 2 freezer, as a fake directory has them.
func TestFreezerFiles(t *testing.T) {
	for v, tc := range map[int]struct{ control, status, on, off string }{
		1: {"freezer.state", "freezer.self_freezing", "FROZEN", "THAWED"},
		2: {"cgroup.freeze", "cgroup.events", "1", "0"},
	} {
		h, root := fakeHost{
			mounts: []string{v1Mount, "cgroup2|/|unified|rw"},
			procs: map[string]string{
				"self": "6:freezer:/\n0::/\n", "1": "6:freezer:/\n0::/\n",
				"77": map[int]string{1: "6:freezer:/docker/" + idA + "\n", 2: "0::/docker/" + idA + "\n"}[v],
			},
			cgroups: map[string][]int{"freezer/docker/" + idA: {77}, "unified/docker/" + idA: {77}},
		}.open(t)
		cg, err := h.Find(Container{ID: idA, Pid: 77})
		if err != nil {
			t.Fatal(err)
		}
		f, err := openFreezer(cg)
		if err != nil {
			t.Fatal(err)
		}
		defer f.close()
		for _, freeze := range []bool{true, false} {
			if err := f.ask(freeze); err != nil {
				t.Fatal(err)
			}
			b, _ := os.ReadFile(filepath.Join(cg.Dir, tc.control))
			want := tc.off
			if freeze {
				want = tc.on
			}
			if !strings.HasPrefix(string(b), want) {
				t.Errorf("version %d: %s reads %q, want %q", v, tc.control, b, want)
			}
		}
		_ = root
		for text, want := range map[string]bool{"populated 1\nfrozen 1\n": true, "populated 1\nfrozen 0\n": false, "frozen 1": true, "": false} {
			if v == 2 {
				if err := os.WriteFile(filepath.Join(cg.Dir, tc.status), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
				if on, err := f.frozen(); err != nil || on != want {
					t.Errorf("frozen of %q: %v, %v", text, on, err)
				}
			}
		}
		// A cgroup made anew under the same name is not the one found.
		if err := os.Rename(cg.Dir, cg.Dir+"-old"); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(cg.Dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := openFreezer(cg); !errors.Is(err, errGone) {
			t.Errorf("version %d: opened another cgroup: %v", v, err)
		}
	}
}

func TestRelative(t *testing.T) {
	for _, tc := range []struct {
		root, cgroup, want string
		ok                 bool
	}{
		{"/", "/docker/x", "docker/x", true},
		{"/", "/", "", true},
		{"/docker", "/docker/x", "x", true},
		{"/docker", "/dockerx/y", "", false},
		{"/..", "/../x", "x", true},
		{"/../..", "/../../a/b", "a/b", true},
		{"/", "/../x", "", false},
		{"/..", "/../../x", "", false},
		{"/..", "/x", "", false},
		{"/a/", "//a//b/", "b", true},
	} {
		got, ok := relative(tc.root, tc.cgroup)
		if got != tc.want || ok != tc.ok {
			t.Errorf("relative(%q, %q) = %q, %v", tc.root, tc.cgroup, got, ok)
		}
	}
}

func TestParseMountinfo(t *testing.T) {
	got, err := parseMountinfo([]byte("36 35 98:0 /mnt1 /mnt\\0402\\134x rw,noatime master:1 shared:2 - fuse.s3 src\\011x rw,user_id=0\n"))
	want := []mount{{dev: "98:0", root: "/mnt1", point: `/mnt 2\x`, fstype: "fuse.s3", source: "src\tx", options: []string{"rw", "user_id=0"}}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(mount{})); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
	for _, bad := range []string{"x\n", "36 35 98:0 / /mnt rw\n", "36 35 98:0 / mnt rw - ext4 x rw\n", "36 35 98:0 / /mnt - ext4 x rw\n"} {
		if _, err := parseMountinfo([]byte(bad)); err == nil {
			t.Errorf("parsed %q", bad)
		}
	}
}
