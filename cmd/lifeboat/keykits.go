package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"lifeboat/internal/repo"
	"lifeboat/internal/seal"
	"lifeboat/internal/ui"
)

// kitName is the recipient of the first recovery kit. Those of later ones begin with it.
const kitName = "recovery-kit"

// isKit tells by its name whether a recipient is that of a recovery kit.
func isKit(k repo.KeyInfo) bool {
	return k.Name == kitName || strings.HasPrefix(k.Name, kitName+"-")
}

// confirmLastKit asks before the names are removed that the last recovery kit has.
func (a *app) confirmLastKit(ctx context.Context, keys []repo.KeyInfo, names []string) error {
	var last, others []string
	for _, k := range keys {
		switch removed := slices.Contains(names, k.Name); {
		case removed && isKit(k):
			last = append(last, k.Name)
		case !removed && isKit(k):
			return nil
		case !removed:
			others = append(others, k.Name)
		}
	}
	if len(last) == 0 || len(others) == 0 {
		return nil // the last one of all is refused by the repository itself
	}
	return a.UI().Confirm(ctx, fmt.Sprintf("%q is the last recovery kit. Once it is removed no kit opens the repository: an empty host needs one of the keys that are left: %s. To exchange it, first: lifeboat kit --out FILE. Remove it?",
		strings.Join(last, ", "), strings.Join(others, ", ")))
}

// confirmNoNewerKey asks before keys are changed of a repository that holds something
// sealed with a newer key than it shows: a key record made now would begin a second
// line of keys. It is not refused, for anybody with a login can forge what says so.
func (a *app) confirmNoNewerKey(ctx context.Context, w *world) error {
	_, problems, err := w.repo.Snapshots(ctx, "")
	if err != nil {
		return fmt.Errorf("look whether a newer key is missing: %w", err)
	}
	newer := slices.DeleteFunc(problems, func(p repo.Problem) bool { return !errors.Is(p.Err, seal.ErrGeneration) })
	if len(newer) == 0 {
		return nil
	}
	err = a.UI().Confirm(ctx, fmt.Sprintf("%d snapshot(s), the first of them %s, are sealed with a newer key than the registry shows: a newer key record is missing there, or somebody forged them. If the keys are changed now, they stay lost even where a mirror or another host still has that record. Change the keys all the same?",
		len(newer), newer[0].Tag))
	var x ui.Explained
	if errors.As(err, &x) {
		x.Next = append([]string{
			"lifeboat repair --from URL  (of a mirror that has the key record), or lifeboat repair at a host that has opened the repository with it",
			"lifeboat check  (names what is sealed with it)",
		}, x.Next...)
		return x
	}
	return err
}

// keyAdvice says what to do about recovery kits after a change of keys: an earlier kit
// does not know the newest state of them (docs/threat-model.md, Older and different
// states).
func keyAdvice(keys []repo.KeyInfo) string {
	if !slices.ContainsFunc(keys, isKit) {
		return "no recovery kit opens the repository; make one, and keep it away from the hosts that it protects: lifeboat kit --out FILE"
	}
	return "recovery kits from before do not know of this change, and could be shown an older state; make a new one: lifeboat kit --out FILE"
}
