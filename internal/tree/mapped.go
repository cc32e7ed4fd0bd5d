package tree

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// OpenFile is a regular file that a process may change without a trace that a
// watch would see: it is open for writing (asynchronous writes make no event),
// or mapped shared and writable (nor do stores, and they need not move mtime).
type OpenFile struct {
	// Dev and Ino are what statx says; of mapped files what /proc/<pid>/maps says,
	// whose device is that of the mount.
	Dev, Ino uint64
	// Path is the file's name as its mount namespace has it, and RootDev the
	// device of the process's root directory: with an overlay, whose inode numbers
	// are not those of its upper directory, the name decides.
	Path    string
	RootDev uint64
	Mapped  bool
}

// OpenFiles lists the files that the processes have open for writing or mapped
// shared and writable, each once. Processes that are gone by now count as having
// none. Frozen processes may be asked.
func OpenFiles(pids []int) ([]OpenFile, error) {
	set := map[OpenFile]struct{}{}
	for _, pid := range pids {
		p := process{dir: "/proc/" + strconv.Itoa(pid), set: set}
		if err := p.list(); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
			return nil, fmt.Errorf("files of process %d: %w", pid, err)
		}
	}
	out := make([]OpenFile, 0, len(set))
	for f := range set {
		out = append(out, f)
	}
	return out, nil
}

// process is one process whose files are listed.
type process struct {
	dir     string
	rootDev uint64
	set     map[OpenFile]struct{}
}

func (p *process) list() error {
	var st Stat
	if err := follow(p.dir+"/root", &st); err != nil {
		return err
	}
	p.rootDev = st.Dev
	if err := p.descriptors(); err != nil {
		return err
	}
	f, err := os.Open(p.dir + "/maps")
	if err != nil {
		return err
	}
	defer f.Close()
	return p.maps(f)
}

// follow looks at what a magic link leads to.
func follow(path string, st *Stat) error {
	var raw unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_NO_AUTOMOUNT, statMask, &raw); err != nil {
		return err
	}
	st.from(&raw)
	return nil
}

// descriptors goes through /proc/<pid>/fd. The mode of a link there says how the
// file is open.
func (p *process) descriptors() error {
	fd, err := unix.Open(p.dir+"/fd", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	names, offs, err := readNames(fd, make([]byte, 16<<10))
	if err != nil {
		return err
	}
	var raw unix.Statx_t
	for _, at := range offs {
		name := names[at:]
		if statName(fd, name, &raw) != nil || raw.Mode&unix.S_IWUSR == 0 {
			continue // closed meanwhile, or only read
		}
		link := p.dir + "/fd/" + string(name[:bytes.IndexByte(name, 0)])
		var st Stat
		if follow(link, &st) != nil || !st.IsRegular() || st.Nlink == 0 {
			continue
		}
		path, err := os.Readlink(link)
		if err != nil {
			continue
		}
		p.set[OpenFile{Dev: st.Dev, Ino: st.Ino, Path: path, RootDev: p.rootDev}] = struct{}{}
	}
	return nil
}

// maps reads lines of the form
//
//	7f12a000-7f12b000 rw-s 00000000 08:02 173521                     /path
func (p *process) maps(f *os.File) error {
	lines := bufio.NewScanner(f)
	lines.Buffer(make([]byte, 16<<10), 1<<20)
	for lines.Scan() {
		line := lines.Bytes()
		_, rest, _ := bytes.Cut(line, []byte(" "))
		if len(rest) < 4 || rest[1] != 'w' || rest[3] != 's' {
			continue
		}
		fields := bytes.SplitN(rest, []byte(" "), 5)
		if len(fields) < 4 {
			return fmt.Errorf("unexpected line in maps: %.80q", line)
		}
		major, minor, ok := bytes.Cut(fields[2], []byte(":"))
		ma, err1 := strconv.ParseUint(string(major), 16, 32)
		mi, err2 := strconv.ParseUint(string(minor), 16, 32)
		ino, err3 := strconv.ParseUint(string(fields[3]), 10, 64)
		if !ok || err1 != nil || err2 != nil || err3 != nil {
			return fmt.Errorf("unexpected line in maps: %.80q", line)
		}
		if ino == 0 {
			continue
		}
		o := OpenFile{Dev: unix.Mkdev(uint32(ma), uint32(mi)), Ino: ino, RootDev: p.rootDev, Mapped: true}
		if len(fields) == 5 {
			// The kernel writes a line break in a name as \012.
			o.Path = strings.ReplaceAll(string(bytes.TrimLeft(fields[4], " ")), `\012`, "\n")
		}
		p.set[o] = struct{}{}
	}
	return lines.Err()
}
