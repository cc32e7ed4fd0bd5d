package registry

import (
	"regexp"
	"strconv"
	"strings"
)

// tagClass is the first component of a tag of Lifeboat's grammar
// (docs/format.md, Where it lives), or classOrdinary.
type tagClass string

const (
	classOrdinary  tagClass = "" // any other tag: images of other tools
	classKey       tagClass = "key"
	classHost      tagClass = "host"
	classPacks     tagClass = "m"
	classSnapshot  tagClass = "s"
	classMoved     tagClass = "r"
	classLock      tagClass = "l"
	classEpoch     tagClass = "e"
	classSwitch    tagClass = "w"
	classContinued tagClass = "c"
	classHeartbeat tagClass = "h"
)

// tag is a tag taken apart.
type tag struct {
	text  string
	class tagClass
	// system is set for the classes that belong to one.
	system string
	// number is set for all classes but packs. Where of is set it is the turn.
	number uint64
	// of is the number of the snapshot of which relocations and locks speak.
	of uint64
	// prefix is the hexadecimal part of packs.
	prefix string
}

// The grammar. A number has no leading zero and at most 18 digits; a system has
// no dots. The parts after the class are matched whole.
var (
	numberedRE = regexp.MustCompile(`^(key|host)\.([1-9][0-9]{0,17})$`)
	systemRE   = regexp.MustCompile(`^(s|e|w|c|h)\.([a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?)\.([1-9][0-9]{0,17})$`)
	turnsRE    = regexp.MustCompile(`^(r|l)\.([a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?)\.([1-9][0-9]{0,17})\.([1-9][0-9]{0,17})$`)
	packsRE    = regexp.MustCompile(`^m\.([0-9a-f]{32,64})$`)
)

// parseTag takes text apart. What does not fit the grammar exactly is an
// ordinary tag, also where it looks similar: readers of a repository ignore it.
func parseTag(text string) tag {
	t := tag{text: text}
	if m := numberedRE.FindStringSubmatch(text); m != nil {
		t.class, t.number = tagClass(m[1]), number(m[2])
	} else if m := systemRE.FindStringSubmatch(text); m != nil {
		t.class, t.system, t.number = tagClass(m[1]), m[2], number(m[3])
	} else if m := turnsRE.FindStringSubmatch(text); m != nil {
		t.class, t.system, t.of, t.number = tagClass(m[1]), m[2], number(m[3]), number(m[4])
	} else if m := packsRE.FindStringSubmatch(text); m != nil {
		t.class, t.prefix = classPacks, m[1]
	}
	return t
}

func number(s string) uint64 {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		panic("registry: number beyond the grammar: " + s) // 18 digits fit
	}
	return n
}

// ordinary reports whether the tag may move, as far as its grammar goes.
func (t tag) ordinary() bool { return t.class == classOrdinary }

// numbered reports whether the tag stands in a series.
func (t tag) numbered() bool { return t.number > 0 }

// dense reports whether number n of the series requires that n-1 was there.
// Continuous snapshots and heartbeats are expired by age and may have gaps.
func (t tag) dense() bool {
	switch t.class {
	case classKey, classHost, classSnapshot, classMoved, classLock, classEpoch, classSwitch:
		return true
	}
	return false
}

// before returns the tag that must have been used before a dense one: that of
// the number before, or of the snapshot of which it is the first to speak. ok is
// false where none must.
func (t tag) before() (b tag, ok bool) {
	switch {
	case !t.dense():
		return b, false
	case t.number > 1:
		return t.with(t.number - 1), true
	case t.of > 0:
		return parseTag(string(classSnapshot) + "." + t.system + "." + strconv.FormatUint(t.of, 10)), true
	}
	return b, false
}

// with returns the tag with number n of the same series.
func (t tag) with(n uint64) tag {
	t.number = n
	t.text = t.series() + "." + strconv.FormatUint(n, 10)
	return t
}

// series names what one writer at a time may add to: the tag without its
// number, or the tag itself.
func (t tag) series() string {
	if t.numbered() {
		return t.text[:strings.LastIndexByte(t.text, '.')]
	}
	return t.text
}

// isSystem reports whether s is a system's name.
func isSystem(s string) bool {
	return systemRE.MatchString("s." + s + ".1")
}
