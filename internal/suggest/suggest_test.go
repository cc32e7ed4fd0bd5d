package suggest_test

import (
	"testing"

	"lifeboat/internal/suggest"
)

func TestClosest(t *testing.T) {
	t.Parallel()
	keys := []string{"repo", "site", "sites", "systems", "state_dir", "key_file", "freeze_max"}
	for in, want := range map[string]string{
		"sytsems": "systems", "statedir": "state_dir", "keyfile": "key_file", "freeze-max": "freeze_max",
		"site": "site", "stie": "site", "": "", "password": "", "zzzz": "",
	} {
		if got := suggest.Closest(in, keys); got != want {
			t.Errorf("Closest(%q) = %q, want %q", in, got, want)
		}
	}
	if got := suggest.Hint("rep", keys); got != ` (did you mean "repo"?)` {
		t.Errorf("Hint = %q", got)
	}
}
