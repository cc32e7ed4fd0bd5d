package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"lifeboat/internal/dr"
	"lifeboat/internal/redact"
	"lifeboat/internal/repo"
	"lifeboat/internal/store"
	"lifeboat/internal/ui"
)

type repairFlags struct {
	from               secondFlags
	read, dryRun, drop bool
}

func newRepairCmd(a *app) *cobra.Command {
	var f repairFlags
	cmd := &cobra.Command{
		Use:     "repair",
		GroupID: groupCare,
		Short:   "Mend what is damaged or gone, from wherever it can be had",
		Long: `Mend what is damaged or gone: from exact copies of the repository in other
registries, from what is sound in the repository itself, from other repositories.

A tag that does not name what it must is put right first where the registry stores
the record or snapshot still and this host has seen it there, which needs no other
registry. What has an exact copy is stored again as it was: records, pack manifests,
indexes, packs. Of what has none, the units that are lost are looked for in everything that
the repository still has, and by content in other repositories; they are put
together anew, and the snapshots that need them are relocated there, under their
own numbers. So a snapshot of the live system, taken after the damage was found,
heals the older ones as far as the system still has what they need. The mirrors of
the configuration are asked by themselves.

Nothing is used that was not read and compared, whoever wrote it. Nothing is
removed, unless --drop-damaged says that snapshots which still lose something in
the end, or of which nothing can be read, are to be forgotten; what is locked and the
head of a system's line stay even then. It also gives up records that cannot be read: a
lock ends by it; a record of a host, an epoch or a move stays in the registry and is no
damage to this host any more, after --accept-older. What cannot be mended is told file
by file. It can be run again at any time.

Damage that only reading shows is mended if this host has found it before (lifeboat
verify), or with --read. It begins again until nothing changes any more, and looks in
the end whether every snapshot has all of its units, for which it reads their lists of
files.

Exit codes: 0 everything is whole, 3 mended in part, 1 nothing could be mended; with
--dry-run they are those that the real run would have. The login needs the access
role operator, for relocations; --dry-run cannot tell whether it has it.`,
		Example: `  lifeboat repair --dry-run
  lifeboat repair --from oci://mirror.example.org/dr
  lifeboat snapshot shop && lifeboat repair
  lifeboat repair --read --from oci://other.example.org/dr --from-key-file /etc/lifeboat/other-key.txt`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runRepair(cmd.Context(), f) },
	}
	f.from.add(cmd, "from", "a registry with an exact copy, or of another repository; may be given several times")
	cmd.Flags().BoolVar(&f.read, "read", false, "read everything first, as verify does")
	cmd.Flags().BoolVarP(&f.dryRun, "dry-run", "n", false, "show what would be done, and change nothing")
	cmd.Flags().BoolVar(&f.drop, "drop-damaged", false, "forget snapshots that cannot be mended in full, and give up records that cannot be read")
	return cmd
}

// repairAnswer is the JSON answer of repair. The members of checkAnswer tell what
// is left in the end; with DryRun, what the real run would leave.
type repairAnswer struct {
	DryRun bool        `json:"dry_run"`
	Steps  []repairRow `json:"steps"`
	// Found is how many problems there were before.
	Found int `json:"found"`
	checkAnswer
}

type repairRow struct {
	Action repo.RepairAction `json:"action"`
	Tag    string            `json:"tag,omitempty"`
	As     string            `json:"as,omitempty"` // the relocation that was made of Tag
	Blob   string            `json:"blob,omitempty"`
	From   string            `json:"from,omitempty"`
	Units  int               `json:"units,omitempty"`
	Lacks  int               `json:"lacks,omitempty"`
	Bytes  int64             `json:"bytes,omitempty"`
	// Unhurt: nothing of the snapshot Tag is lost; it lists what is damaged in places
	// that it does not need.
	Unhurt bool   `json:"unhurt,omitempty"`
	Error  string `json:"error,omitempty"`
}

