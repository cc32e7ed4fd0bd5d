package freeze

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
)

// mount is one line of mountinfo.
type mount struct {
	dev     string // major:minor
	root    string // what of the file system is mounted; may begin with "/.." for cgroups
	point   string
	fstype  string
	source  string
	options []string // of the file system (super block)
}

// maxProcFile bounds what is read from a file of the kernel (invariant 10 in
// spirit: a hostile mount table must not take all memory).
const maxProcFile = 64 << 20

var errMalformed = errors.New("malformed line")

// parseMountinfo reads the format of proc_pid_mountinfo(5). Lines that do not
// parse are an error: guessing at mounts could freeze the wrong thing.
func parseMountinfo(b []byte) ([]mount, error) {
	var ms []mount
	sc := bufio.NewScanner(bytes.NewReader(b))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		m, err := parseMountinfoLine(sc.Text())
		if err != nil {
			return nil, fmt.Errorf("mountinfo line %q: %w", sc.Text(), err)
		}
		ms = append(ms, m)
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("read mountinfo: %w", err)
	}
	return ms, nil
}

func parseMountinfoLine(line string) (mount, error) {
	f := strings.Split(line, " ")
	sep := slices.Index(f, "-")
	// The separator follows six fixed fields and any number of optional ones;
	// a mount point cannot be "-" because it begins with a slash.
	if sep < 6 || len(f) < sep+4 {
		return mount{}, errMalformed
	}
	m := mount{
		dev:     f[2],
		root:    unescape(f[3]),
		point:   unescape(f[4]),
		fstype:  f[sep+1],
		source:  unescape(f[sep+2]),
		options: strings.Split(f[sep+3], ","),
	}
	if !strings.HasPrefix(m.point, "/") {
		return mount{}, errMalformed
	}
	return m, nil
}

// unescape undoes the kernel's \040 notation for blanks and backslashes.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// version tells which cgroup version the mount is of, 0 if none.
func (m mount) version() int {
	switch m.fstype {
	case "cgroup":
		return 1
	case "cgroup2":
		return 2
	}
	return 0
}

// controls tells whether the mount is the hierarchy that a line of
// /proc/PID/cgroup speaks of.
func (m mount) controls(e cgroupEntry) bool {
	if m.version() != e.version() {
		return false
	}
	for _, c := range e.controllers {
		if !slices.Contains(m.options, c) {
			return false
		}
	}
	return true
}

// below tells whether path is dir or lies below it.
func below(dir, p string) bool {
	dir = strings.TrimSuffix(dir, "/")
	return p == dir || strings.HasPrefix(p, dir+"/") || dir == ""
}

// relative gives the path of a cgroup within a mount of its hierarchy. Both
// texts are relative to the reader's cgroup namespace, so both may begin with
// "/.." steps; what lies outside the mount is not reachable through it.
func relative(root, cgroup string) (string, bool) {
	root, cgroup = cleanCgroup(root), cleanCgroup(cgroup)
	if !below(root, cgroup) {
		return "", false
	}
	rel := strings.TrimPrefix(strings.TrimPrefix(cgroup, strings.TrimSuffix(root, "/")), "/")
	if rel == ".." || strings.HasPrefix(rel, "../") {
		return "", false
	}
	return rel, true
}

// cleanCgroup removes doubled and trailing slashes but keeps leading "/..",
// which path.Clean of a rooted path would drop.
func cleanCgroup(p string) string {
	c := path.Clean(strings.TrimLeft(p, "/"))
	if c == "." {
		return "/"
	}
	return "/" + c
}
