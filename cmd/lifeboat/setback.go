package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"lifeboat/internal/dr"
	"lifeboat/internal/repo"
	"lifeboat/internal/ui"
)

// setBacks says how the registry was set back under a system, as long as that
// stands. It comes after the work: not to know is told as a problem, too.
func (w *world) setBacks(ctx context.Context, system dr.System) []string {
	out := []string{}
	problems, err := w.repo.SetBacks(ctx, system)
	if err != nil {
		out = append(out, err.Error())
	}
	for _, p := range problems {
		out = append(out, p.String())
	}
	return out
}

// errSetBack ends a command that went on although the registry shows, or has shown,
// an older state. system may be "".
func errSetBack(system dr.System, problems []string, state string) error {
	return ui.Explained{What: strings.Join(problems, "; "), State: state, Next: nextSetBack(system), Err: dr.ErrPartial}
}

// explainSetBack is for commands that remove nothing from a repository that was set
// back.
func explainSetBack(err error) error {
	return ui.Explained{What: err.Error(), State: "nothing was removed; snapshots go on", Next: nextSetBack(""), Err: err}
}

// nextSetBack leads on from an older state.
func nextSetBack(system dr.System) []string {
	accept := "lifeboat snapshots --accept-older"
	if system != "" {
		accept = fmt.Sprintf("lifeboat snapshots %s --accept-older", system)
	}
	return []string{
		"find out whether the registry was restored from a backup of its own, or who deleted what is missing",
		"lifeboat repair  (puts back what the registry stores still, or a mirror of the configuration has)",
		"lifeboat repair --from URL  (where another mirror still has it)",
		accept + "  (if what is missing is lost or was meant to go: what the registry shows is its newest state from then on)",
	}
}

// together puts advice together: a command that is named twice stays where it was
// named first.
func together(lists ...[]string) (out []string) {
	named := map[string]bool{}
	for _, advice := range slices.Concat(lists...) {
		command, _, _ := strings.Cut(advice, "  (")
		if !named[command] {
			out = append(out, advice)
		}
		named[command] = true
	}
	return out
}

// setBacksOf picks out what says that the registry was set back.
func setBacksOf(problems []repo.Problem) (out []string) {
	for _, p := range problems {
		if p.SetBack() {
			out = append(out, p.String())
		}
	}
	return out
}

// forgottenView names what is gone and may have been forgotten by another host.
func forgottenView(tags []string) []ui.View {
	if len(tags) == 0 {
		return nil
	}
	return []ui.View{ui.Text("forgotten by another host, or hidden by the registry: " + tagRanges(tags) + " (this host has seen them, and has not forgotten them itself). What a mirror still has of them it gives back: lifeboat copy --mirror --repo MIRROR --to THIS-REPOSITORY")}
}

// acceptAdvice says what to do where the registry was set back.
func acceptAdvice(problems []repo.Problem) []string {
	if len(setBacksOf(problems)) == 0 {
		return nil
	}
	return nextSetBack("")
}
