package recover

import (
	"strings"
	"testing"

	"lifeboat/internal/dr"
)

// TestNotWhole: a plan names what was not captured whole, and what was half restored.
func TestNotWhole(t *testing.T) {
	t.Parallel()
	notes := notWhole([]dr.Tree{
		{Key: "volume:a", HalfRestored: []string{""}}, {Key: "volume:b"}, {Key: "volume:c", Degraded: "attribute x"}, {Key: "volume:d", Degraded: "attribute x"},
	})
	if len(notes) != 2 || !strings.Contains(notes[0], "half restored") || !strings.Contains(notes[0], "volume:a") || !strings.Contains(notes[1], "volume:c, volume:d: attribute x") {
		t.Errorf("%q", notes)
	}
}
