// Command probe is the only program in the test images. "probe change N" makes
// the Nth set of changes to its root, "probe list" prints everything there is.
package main

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == "change" {
		for _, err := range changes[os.Args[2]]() {
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		}
		return
	}
	if err := list(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

var capability = []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

var changes = map[string]func() []error{
	"1": func() []error {
		return []error{
			os.MkdirAll("/d/e", 0o755),
			os.WriteFile("/d/a", []byte("hello"), 0o644),
			os.Link("/d/a", "/d/hard"),
			os.WriteFile("/d/e/f", make([]byte, 600<<10), 0o600),
			os.WriteFile("/d/suid", []byte("#!"), 0o755),
			os.Chown("/d/suid", 12, 34),
			os.Chmod("/d/suid", 0o755|fs.ModeSetuid),
			os.WriteFile("/d/cap", []byte("x"), 0o755),
			syscall.Setxattr("/d/cap", "security.capability", capability, 0),
			syscall.Mkfifo("/d/fifo", 0o640),
			syscall.Mknod("/d/null", syscall.S_IFCHR|0o666, 1<<8|3),
			os.Symlink("../a", "/d/e/link"),
			os.WriteFile("/d/b\xff\xfe", []byte("odd name"), 0o644),
			os.Chmod("/d/e", 0o777|fs.ModeSticky),
		}
	},
	"2": func() []error {
		return []error{
			os.Remove("/d/a"),
			os.RemoveAll("/d/e"),
			os.Mkdir("/d/e", 0o700), // in place of one that the layer below has
			os.WriteFile("/d/e/new", []byte("new"), 0o644),
			os.Chown("/base/big", 7, 7), // copies it up
			os.RemoveAll("/base/dir"),
		}
	},
}

func list() error {
	return filepath.WalkDir("/", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		switch p {
		case "/proc", "/sys", "/dev", "/etc":
			return fs.SkipDir
		case "/", "/.dockerenv":
			return nil
		}
		var st syscall.Stat_t
		if err := syscall.Lstat(p, &st); err != nil {
			return err
		}
		var content string
		switch st.Mode & syscall.S_IFMT {
		case syscall.S_IFREG:
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			content = fmt.Sprintf("%x", sha256.Sum256(b))
		case syscall.S_IFLNK:
			if content, err = os.Readlink(p); err != nil {
				return err
			}
		case syscall.S_IFDIR:
			st.Size, st.Nlink = 0, 0 // the file system's affair
		}
		names := make([]byte, 4096)
		n, err := syscall.Listxattr(p, names)
		if err != nil && st.Mode&syscall.S_IFMT != syscall.S_IFLNK {
			return err
		}
		var xattrs []string
		for _, name := range strings.Split(string(names[:max(n, 0)]), "\x00") {
			value := make([]byte, 4096)
			if k, err := syscall.Getxattr(p, name, value); name != "" && err == nil {
				xattrs = append(xattrs, fmt.Sprintf("%s=%x", name, value[:k]))
			}
		}
		_, err = fmt.Printf("%q %o %d:%d %d %d %d.%d %x %v %s\n", p, st.Mode, st.Uid, st.Gid, st.Nlink, st.Size, st.Mtim.Sec, st.Mtim.Nsec, st.Rdev, xattrs, content)
		return err
	})
}
