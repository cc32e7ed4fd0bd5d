package archive

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
)

// Units gives the content of files. repo.Reader is one.
type Units interface {
	Fetch(ctx context.Context, refs []dr.UnitRef, fn func(i int, data []byte) error) error
}

// EncodeOptions say how a tree becomes an archive.
type EncodeOptions struct {
	// At is where the tree lies below the directory that the archive is unpacked
	// in, for an engine that is "/": an absolute path of the container. "/" is
	// for a writable layer, whose root itself is then left as it is.
	At string
	// Layer: the tree is a writable layer, laid over the container's image.
	Layer bool
	// Mounts are the paths of the container's mounts, absolute: nothing of a
	// layer is written at or below them.
	Mounts []string
	// Exclude lists paths relative to the tree that are left out with all below.
	Exclude []string
	// Progress is told of bytes of content that were written; may be nil.
	Progress func(n int64)
}

// Lost counts what of a tree the archive API cannot lay down. The zero value
// says that all of it can be.
type Lost struct {
	// Deletions of the image's files in a writable layer; the first one's path.
	Deletions     int64
	FirstDeletion string
	Sockets       int64
	// Early are entries whose time is before 1970, Attributes extended attributes
	// that an archive cannot hold (empty ones), Hidden entries that lie where something is mounted.
	Early, Attributes, Hidden int64
	Holes                     bool
}

// String names what is lost, empty if nothing is.
func (l Lost) String() string {
	var parts []string
	say := func(n int64, text string) {
		if n > 0 {
			parts = append(parts, fmt.Sprintf(text, n))
		}
	}
	if l.Deletions > 0 {
		parts = append(parts, fmt.Sprintf("%d deletions of files of the image are not made, the first is /%s", l.Deletions, l.FirstDeletion))
	}
	if l.Holes {
		parts = append(parts, "holes take space")
	}
	say(l.Sockets, "%d sockets are not there")
	say(l.Early, "%d times before 1970 become 1970")
	say(l.Attributes, "%d empty extended attributes are not there")
	say(l.Hidden, "%d entries of the layer lie under mounts and are not there")
	return strings.Join(parts, "; ")
}

// fetchBytes is how much content is fetched, and held in memory, at a time.
const fetchBytes = 16 << 20

// Encode writes the tree as an archive that an engine unpacks in a container's
// root directory, and tells what that cannot keep. Memory is bounded. What the
// engine does with directories that exist already: it keeps them, with the
// metadata of the archive's entry; anything else is replaced.
func Encode(ctx context.Context, w io.Writer, target *catalog.Reader, units Units, o EncodeOptions) (Lost, error) {
	e := &encoder{ctx: ctx, tar: tar.NewWriter(w), target: target.Clone(), units: units, o: o, at: clean(o.At), gone: map[string]bool{}, linked: map[string]catalog.Entry{}}
	for _, m := range o.Mounts {
		e.mounts = append(e.mounts, clean(m))
	}
	if e.o.Progress == nil {
		e.o.Progress = func(int64) {}
	}
	if err := e.run(); err != nil {
		return e.lost, err
	}
	last := e.inherit
	for i := range last {
		last[i].Opaque = false
		if err := e.write(&last[i], last[i].Xattrs); err != nil {
			return e.lost, fmt.Errorf("%q: %w", last[i].Path, err)
		}
	}
	return e.lost, e.tar.Close()
}

type encoder struct {
	ctx    context.Context
	tar    *tar.Writer
	target *catalog.Reader
	units  Units
	o      EncodeOptions
	at     string
	mounts []string
	lost   Lost
	gone   map[string]bool // hard-linked files that were left out
	// linked are first names without their content: an engine gives the metadata
	// of each further name's entry to the one file.
	linked map[string]catalog.Entry
	// inherit are directories with a default access list, which what is made in
	// them would inherit: they get it at the end.
	inherit []catalog.Entry

	batch []catalog.Entry
	refs  []dr.UnitRef // content of the batch
	bytes int64
}

