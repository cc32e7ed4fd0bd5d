package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"lifeboat/internal/dr"
	"lifeboat/internal/landing"
	"lifeboat/internal/repo"
	"lifeboat/internal/suggest"
	"lifeboat/internal/ui"
)

// restoreLine is the command that restores for a purpose into a directory, with what
// else was said in this run.
func (a *app) restoreLine(ref string, p landing.Purpose, to string) string {
	words := []string{"lifeboat", "restore", ref}
	if len(p.Trees) == 1 {
		if volume, ok := strings.CutPrefix(p.Trees[0], "volume:"); ok {
			words = append(words, "--volume", volume)
		} else {
			words = append(words, "--tree", p.Trees[0])
		}
	}
	if p.Path != "" {
		words = append(words, "--path", p.Path)
	}
	words = append(words, "--to", to)
	if p.InPlace {
		words = append(words, "--in-place")
	}
	if p.Remove {
		words = append(words, "--delete")
	}
	if a.cmd != nil {
		words = append(words, a.flagWordsOfAll()...)
	}
	return suggest.Command(words...)
}

// flagWordsOfAll are the flags that were given and that every command has, or restore
// for the sake of what is running.
func (a *app) flagWordsOfAll() (words []string) {
	all := a.cmd.InheritedFlags()
	a.cmd.Flags().Visit(func(f *pflag.Flag) {
		if !f.Hidden && (all.Lookup(f.Name) != nil || f.Name == "while-running") {
			for _, v := range flagValues(f) {
				words = append(words, flagWord(f, v)...)
			}
		}
	})
	return words
}

// atNumber names a snapshot for good.
func atNumber(sys dr.System, n dr.Number) string { return fmt.Sprintf("%s@#%d", sys, n) }

// goesOn is the command that goes on with the restore that left a mark; "" where its
// snapshot is not there any more, or never was.
func (w *world) goesOn(ctx context.Context, a *app, m landing.Mark, to string, sys dr.System) (string, error) {
	if !m.Plain() || m.Purpose.Repository != w.repo.ID().String() {
		return "", nil
	}
	if m.Purpose.System != "" {
		sys = m.Purpose.System
	}
	snap, err := w.repo.Find(ctx, sys, m.Purpose.Snapshot.String())
	if errors.Is(err, dr.ErrNotFound) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return a.restoreLine(atNumber(sys, snap.Number), m.Purpose, to), nil
}

// halfRestored are the keys of trees that were half restored when they were captured.
func halfRestored(trees []dr.Tree) (keys []string) {
	for _, t := range trees {
		if len(t.HalfRestored) > 0 {
			keys = append(keys, t.Key)
		}
	}
	return keys
}

// newestWhole names the newest snapshot in which all these trees are, and none of them
// half restored; "" where there is none among the newest.
func (w *world) newestWhole(ctx context.Context, sys dr.System, keys []string) string {
	const looked = 50
	snaps, _, err := w.repo.Snapshots(ctx, sys)
	if err != nil {
		return ""
	}
	slices.SortFunc(snaps, func(a, b repo.Snapshot) int { return cmp.Compare(b.Number, a.Number) })
	for _, s := range snaps[:min(looked, len(snaps))] {
		root, err := w.rootOf(ctx, &s)
		if err != nil {
			continue
		}
		whole := map[string]bool{}
		for _, t := range root.Trees {
			whole[t.Key] = len(t.HalfRestored) == 0
		}
		if !slices.ContainsFunc(keys, func(k string) bool { return !whole[k] }) {
			return atNumber(sys, s.Number)
		}
	}
	return ""
}

// rootOf reads the root record of a snapshot.
func (w *world) rootOf(ctx context.Context, s *repo.Snapshot) (*dr.Root, error) {
	rd, err := w.repo.NewReader(ctx, s)
	if err != nil {
		return nil, err
	}
	defer rd.Close()
	return rd.Root(ctx)
}

// ofHalfRestored ends a restore of what is itself a mixture of two states.
func (j *restoring) ofHalfRestored(ctx context.Context, keys []string) error {
	next := []string{fmt.Sprintf("lifeboat snapshots %s  (another one may be whole)", j.snap.System)}
	if ref := j.world.newestWhole(ctx, j.snap.System, j.purpose.Trees); ref != "" {
		p := j.purpose
		p.InPlace, p.Remove = true, true
		next = []string{j.app.restoreLine(ref, p, j.to) + "  (the newest snapshot in which it is whole)"}
	}
	return ui.Explained{
		What:  fmt.Sprintf("snapshot %s has %s half restored: a restore was cut off there when it was taken", j.ref(), strings.Join(keys, ", ")),
		State: j.to + " holds what the snapshot has, which is a mixture of two states",
		Next:  next, Err: dr.ErrPartial,
	}
}