func (a *app) runRepair(ctx context.Context, f repairFlags) error {
	if f.dryRun && f.drop {
		return fmt.Errorf("--drop-damaged depends on what could be mended, which --dry-run does not do: %w", dr.ErrUsage)
	}
	src, err := a.source()
	if err != nil {
		return err
	}
	if src.keysFrom, err = a.keysFrom(src, f.from.urls); err != nil {
		return err
	}
	src.repairs = true
	w, err := a.openSourceSigning(ctx, src) // what it puts together is signed
	if err != nil {
		return err
	}
	defer w.close()
	o := repo.RepairOptions{Read: f.read, DryRun: f.dryRun, DropDamaged: f.drop}
	var from []*second
	urls := f.from.urls
	for _, m := range w.src.mirrors {
		if !slices.ContainsFunc(urls, func(u string) bool { return location(u) == location(m.url) }) {
			urls = append(urls, m.url)
		}
	}
	for i, url := range urls {
		s, err := a.openSecond(ctx, w, f.from, url)
		if err != nil && i >= len(f.from.urls) && ctx.Err() == nil {
			a.UI().Warn("mirror %s is left out: %v", location(url), err)
			continue
		}
		if err != nil {
			return err
		}
		defer s.close()
		from = append(from, s)
		o.From = append(o.From, s.repairSource())
	}
	res, err := a.repair(ctx, w, o)
	if err != nil {
		return a.explainRegistry(w.src, "what was mended before stays; run it again to go on", err)
	}
	return a.repairEnd(ctx, res, from, f)
}

// keysFrom are the registries that are asked for key records where those of the
// repository are damaged: those that were named, and the mirrors.
func (a *app) keysFrom(src source, urls []string) ([]address, error) {
	cfg, err := a.Config()
	if err != nil {
		return nil, err
	}
	out := slices.Clone(src.mirrors)
	for _, url := range urls {
		if _, _, known := pick(out, url); known || location(url) == location(src.url) {
			continue
		}
		o, err := registryOptions(cfg, url)
		if err != nil {
			return nil, err
		}
		out = append(out, address{url, o})
	}
	return out, nil
}

// repair runs it and shows progress.
func (a *app) repair(ctx context.Context, w *world, o repo.RepairOptions) (*repo.Repaired, error) {
	if o.Read {
		task := a.UI().Progress().Bytes("read", -1)
		o.Progress = func(p repo.VerifyProgress) {
			task.SetTotal(p.BytesTotal)
			task.SetDone(p.Bytes)
		}
		defer func() { task.Done(nil) }()
	}
	steps := a.UI().Progress().Items("mend", -1)
	o.Stepped = func(repo.RepairStep) { steps.Add(1) }
	res, err := w.repo.Repair(ctx, o)
	steps.Done(err)
	return res, err
}

func (a *app) repairEnd(ctx context.Context, res *repo.Repaired, from []*second, f repairFlags) error {
	left, foreign, err := a.damageAnswer(ctx, res.After)
	if err != nil {
		return err
	}
	ans := repairAnswer{DryRun: f.dryRun, Steps: []repairRow{}, Found: len(res.Before.Problems), checkAnswer: left}
	done, failed := 0, 0
	for _, s := range res.Steps {
		row := repairRow{Action: s.Action, Tag: s.Tag, As: s.As, Blob: s.Blob.String(), From: s.From, Units: s.Units, Lacks: s.Lacks, Bytes: s.Bytes, Unhurt: s.Unhurt}
		if s.Err != nil {
			failed++
			row.Error = redact.String(s.Err.Error())
		} else {
			done++
		}
		ans.Steps = append(ans.Steps, row)
	}
	var views []ui.View
	if len(from) > 0 {
		views = append(views, sourcesView(from))
	}
	views = append(views, stepsView(ans))
	damaged, refused := len(res.After.Problems)-foreign, res.Refused()
	if damaged > 0 {
		views = append(views, checkViews(left, res.After.Problems)...)
	}
	views = append(views, givenUpView(res.After.GivenUp)...)
	if f.dryRun {
		views = append(views, lossView(left.Hit, damaged+len(refused)))
	}
	if err := a.UI().Answer(ans, views...); err != nil {
		return err
	}
	if res.Healed() {
		return nil
	}
	return repairLeft(ans, res, done, failed, f.drop)
}