// run collects entries whose content is fetched together.
func (e *encoder) run() error {
	for {
		entry, err := e.target.Next(e.ctx)
		if errors.Is(err, io.EOF) {
			return e.flush()
		}
		if err != nil {
			return err
		}
		if below(entry.Path, e.o.Exclude) || !e.takes(&entry) {
			if entry.LinkGroup {
				e.gone[entry.Path] = true
			}
			continue
		}
		small := entry.Type == catalog.File && !entry.Indirect && entry.Size <= fetchBytes
		if entry.Type == catalog.File && !small {
			if err := errors.Join(e.flush(), e.large(&entry)); err != nil {
				return fmt.Errorf("%q: %w", entry.Path, err)
			}
			continue
		}
		e.batch = append(e.batch, entry.Clone())
		for _, r := range entry.Refs {
			if !r.Hole {
				e.refs = append(e.refs, r.Unit())
				e.bytes += r.Len
			}
		}
		if e.bytes >= fetchBytes || len(e.batch) >= 4096 {
			if err := e.flush(); err != nil {
				return err
			}
		}
	}
}

// takes reports whether an entry goes into the archive; what does not is counted.
func (e *encoder) takes(entry *catalog.Entry) bool {
	switch entry.Type {
	case catalog.Whiteout:
		if e.lost.Deletions++; e.lost.Deletions == 1 {
			e.lost.FirstDeletion = entry.Path
		}
		return false
	case catalog.Socket:
		e.lost.Sockets++
		return false
	case catalog.HardLink:
		if e.gone[entry.Target] {
			e.lost.Hidden++
			return false
		}
	}
	if isMark(entry) || e.o.Layer && entry.Path == "" {
		return false
	}
	if e.o.Layer && below(entry.Path, e.mounts) {
		if !e.mountPoint(entry) {
			e.lost.Hidden++
		}
		return false
	}
	if e.o.Layer && entry.Type != catalog.Directory && e.holdsMount(entry.Path) {
		e.lost.Hidden++ // it would replace a directory that something is mounted in
		return false
	}
	return true
}

// mountPoint: an entry that the engine makes by itself.
func (e *encoder) mountPoint(entry *catalog.Entry) bool {
	return slices.Contains(e.mounts, entry.Path) && (entry.Type == catalog.Directory || entry.Type == catalog.File && entry.Size == 0)
}

func (e *encoder) holdsMount(path string) bool {
	return slices.ContainsFunc(e.mounts, func(m string) bool { return m == path || catalog.Under(m, path) })
}

// flush writes the batch.
func (e *encoder) flush() error {
	data := make([][]byte, len(e.refs))
	if len(e.refs) > 0 {
		if err := e.units.Fetch(e.ctx, e.refs, func(i int, b []byte) error {
			data[i] = append([]byte(nil), b...)
			return nil
		}); err != nil {
			return err
		}
	}
	next := 0
	for i := range e.batch {
		entry := &e.batch[i]
		if err := e.header(entry); err != nil {
			return fmt.Errorf("%q: %w", entry.Path, err)
		}
		if entry.Type != catalog.File {
			continue
		}
		for _, r := range entry.Refs {
			var err error
			if r.Hole {
				err = e.zeros(r.Len)
			} else {
				err = e.content(data[next], r)
				data[next] = nil
				next++
			}
			if err != nil {
				return fmt.Errorf("%q: %w", entry.Path, err)
			}
		}
	}
	e.batch, e.refs, e.bytes = e.batch[:0], e.refs[:0], 0
	return nil
}

// large writes a file whose content is not held in memory as a whole.
func (e *encoder) large(entry *catalog.Entry) error {
	if err := e.header(entry); err != nil {
		return err
	}
	var refs []catalog.Ref
	var total int64
	out := func() error {
		want := make([]dr.UnitRef, len(refs))
		data := make([][]byte, len(refs))
		for i, r := range refs {
			want[i] = r.Unit()
		}
		if len(want) > 0 {
			if err := e.units.Fetch(e.ctx, want, func(i int, b []byte) error {
				data[i] = append([]byte(nil), b...)
				return nil
			}); err != nil {
				return err
			}
		}
		for i, r := range refs {
			if err := e.content(data[i], r); err != nil {
				return err
			}
		}
		refs, total = refs[:0], 0
		return nil
	}
	err := e.target.Content(e.ctx, entry, func(_ int64, r catalog.Ref) error {
		if r.Hole {
			return errors.Join(out(), e.zeros(r.Len))
		}
		refs = append(refs, r)
		if total += r.Len; total >= fetchBytes {
			return out()
		}
		return nil
	})
	return errors.Join(err, out())
}