// nextOfMarks leads on from marks that restores into a directory have left; then is
// the restore that met them.
func (w *world) nextOfMarks(ctx context.Context, a *app, marks []landing.Mark, to, ref string, then landing.Purpose) (next []string, gone bool) {
	seen := map[string]bool{}
	add := func(line, does string) {
		if !seen[line] {
			next = append(next, line+"  ("+does+")")
		}
		seen[line] = true
	}
	for _, m := range marks {
		line, err := w.goesOn(ctx, a, m, to, then.System)
		if err == nil && line != "" {
			add(line, "goes on with the one that was cut off")
		}
		gone = gone || err == nil && line == ""
	}
	for _, m := range marks {
		over := landing.Purpose{Trees: m.Purpose.Trees, InPlace: true, Remove: true}
		if !m.Plain() { // nothing of it is put into a command
			over.Trees = then.Trees
		}
		with := ref
		if then.Half {
			with = w.newestWhole(ctx, then.System, over.Trees)
		}
		if with != "" && (!m.Plain() || m.Purpose.System == "" || m.Purpose.System == then.System) {
			add(a.restoreLine(with, over, to), "takes it over: brings all of it to the state of this snapshot, and takes away what that does not have")
		}
	}
	for _, m := range marks {
		add(suggest.Command("rm", filepath.Join(to, m.Name)), "only if what is in the directory is right as it is")
	}
	return next, gone
}

// explainOccupied is for a directory in which other restores are not at their end.
func (w *world) explainOccupied(ctx context.Context, a *app, occupied *landing.OccupiedError, ref string, p landing.Purpose) error {
	next, gone := w.nextOfMarks(ctx, a, occupied.Marks, occupied.Dir, ref, p)
	what := occupied.Error()
	if p.Half {
		what += "; of snapshot " + ref + ", too, what was asked for is half restored, so that it is the end of nothing"
	}
	if gone {
		what += "; its snapshot is not in this repository (any more), so that it can only be taken over"
	}
	if !p.InPlace {
		next = append(next, "or name a new or empty directory with --to")
	}
	return ui.Explained{What: what, State: "what is in the directory is untouched", Next: next, Err: occupied}
}

// stillMarked ends a restore of a part, in a directory of which the rest is still what
// another one has left.
func (w *world) stillMarked(ctx context.Context, a *app, left []landing.Mark, to, ref string, p landing.Purpose) error {
	var what []string
	for _, m := range left {
		what = append(what, m.String())
	}
	next, _ := w.nextOfMarks(ctx, a, left, to, ref, p)
	return ui.Explained{
		What:  fmt.Sprintf("what was asked for is restored, and %s is still marked: another restore into it was cut off (%s)", to, strings.Join(what, "; ")),
		State: "the rest of the directory is a mixture of two states; nothing should be started on it",
		Next:  next, Err: dr.ErrPartial,
	}
}

// errHalfRestored ends a command whose snapshot has a mixture of two states.
func (a *app) errHalfRestored(ctx context.Context, w *world, s *snapshotAnswer) error {
	var what, next []string
	for _, h := range s.HalfRestored {
		what = append(what, h.Path+" ("+h.Tree+")")
		if h.Local == "" {
			continue
		}
		marks, err := landing.Marks(h.Local)
		if err != nil {
			continue // somebody has ended it meanwhile, or the next snapshot says it again
		}
		then := landing.Purpose{System: s.System, Trees: []string{h.Tree}, InPlace: true, Remove: true, Half: true}
		lines, _ := w.nextOfMarks(ctx, a, marks, h.Path, "", then)
		next = append(next, lines...)
	}
	return ui.Explained{
		What:  fmt.Sprintf("system %s is half restored: a restore was cut off, or is under way, in %s", s.System, strings.Join(what, ", ")),
		State: fmt.Sprintf("the snapshot is stored as the newest, number %d, with a mixture of two states in it; the ones before stay", s.Number),
		Next: append(next,
			"stop what uses the directory before that, and when it is restored: lifeboat snapshot "+string(s.System),
			fmt.Sprintf("lifeboat failover %s --snapshot '#NUMBER'  (brings an earlier one up; lifeboat snapshots %s lists them)", s.System, s.System)),
		Err: dr.ErrPartial,
	}
}
