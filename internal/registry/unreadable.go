package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/distribution/distribution/v3/registry/storage/driver"
	"golang.org/x/sys/unix"
)

// A file that cannot be read, for it lies on a bad sector, belongs to somebody else or
// something else lies in its place, is damage of what is kept in it, as torn bytes are
// (damage.go). A storage that cannot be read is none: it may be back in a moment, and
// nothing in it may look damaged until then. So an error counts as damage only where
// the file system blames the file, and the storage answers beside it.

// errUnreadable: the file system does not let a file of the storage be read or written.
// What it holds may be whole, so nothing is given up for it.
var errUnreadable = fmt.Errorf("its file cannot be used: %w", errDamaged)

// blames are the errors with which a file system blames one file.
var blames = []unix.Errno{
	unix.EACCES, unix.EPERM, unix.EIO, unix.EBADMSG, unix.EUCLEAN, unix.ENXIO,
	unix.EISDIR, unix.ENOTDIR, unix.ELOOP, unix.EEXIST, unix.ENOTEMPTY,
}

// objectRE matches the paths of the storage that belong to one object: its links, its
// bytes, a note on it. What is in the parentheses is the directory of all such objects.
var objectRE = regexp.MustCompile(`^((?:.*/_manifests/(?:tags|revisions/[^/]+)|.*/_layers/[^/]+|` + blobsRoot + `/[^/]+|` + recordsRoot + `/.*/(?:_retired|_claims)))/.`)

// blame returns the error with which the file system blames one file, 0 for none.
func blame(err error) unix.Errno {
	var no unix.Errno
	if errors.As(cause(err), &no) && slices.Contains(blames, no) {
		return no
	}
	return 0
}

// cause takes the error of a file out of that of Distribution's driver, which hides it.
func cause(err error) error {
	var de driver.Error
	if errors.As(err, &de) {
		return de.Detail
	}
	return err
}

// judge returns an error of the file at p, which wraps errUnreadable where it is damage
// of the object that p belongs to. The request's note keeps which it was, for Distribution
// does not always hand errors up.
func (d *diskDriver) judge(ctx context.Context, p string, err error) error {
	if err == nil || isMissing(err) || ctx.Err() != nil {
		return err
	}
	of, no := objectRE.FindStringSubmatch(p), blame(err)
	if !errors.Is(err, errDamaged) && of != nil && no != 0 && d.answers(of[1], p) {
		err = fmt.Errorf("%w: %w", err, errUnreadable)
	}
	if n, ok := ctx.Value(noteKey{}).(*note); ok {
		n.damaged.Store(nil)
		if errors.Is(err, errDamaged) {
			n.damaged.Store(&no)
		}
	}
	return err
}

// probeFile is written to learn whether the storage answers; nobody reads it.
const probeFile = "probe"

// answers reports whether the storage does, beside p: others of the directory dir, in
// which such objects lie, can be read, and a file can be written and synced, which no
// cache can answer. A full disk is one that answers.
func (d *diskDriver) answers(dir, p string) bool {
	d.probing.Lock()
	defer d.probing.Unlock()
	if _, err := someNames(d.file(dir)); err != nil {
		return false
	}
	beside := sample{but: d.file(p), left: maxSample}
	if !beside.reads(d.file(dir)) && beside.failed {
		return false
	}
	err := probe(filepath.Join(d.root, probeFile))
	return err == nil || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}

// maxSample bounds how many files and directories of a kind are looked at until one can
// be read.
const maxSample = 64

// sample looks for a file that can be read.
type sample struct {
	but    string // what is not asked, with all above and below it
	left   int
	failed bool // something else could not be read
}

// reads reports whether any file below a directory can be read.
func (s *sample) reads(dir string) bool {
	names, err := someNames(dir)
	s.failed = s.failed || err != nil && !isBelow(s.but, dir)
	for _, n := range names {
		file := filepath.Join(dir, n)
		if s.left--; s.left < 0 {
			return false
		}
		info, err := os.Stat(file)
		switch {
		case isBelow(file, s.but):
		case err == nil && info.IsDir():
			if s.reads(file) {
				return true
			}
		case readFirst(file) == nil:
			return true
		default:
			s.failed = true
		}
	}
	return false
}

// isBelow reports whether file is dir, or lies below it.
func isBelow(file, dir string) bool { return file == dir || strings.HasPrefix(file, dir+"/") }

// someNames lists a few of the names in a directory.
func someNames(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	names, err := f.Readdirnames(maxSample / 4)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return names, errors.Join(err, f.Close())
}

// readFirst reads the first byte of a file, if it has one.
func readFirst(file string) error {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK, 0) // a pipe would wait for its writer
	if err != nil {
		return err
	}
	_, err = f.Read(make([]byte, 1))
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return errors.Join(err, f.Close())
}

func probe(file string) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString("this storage answers\n")
	return errors.Join(err, f.Sync(), f.Close(), os.Remove(file))
}

// replacing puts a file at p. An empty directory there, which is none of the storage's,
// gives way to it.
func (d *diskDriver) replacing(p string, put func() error) error {
	err := put()
	if err != nil && unix.Rmdir(d.file(p)) == nil {
		err = put()
	}
	return err
}
