package tree_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestModesWhateverTheUmask: a file is made with the mode that it is to have;
// what the process's umask takes away, what a change of owner clears, and what a
// directory's default ACL adds is set right (invariant 3).
func TestModesWhateverTheUmask(t *testing.T) {
	f := newFixture(t)
	n := 0
	for _, mode := range []uint32{0, 0o400, 0o444, 0o600, 0o620, 0o640, 0o664, 0o666, 0o777, 0o2711, 0o2664, 0o4755, 0o6555} {
		for _, owner := range []int{0, 33} {
			name := fmt.Sprintf("d/%04o-%d", mode, owner)
			f.write(name, []byte(name))
			path := filepath.Join(f.root, name)
			if err := errors.Join(unix.Chown(path, owner, owner), unix.Chmod(path, mode)); err != nil {
				t.Fatal(err)
			}
			n++
		}
	}
	res, _ := f.capture(nil)
	for _, umask := range []int{0, 0o022, 0o077} {
		t.Run(fmt.Sprintf("%03o", umask), func(t *testing.T) {
			defer unix.Umask(unix.Umask(umask)) // the process's: no parallel test may run
			dest := t.TempDir()
			if err := os.Mkdir(filepath.Join(dest, "d"), 0o700); err != nil {
				t.Fatal(err)
			}
			// A default ACL that gives a user all and leaves others nothing.
			acl := []byte{
				2, 0, 0, 0,
				1, 0, 7, 0, 0xff, 0xff, 0xff, 0xff,
				2, 0, 7, 0, 0x22, 0, 0, 0,
				4, 0, 5, 0, 0xff, 0xff, 0xff, 0xff,
				0x10, 0, 7, 0, 0xff, 0xff, 0xff, 0xff,
				0x20, 0, 0, 0, 0xff, 0xff, 0xff, 0xff,
			}
			if err := unix.Setxattr(filepath.Join(dest, "d"), "system.posix_acl_default", acl, 0); err != nil {
				t.Fatal(err)
			}
			st := mustApply(t, f, dest, nil, res)
			same(t, f.root, dest)
			if st.Created < int64(n) {
				t.Errorf("%d files made of %d", st.Created, n)
			}
			fresh := filepath.Join(t.TempDir(), "fresh")
			mustApply(t, f, fresh, nil, res)
			same(t, f.root, fresh)
		})
	}
}
