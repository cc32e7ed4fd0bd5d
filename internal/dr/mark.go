package dr

import "strings"

// markPrefix begins the name of a restore mark.
const markPrefix = ".lifeboat-restore."

// RestoreMark is the name of the file that marks a directory in which a restore of
// the snapshot is not at its end (package landing); tag tells apart what is restored
// of it, in lower-case hexadecimal digits.
func RestoreMark(id SnapshotID, tag string) string { return markPrefix + id.String() + "." + tag }

// IsRestoreMark reports whether a file of this name, the last element of a path, is
// a restore mark. It speaks of the directory that it lies in, at one place and time,
// and of no copy of it: no snapshot captures it, and no restore brings it back.
func IsRestoreMark(name string) bool {
	rest, ok := strings.CutPrefix(name, markPrefix)
	if !ok {
		return false
	}
	id, tag, _ := strings.Cut(rest, ".") // marks of older versions have no tag
	_, err := ParseSnapshotID(id)
	return err == nil && strings.Trim(tag, "0123456789abcdef") == ""
}