// givenUp counts what was taken away, or would be, because it could not be mended.
func givenUp(steps []repo.RepairStep) (n int) {
	for _, s := range steps {
		if s.Action == repo.RepairForgotten && s.Err == nil {
			n++
		}
	}
	return n
}

// mostLost reports how many snapshots of how many lose something or cannot be read,
// and whether these are so many that the registry must have lost much at once.
func mostLost(ans repairAnswer, x *repo.Examination) (lost, of int, most bool) {
	hit := map[string]bool{}
	for _, h := range ans.Hit {
		hit[h.Tag] = true
	}
	of = x.Snapshots
	for _, d := range ans.Damaged {
		for _, tag := range d.Tags {
			if isSnapshotTag(tag) && d.Blob == "" && len(d.Snapshots) == 0 && !hit[tag] {
				hit[tag] = true
				of++ // it could not be looked at
			}
		}
	}
	return len(hit), of, len(hit) > 2 && 2*len(hit) > of
}

// repairLeft is the error where something is damaged still, or would be after a dry
// run: both end with the same exit code. drop says that what could not be mended was to
// be given up.
func repairLeft(ans repairAnswer, res *repo.Repaired, done, failed int, drop bool) error {
	refused := res.Refused()
	x := ui.Explained{
		What:  fmt.Sprintf("%d thing(s) of the repository are damaged or gone still", len(ans.Damaged)),
		State: "what could be mended was, and stays; nothing was removed; snapshots that are not named above are whole",
		Err:   dr.ErrTampered,
	}
	if n := givenUp(res.Steps); n > 0 {
		x.State = fmt.Sprintf("what could be mended was, and stays; %d thing(s) that could not be were given up, as named above, and nothing else was removed; snapshots that are not named above are whole", n)
	}
	var look, next []string
	if failed > 0 {
		look = []string{"look at the steps that failed, above"}
	}
	lost, of, most := mostLost(ans, res.After)
	if most {
		look = append(look, fmt.Sprintf("look at the registry's disk and its log, before anything else is written to it or given up: it has lost something of %d of %d snapshots at once, which its own storage, a backup of that, or a mirror may have still", lost, of))
	}
	if ans.DryRun {
		x.What = fmt.Sprintf("%d thing(s) of the repository would be damaged or gone still", len(ans.Damaged))
		x.State = "nothing was changed (--dry-run); the real run would end with the same exit code"
		if done > 0 && len(ans.Damaged) > 0 {
			next = append(next, "lifeboat repair  (with the same options: mends what can be mended)")
		}
	}
	if len(ans.Damaged) == 0 {
		x.What = "what belongs under some tags could not be put back: " + tagsOf(refused)
	} else {
		if len(refused) > 0 {
			x.What += "; and what belongs under some tags could not be put back: " + tagsOf(refused)
		}
		next = append(next,
			"lifeboat repair --from URL  (of a registry or repository that has what is missing)",
			"lifeboat snapshot SYSTEM && lifeboat repair  (at the site that holds it: what its disk still has heals older snapshots)",
		)
	}
	ways := nextRefused(refused)
	if older := acceptAdvice(res.After.Problems); len(ways) == 0 && len(older) > 0 {
		// An older state is accepted only when nothing has what is missing, and nothing
		// can be given up before it is.
		look, ways = append(look, older[0]), nil
		next = append(next, older[len(older)-1])
	}
	if len(ans.Damaged) > 0 && !most && !drop {
		next = append(next, "lifeboat repair --drop-damaged  (gives up the snapshots that lose something, and records that cannot be read)")
	}
	x.Next = together(look, ways, next)
	if done > 0 {
		x.Err = dr.ErrPartial
	}
	return x
}

