// Package treecmp takes the fingerprint of a file tree, content and all metadata, and compares two of
// them. It is the independent witness of invariant 3: it shares no code with what captures and restores.
//
// Main types: [Tree], made by [Fingerprint] or [Load], and [Difference], made by [Compare]. The package
// changes nothing, follows no symbolic link and does not freeze: a tree that changes meanwhile gives a
// fingerprint of no instant.
package treecmp

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
)

// Type of an entry.
type Type string

// Types of entries. A whiteout is a character device 0:0, the mark of a deletion in an overlay's upper
// directory; of it only its existence counts, for the kernel links all whiteouts together.
const (
	File     Type = "file"
	Dir      Type = "dir"
	Symlink  Type = "symlink"
	Char     Type = "char"
	Block    Type = "block"
	FIFO     Type = "fifo"
	Socket   Type = "socket"
	Whiteout Type = "whiteout"
)

// Extent is a range of a file that holds data, in bytes; what lies between extents is a hole.
type Extent struct {
	Start int64 `json:"start"`
	End   int64 `json:"end"` // exclusive
}

// Entry is everything about one name in a tree that a restore must bring back.
type Entry struct {
	Type      Type              `json:"type"`
	Mode      uint32            `json:"mode,omitempty"` // permissions with setuid, setgid and sticky: 07777
	UID       uint32            `json:"uid,omitempty"`
	GID       uint32            `json:"gid,omitempty"`
	MtimeSec  int64             `json:"mtime_sec,omitempty"`
	MtimeNsec uint32            `json:"mtime_nsec,omitempty"`
	Size      int64             `json:"size,omitempty"`   // of files
	SHA256    string            `json:"sha256,omitempty"` // of a file's content, hex
	Data      []Extent          `json:"data,omitempty"`   // of files
	Xattrs    map[string]string `json:"xattrs,omitempty"` // values are raw bytes
	// LinkedTo is the first name, in order of bytes, of the same file in this tree, when there are several.
	LinkedTo string `json:"linked_to,omitempty"`
	Major    uint32 `json:"major,omitempty"` // of devices
	Minor    uint32 `json:"minor,omitempty"`
	Target   string `json:"target,omitempty"` // of symbolic links
}

// Tree maps names, relative to the root and of any bytes, to entries. The root itself is ".".
type Tree map[string]Entry

// Difference is one way in which two trees are not the same.
type Difference struct {
	Path  string
	Field string // "missing", "unexpected", or what of the entry differs
	Want  string
	Got   string
}

// String quotes the path, which may hold anything.
func (d Difference) String() string {
	return fmt.Sprintf("%q: %s: want %s, got %s", d.Path, d.Field, d.Want, d.Got)
}

// Rules loosen a comparison; the zero value is the strictest that file systems allow.
type Rules struct {
	// HoleSlack is how many bytes of a file may be data in one tree and hole in the other; zero means
	// 128 KiB, for file systems allocate in clusters and cached pages count as data.
	HoleSlack int64
	// Ignore, when set, drops differences for which it is true.
	Ignore func(Difference) bool
}

// Compare lists what of got is not as in want, in order of paths.
func Compare(want, got Tree, rules Rules) []Difference {
	if rules.HoleSlack == 0 {
		rules.HoleSlack = 128 << 10
	}
	paths := slices.Collect(maps.Keys(want))
	for p := range got {
		if _, ok := want[p]; !ok {
			paths = append(paths, p)
		}
	}
	slices.Sort(paths)
	var all []Difference
	for _, p := range paths {
		w, inWant := want[p]
		g, inGot := got[p]
		switch {
		case !inGot:
			all = append(all, Difference{p, "missing", string(w.Type), "nothing"})
		case !inWant:
			all = append(all, Difference{p, "unexpected", "nothing", string(g.Type)})
		default:
			all = append(all, compareEntry(p, w, g, rules)...)
		}
	}
	if rules.Ignore != nil {
		all = slices.DeleteFunc(all, rules.Ignore)
	}
	return all
}

