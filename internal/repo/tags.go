package repo

import (
	"cmp"
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
	ClassKey        Class = "key"
	ClassHost       Class = "host"
	ClassPacks      Class = "m"
	ClassSnapshot   Class = "s"
	ClassRelocation Class = "r"
	ClassLock       Class = "l"
	ClassEpoch      Class = "e"
	ClassSwitch     Class = "w"
)

// Tag is a tag of a numbered class.
type Tag struct {
	Class Class
	// System is empty for the classes key and host.
	System dr.System
	Number dr.Number
	// Turn counts the records that speak of one snapshot, from 1 on: classes r and
	// l, whose Number is that of the snapshot. 0 for other classes.
	Turn dr.Number
}

func (t Tag) String() string {
	text := t.prefix() + strconv.FormatUint(uint64(t.Number), 10)
	if t.Class.takesTurns() {
		text += "." + strconv.FormatUint(uint64(t.Turn), 10)
	}
	return text
}

// takesTurns reports whether tags of the class carry a turn beside the number of
// a snapshot.
func (c Class) takesTurns() bool { return c == ClassRelocation || c == ClassLock }

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
// s, r, l, e, w. The error wraps dr.ErrTampered, for whoever wrote the tag did not
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
	case ClassSnapshot, ClassEpoch, ClassSwitch, ClassRelocation, ClassLock:
		if len(parts) != 3 && !t.Class.takesTurns() || len(parts) != 4 && t.Class.takesTurns() {
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
	if t.Class.takesTurns() {
		var ok bool
		if t.Turn, ok = parseNumber(parts[3]); !ok {
			return bad()
		}
		parts = parts[:3]
	}
	var ok bool
	if t.Number, ok = parseNumber(parts[len(parts)-1]); !ok {
		return bad()
	}
	return t, nil
}

// parseNumber reads a number of a tag: decimal, from 1 on, no leading zero.
func parseNumber(s string) (dr.Number, bool) {
	n, err := strconv.ParseUint(s, 10, 63)
	return dr.Number(n), err == nil && n > 0 && strconv.FormatUint(n, 10) == s
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
	return cmp.Or(cmp.Compare(a.Number, b.Number), cmp.Compare(a.Turn, b.Turn))
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

	// lost: this host has seen a record under the tag, which names something else now
	// or is gone.
	lost bool
}

// Foreign reports whether the problem is only that a tag names something that is
// not Lifeboat's, or not of a host that may write: what somebody with a login to
// the registry can put there at any time. It takes nothing from any snapshot.
// Damage of what Lifeboat stored is not foreign.
func (p Problem) Foreign() bool {
	switch {
	case p.Tag == "" || p.Blob != "" || !p.Snapshot.IsZero():
		return false
	case p.lost, p.SetBack():
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