// tagsOf names the tags of steps.
func tagsOf(steps []repo.RepairStep) string {
	var out []string
	for _, s := range steps {
		out = append(out, s.Tag)
	}
	return strings.Join(out, ", ")
}

// nextRefused leads on from records that the registry does not take again: no repair
// can put them back.
func nextRefused(steps []repo.RepairStep) []string {
	var next []string
	add := func(s string) {
		if !slices.Contains(next, s) {
			next = append(next, s)
		}
	}
	for _, s := range steps {
		t, err := repo.ParseTag(s.Tag)
		if err != nil {
			continue
		}
		switch t.Class {
		case repo.ClassKey:
			way := "lifeboat key rotate  (at a host that has opened the repository before: a new key record takes its place); then make a new recovery kit: lifeboat kit --out FILE"
			if !errors.Is(s.Err, store.ErrTagRetired) {
				way = "take the tag " + s.Tag + " away, which names nothing of Lifeboat's (any registry client with an operator's login); then " + way
			}
			add(way)
		case repo.ClassHost:
			add("lifeboat snapshots --accept-older; then, at each host that the record enrolled: lifeboat host enroll")
		case repo.ClassEpoch, repo.ClassSwitch:
			add("lifeboat snapshots --accept-older  (gives up the records that are named above: what the registry shows is its newest state from then on)")
		}
	}
	return next
}

// listedSteps bounds how many steps are shown to people.
const listedSteps = 40

func stepsView(ans repairAnswer) ui.View {
	t := ui.Table{
		Columns: []ui.Column{{Title: "step"}, {Title: "what", Elastic: true}, {Title: "from"}, {Title: "size", Right: true}, {Title: "remark", Elastic: true}},
		Empty:   "there is nothing that can be mended",
	}
	if ans.Found == 0 {
		t.Empty = "no problems were found"
	}
	for i, s := range ans.Steps {
		if i == listedSteps {
			t.Rows = append(t.Rows, []string{"…", fmt.Sprintf("and %d more", len(ans.Steps)-i)})
			break
		}
		verb := string(s.Action)
		if ans.DryRun {
			verb = "to be " + verb
		}
		what, size := strings.TrimSpace(s.Tag+" "+s.Blob), ""
		if s.As != "" {
			what = s.Tag + " as " + s.As
		}
		if s.Units > 0 {
			what = fmt.Sprintf("%d units", s.Units)
		}
		if s.Bytes > 0 {
			size = bytesText(s.Bytes)
		}
		remark := s.Error
		if remark != "" {
			verb = "not " + string(s.Action)
		} else if s.Lacks > 0 {
			remark = fmt.Sprintf("lacks %d units still", s.Lacks)
		} else if s.Unhurt {
			remark = "nothing of it is lost; it lists a damaged pack"
		}
		t.Rows = append(t.Rows, []string{verb, what, s.From, size, remark})
	}
	return t
}

// lossView says what would be left; damaged is how many problems would be.
func lossView(hit []hitSnapshot, damaged int) ui.View {
	t := ui.Table{
		Title:   "what cannot be mended from there",
		Columns: []ui.Column{{Title: "snapshot"}, {Title: "files", Right: true}, {Title: "bytes", Right: true}},
		Empty:   "everything that is lost can be mended, as far as is known",
	}
	if damaged > 0 {
		t.Empty = "what is named above stays damaged or gone; no snapshot that can be read loses anything by it"
	}
	for _, h := range hit {
		t.Rows = append(t.Rows, []string{h.Tag, fmt.Sprint(h.Files), bytesText(h.Bytes)})
	}
	return t
}
