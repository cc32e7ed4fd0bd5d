package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"lifeboat/internal/dr"
	"lifeboat/internal/site"
	"lifeboat/internal/ui"
)

// What a command says of an error that does not say it itself: whether anything was
// done, and a step that leads on.
func TestStateAndNextStep(t *testing.T) {
	t.Parallel()
	half := &site.HalfWrittenError{System: "shop", Trees: []string{"layer:web", "volume:data"}}
	if text := half.Error(); strings.Contains(text, "[") || !strings.Contains(text, "layer:web, volume:data are half written") {
		t.Error(text)
	}
	for _, tc := range []struct {
		command     string
		err         error
		state, next string
	}{
		{"restore", untouched{fmt.Errorf("no such snapshot: %w", dr.ErrNotFound)}, stateNothing, "lifeboat snapshots"},
		{"restore", fmt.Errorf("half way: %w", dr.ErrNotFound), stateParts, "lifeboat snapshots"},
		{"snapshot", fmt.Errorf("snapshot: %w", half), stateNothing, "lifeboat failover shop"},
		{"failover", fmt.Errorf("failover: %w", half), stateParts, "lifeboat failback shop"},
		{"copy", fmt.Errorf("copy: %w", dr.ErrTampered), stateParts, "lifeboat repair --from"},
		{"copy", errors.New("copy: something else"), stateParts, "mend what is named above"},
	} {
		root := &cobra.Command{Use: "lifeboat"}
		cmd := &cobra.Command{Use: tc.command}
		root.AddCommand(cmd)
		a := &app{cmd: cmd}
		var x ui.Explainer
		if err := a.whole(t.Context(), outcomeOf(t.Context(), tc.err), tc.err); !errors.As(err, &x) {
			t.Fatalf("%v is not explained", tc.err)
		}
		state, next := x.Explain()
		if state != tc.state || !strings.Contains(strings.Join(next, "\n"), tc.next) {
			t.Errorf("%s, %v: %q, %q", tc.command, tc.err, state, next)
		}
	}
}
