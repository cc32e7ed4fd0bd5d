package dr_test

import (
	"strings"
	"testing"

	"lifeboat/internal/dr"
)

// TestIsRestoreMark: marks, those of older versions among them, and nothing else that
// somebody may call a file.
func TestIsRestoreMark(t *testing.T) {
	t.Parallel()
	id := dr.SnapshotID{0xab, 31: 0x01}
	mark := dr.RestoreMark(id, "0f12")
	for name, want := range map[string]bool{
		mark: true, ".lifeboat-restore." + id.String(): true,
		"": false, ".lifeboat-restore": false, ".lifeboat-restore.": false, ".lifeboat-restore.notes": false,
		".lifeboat-restore.0f12": false, "x" + mark: false, mark + ".txt": false, mark + "z": false,
		"sub/" + mark: false, strings.ToUpper(mark): false,
	} {
		if got := dr.IsRestoreMark(name); got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
}