func compareEntry(path string, w, g Entry, rules Rules) []Difference {
	var diffs []Difference
	add := func(field, want, got string) {
		if want != got {
			diffs = append(diffs, Difference{path, field, want, got})
		}
	}
	add("type", string(w.Type), string(g.Type))
	if w.Type != g.Type {
		return diffs
	}
	add("mode", fmt.Sprintf("%04o", w.Mode), fmt.Sprintf("%04o", g.Mode))
	add("owner", fmt.Sprintf("%d:%d", w.UID, w.GID), fmt.Sprintf("%d:%d", g.UID, g.GID))
	add("mtime", fmt.Sprintf("%d.%09d", w.MtimeSec, w.MtimeNsec), fmt.Sprintf("%d.%09d", g.MtimeSec, g.MtimeNsec))
	add("size", strconv.FormatInt(w.Size, 10), strconv.FormatInt(g.Size, 10))
	add("content", w.SHA256, g.SHA256)
	add("hard link", strconv.Quote(w.LinkedTo), strconv.Quote(g.LinkedTo))
	add("device", fmt.Sprintf("%d:%d", w.Major, w.Minor), fmt.Sprintf("%d:%d", g.Major, g.Minor))
	add("target", strconv.Quote(w.Target), strconv.Quote(g.Target))
	for name, value := range w.Xattrs {
		if other, ok := g.Xattrs[name]; !ok {
			add("xattr "+name, hex.EncodeToString([]byte(value)), "none")
		} else {
			add("xattr "+name, hex.EncodeToString([]byte(value)), hex.EncodeToString([]byte(other)))
		}
	}
	for name, value := range g.Xattrs {
		if _, ok := w.Xattrs[name]; !ok {
			add("xattr "+name, "none", hex.EncodeToString([]byte(value)))
		}
	}
	if w.Size == g.Size {
		if n := outside(g.Data, w.Data); n > rules.HoleSlack {
			add("holes", "holes", fmt.Sprintf("%d bytes of them filled", n))
		}
		if n := outside(w.Data, g.Data); n > rules.HoleSlack {
			add("holes", "data", fmt.Sprintf("%d bytes of it holes", n))
		}
	}
	return diffs
}

// outside counts bytes of a that are not in b; both are in order.
func outside(a, b []Extent) int64 {
	var n int64
	for _, e := range a {
		n += e.End - e.Start
		for _, f := range b {
			if common := min(e.End, f.End) - max(e.Start, f.Start); common > 0 {
				n -= common
			}
		}
	}
	return n
}

// Report is a text of at most limit differences, empty when there is none.
func Report(diffs []Difference, limit int) string {
	var b strings.Builder
	for i, d := range diffs {
		if i == limit {
			fmt.Fprintf(&b, "and %d more\n", len(diffs)-limit)
			break
		}
		b.WriteString(d.String() + "\n")
	}
	return b.String()
}

// stored is an entry in JSON; strings of any bytes are quoted as in Go, for JSON knows UTF-8 only.
type stored struct {
	Path string `json:"path"`
	Entry
}

// Save writes the tree to a file as JSON, for a comparison when what it was taken from is gone.
func (t Tree) Save(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("save fingerprint: %w", err)
	}
	enc := json.NewEncoder(f)
	for _, p := range slices.Sorted(maps.Keys(t)) {
		e := t[p]
		e.LinkedTo, e.Target = strconv.Quote(e.LinkedTo), strconv.Quote(e.Target)
		xattrs := map[string]string{}
		for k, v := range e.Xattrs {
			xattrs[k] = strconv.Quote(v)
		}
		e.Xattrs = xattrs
		if err := enc.Encode(stored{strconv.Quote(p), e}); err != nil {
			f.Close()
			return fmt.Errorf("save fingerprint: %w", err)
		}
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("save fingerprint: %w", err)
	}
	return nil
}

// Load reads what Save wrote.
func Load(path string) (Tree, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("load fingerprint: %w", err)
	}
	defer f.Close()
	t := Tree{}
	for dec := json.NewDecoder(f); ; {
		var s stored
		if err := dec.Decode(&s); err == io.EOF {
			return t, nil
		} else if err != nil {
			return nil, fmt.Errorf("load fingerprint %s: %w", path, err)
		}
		texts := []*string{&s.Path, &s.LinkedTo, &s.Target}
		values := map[string]string{}
		for k, v := range s.Xattrs {
			if values[k], err = strconv.Unquote(v); err != nil {
				return nil, fmt.Errorf("load fingerprint %s: xattr %s: %w", path, k, err)
			}
		}
		for _, text := range texts {
			if *text, err = strconv.Unquote(*text); err != nil {
				return nil, fmt.Errorf("load fingerprint %s: %w", path, err)
			}
		}
		s.Xattrs = nil
		if len(values) > 0 {
			s.Xattrs = values
		}
		t[s.Path] = s.Entry
	}
}
