package repo

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"lifeboat/internal/dr"
	"lifeboat/internal/store"
)

// Class is the first part of a tag; it says what the tag names (docs/format.md,
// Where it lives).
type Class string

// The classes that this package reads and writes.
const (
	ClassKey      Class = "key"
	ClassHost     Class = "host"
	ClassPacks    Class = "m"
	ClassSnapshot Class = "s"
	ClassEpoch    Class = "e"
	ClassSwitch   Class = "w"
)

// Tag is a tag of a numbered class.
type Tag struct {
	Class Class
	// System is empty for the classes key and host.
	System dr.System
	Number dr.Number
}

func (t Tag) String() string { return t.prefix() + strconv.FormatUint(uint64(t.Number), 10) }

// prefix is what the tags of one class and system have in common.
func (t Tag) prefix() string {
	if t.System == "" {
		return string(t.Class) + "."
	}
	return string(t.Class) + "." + string(t.System) + "."
}

// next is the tag with the following number.
func (t Tag) next() Tag {
	t.Number++
	return t
}

// ParseTag reads a tag of a numbered class that belongs to records: key, host,
// s, e, w. The error wraps dr.ErrTampered, for whoever wrote the tag did not
// keep to the grammar.
func ParseTag(s string) (Tag, error) {
	bad := func() (Tag, error) {
		return Tag{}, fmt.Errorf("tag %q is not of the grammar: %w", s, dr.ErrTampered)
	}
	parts := strings.Split(s, ".")
	t := Tag{Class: Class(parts[0])}
	switch t.Class {
	case ClassKey, ClassHost:
		if len(parts) != 2 {
			return bad()
		}
	case ClassSnapshot, ClassEpoch, ClassSwitch:
		if len(parts) != 3 {
			return bad()
		}
		sys, err := dr.ParseSystem(parts[1])
		if err != nil {
			return bad()
		}
		t.System = sys
	default:
		return bad()
	}
	last := parts[len(parts)-1]
	n, err := strconv.ParseUint(last, 10, 63)
	if err != nil || n == 0 || strconv.FormatUint(n, 10) != last {
		return bad()
	}
	t.Number = dr.Number(n)
	return t, nil
}

// isPackTag reports whether s is the tag of a pack manifest, by its form.
func isPackTag(s string) bool {
	hex, ok := strings.CutPrefix(s, string(ClassPacks)+".")
	return ok && len(hex) == 32 && strings.Trim(hex, "0123456789abcdef") == ""
}

// parseTags sorts the well-formed tags of one class by system and number; the
// others are problems.
func parseTags(names []string) (tags []Tag, problems []Problem) {
	for _, name := range names {
		t, err := ParseTag(name)
		if err != nil {
			problems = append(problems, Problem{Tag: name, Err: err})
			continue
		}
		tags = append(tags, t)
	}
	slices.SortFunc(tags, compareTags)
	return tags, problems
}

func compareTags(a, b Tag) int {
	if c := strings.Compare(string(a.System), string(b.System)); c != 0 {
		return c
	}
	switch {
	case a.Number < b.Number:
		return -1
	case a.Number > b.Number:
		return 1
	}
	return 0
}

// Problem is something in the repository that does not verify. It concerns what
// it names and nothing else.
type Problem struct {
	// Tag is the tag at which it was found, Blob the digest of the blob or
	// manifest concerned; either may be empty.
	Tag  string
	Blob string
	// Snapshot is set where a snapshot cannot be restored whole because of it.
	Snapshot dr.SnapshotID
	Err      error
}

// Foreign reports whether the problem is only that a tag names something that is
// not Lifeboat's, or not of a host that may write: what somebody with a login to
// the registry can put there at any time. It takes nothing from any snapshot.
// Damage of what Lifeboat stored is not foreign.
func (p Problem) Foreign() bool {
	switch {
	case p.Tag == "" || p.Blob != "" || !p.Snapshot.IsZero():
		return false
	case strings.HasSuffix(p.Tag, "*"): // the registry as a whole was set back
		return false
	case errors.Is(p.Err, store.ErrDigestMismatch):
		return false
	}
	return errors.Is(p.Err, dr.ErrTampered) || errors.Is(p.Err, store.ErrTooLarge)
}

// String says all of it in one line.
func (p Problem) String() string {
	var b strings.Builder
	if p.Tag != "" {
		fmt.Fprintf(&b, "tag %s: ", p.Tag)
	}
	if !p.Snapshot.IsZero() {
		fmt.Fprintf(&b, "snapshot %s: ", p.Snapshot.Short())
	}
	if p.Blob != "" {
		fmt.Fprintf(&b, "%s: ", p.Blob)
	}
	fmt.Fprintf(&b, "%v", p.Err)
	return b.String()
}