func (e *encoder) content(data []byte, r catalog.Ref) error {
	if int64(len(data)) != r.Len {
		return fmt.Errorf("a unit of %d bytes, want %d: %w", len(data), r.Len, dr.ErrTampered)
	}
	_, err := e.tar.Write(data)
	e.o.Progress(r.Len)
	return err
}

func (e *encoder) zeros(n int64) error {
	e.lost.Holes = true
	var space [64 << 10]byte
	for n > 0 {
		if err := e.ctx.Err(); err != nil {
			return err
		}
		part := min(n, int64(len(space)))
		if _, err := e.tar.Write(space[:part]); err != nil {
			return err
		}
		e.o.Progress(part)
		n -= part
	}
	return nil
}

func (e *encoder) name(path string) string { return join(e.at, path) }

// header writes what is not content.
func (e *encoder) header(entry *catalog.Entry) error {
	if entry.MtimeSec < 0 && entry.Type != catalog.Symlink {
		e.lost.Early++
	}
	if entry.LinkGroup {
		first := entry.Clone()
		first.Refs = nil
		e.linked[entry.Path] = first
	}
	if first, ok := e.linked[entry.Target]; ok && entry.Type == catalog.HardLink {
		first.Path, first.Type, first.Target, first.LinkGroup = entry.Path, catalog.HardLink, entry.Target, false
		entry = &first
	}
	var xattrs []catalog.Xattr
	later := false
	for _, x := range entry.Xattrs {
		switch {
		case x.Name == defaultACL:
			later = true
		case len(x.Value) == 0, strings.ContainsAny(x.Name, "=\x00"): // a record of nothing means none
			e.lost.Attributes++
		default:
			xattrs = append(xattrs, x)
		}
	}
	if later {
		dir := entry.Clone()
		dir.Xattrs = append(slices.Clone(xattrs), entry.Xattrs[slices.IndexFunc(entry.Xattrs, func(x catalog.Xattr) bool { return x.Name == defaultACL })])
		e.inherit = append(e.inherit, dir)
	}
	return e.write(entry, xattrs)
}

const defaultACL = "system.posix_acl_default"

// write writes a header. A directory that replaced one of the image
// is preceded by a file of its name, which makes the engine remove the image's.
func (e *encoder) write(entry *catalog.Entry, xattrs []catalog.Xattr) error {
	h := &tar.Header{
		Name: e.name(entry.Path), Mode: int64(entry.Mode), Uid: int(entry.UID), Gid: int(entry.GID),
		ModTime: time.Unix(entry.MtimeSec, int64(entry.MtimeNsec)), Format: tar.FormatPAX,
	}
	switch entry.Type {
	case catalog.File:
		h.Typeflag, h.Size = tar.TypeReg, entry.Size
	case catalog.Directory:
		h.Typeflag = tar.TypeDir
		h.Name += "/"
		if entry.Opaque && e.o.Layer {
			if e.holdsMount(entry.Path) {
				e.lost.Hidden++
			} else if err := e.tar.WriteHeader(&tar.Header{Name: e.name(entry.Path), Typeflag: tar.TypeReg, Mode: 0o600, ModTime: h.ModTime, Format: tar.FormatPAX}); err != nil {
				return err
			}
		}
	case catalog.Symlink:
		h.Typeflag, h.Linkname = tar.TypeSymlink, entry.Target
	case catalog.HardLink:
		h.Typeflag, h.Linkname = tar.TypeLink, e.name(entry.Target)
	case catalog.CharDevice, catalog.BlockDevice:
		h.Typeflag = tar.TypeChar
		if entry.Type == catalog.BlockDevice {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(entry.Major), int64(entry.Minor)
	case catalog.Fifo:
		h.Typeflag = tar.TypeFifo
	default:
		return fmt.Errorf("a %v has no place in an archive", entry.Type)
	}
	for _, x := range xattrs {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[xattrPrefix+x.Name] = string(x.Value)
	}
	return e.tar.WriteHeader(h)
}
