package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"lifeboat/internal/dr"
	"lifeboat/internal/redact"
	"lifeboat/internal/repo"
	"lifeboat/internal/ui"
)

// runExamine is check and verify.
func (a *app) runExamine(ctx context.Context, what, ref string, o repo.ExamineOptions) error {
	w, err := a.open(ctx, false)
	if err != nil {
		return err
	}
	defer w.close()
	if err := w.choose(ctx, ref, &o); err != nil {
		return err
	}
	x, err := a.examine(ctx, w, what, o)
	if err != nil {
		return err
	}
	ans, foreign, err := a.damageAnswer(ctx, x)
	if err != nil {
		return err
	}
	views := slices.Concat(checkViews(ans, x.Problems), forgottenView(x.Forgotten), givenUpView(x.GivenUp))
	if x.Reading != nil {
		ans.Read = readAnswerOf(x.Reading, o.Read.Within)
		views = append(views, readView(ans.Read))
	}
	if err := a.UI().Answer(ans, views...); err != nil {
		return err
	}
	switch {
	case len(x.Problems) == 0:
		return nil
	case foreign == len(x.Problems):
		next := []string{"find out which login writes them, and take it away"}
		if slices.ContainsFunc(x.Problems, func(p repo.Problem) bool { return errors.Is(p.Err, repo.ErrNotEnrolled) }) {
			next = append(next, nextNotEnrolled()...)
		}
		return ui.Explained{
			What:  fmt.Sprintf("every snapshot is whole, but %d tag(s) hold something that is not Lifeboat's or not of a host that may write", foreign),
			State: "nothing was changed; such tags are passed over everywhere",
			Next:  next,
			Err:   dr.ErrPartial,
		}
	}
	return ui.Explained{
		What:  fmt.Sprintf("%s found %d thing(s) of the repository damaged or gone", what, len(ans.Damaged)),
		State: "nothing was changed; snapshots that are not named above are whole",
		Next:  together(adviceOf(ans.Damaged), acceptAdvice(x.Problems)),
		Err:   dr.ErrTampered,
	}
}

// examine shows the progress of an examination.
func (a *app) examine(ctx context.Context, w *world, what string, o repo.ExamineOptions) (*repo.Examination, error) {
	if o.Read == nil {
		x, err := w.repo.Examine(ctx, o)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		return x, nil
	}
	task := a.UI().Progress().Bytes(what, -1)
	o.Progress = func(p repo.VerifyProgress) {
		task.SetTotal(p.BytesTotal)
		task.SetDone(p.Bytes)
	}
	x, err := w.repo.Examine(ctx, o)
	task.Done(err)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return x, nil
}

// damageAnswer says what was found and what is hit by it; foreign counts the
// problems that harm nobody.
func (a *app) damageAnswer(ctx context.Context, x *repo.Examination) (ans checkAnswer, foreign int, err error) {
	ans = checkAnswer{Problems: []string{}, Damaged: gather(x.Problems), Hit: []hitSnapshot{}, Forgotten: append([]string{}, x.Forgotten...), GivenUp: append([]string{}, x.GivenUp...)}
	for _, p := range x.Problems {
		if p.Foreign() {
			foreign++
		}
		ans.Problems = append(ans.Problems, p.String())
	}
	if len(ans.Damaged) == 0 {
		return ans, foreign, nil
	}
	b := newLossBook(ans.Damaged, a.UI().JSON())
	if err := x.Losses(ctx, b.add); err != nil {
		if ctx.Err() != nil {
			return ans, foreign, err
		}
		a.UI().Warn("what is hit could not be found out in full: %v", err)
		ans.Hit = b.list()
		return ans, foreign, nil // which systems lose nothing is not known then
	}
	ans.Hit = b.close()
	return ans, foreign, nil
}

// checkAnswer is the JSON answer of check and verify.
type checkAnswer struct {
	Problems []string `json:"problems"`
	Damaged  []damage `json:"damaged"`
	// Hit are the snapshots that lose something, with everything that they lose.
	Hit  []hitSnapshot `json:"hit"`
	Read *readAnswer   `json:"read,omitempty"`
	// Forgotten are snapshots that this host has seen and not forgotten itself, and
	// that are not there: another host has forgotten them, or the registry hides them.
	Forgotten []string `json:"forgotten"`
	// GivenUp are records that cannot be read and that the operator has given up at
	// this host (repair --drop-damaged).
	GivenUp []string `json:"given_up"`
}

// damage is one stored thing that is not whole. Of a blob Systems, Snapshots and
// Tags are those that lose something by it; where that could not be found out,
// all that list it.
type damage struct {
	Blob      string          `json:"blob,omitempty"`
	Error     string          `json:"error"`
	Systems   []dr.System     `json:"systems"`
	Snapshots []dr.SnapshotID `json:"snapshots"`
	Tags      []string        `json:"tags"`
	// Hits say what is hit in which snapshots, the first of it; the answer's Hit has
	// all. Objects and Files are those of the last of them.
	Hits []damageHit `json:"hits"`
	hitList

	newest *repo.Problem
}

// gather puts the problems of one stored thing together.
func gather(problems []repo.Problem) []damage {
	out := []damage{}
	at := map[string]int{}
	for i := range problems {
		p := &problems[i]
		if p.Foreign() {
			continue
		}
		key := p.Blob + " " + p.Err.Error()
		if p.Blob == "" {
			key = p.Tag + " " + key
		}
		n, ok := at[key]
		if !ok {
			n = len(out)
			at[key] = n
			out = append(out, damage{
				Blob: p.Blob, Error: redact.String(p.Err.Error()), Systems: []dr.System{}, Snapshots: []dr.SnapshotID{}, Tags: []string{},
				Hits: []damageHit{}, hitList: newHitList(),
			})
		}
		d := &out[n]
		d.Tags = append(d.Tags, p.Tag)
		if p.Snapshot.IsZero() {
			continue
		}
		d.Snapshots = append(d.Snapshots, p.Snapshot)
		d.newest = p // problems come in the order of the snapshots
		if tag, err := repo.ParseTag(p.Tag); err == nil && !slices.Contains(d.Systems, tag.System) {
			d.Systems = append(d.Systems, tag.System)
		}
	}
	return out
}

func checkViews(ans checkAnswer, problems []repo.Problem) []ui.View {
	if len(problems) == 0 {
		return []ui.View{ui.Text("no problems were found")}
	}
	var views []ui.View
	for _, d := range ans.Damaged {
		views = append(views, damageView(&d))
	}
	t := ui.Table{Columns: []ui.Column{{Title: "not Lifeboat's", Elastic: true}}}
	for _, p := range problems {
		if p.Foreign() {
			t.Rows = append(t.Rows, []string{p.String()})
		}
	}
	if len(t.Rows) > 0 {
		views = append(views, t)
	}
	return views
}

func damageView(d *damage) ui.View {
	f := ui.Fields{{Name: "damaged", Value: cmp.Or(d.Blob, strings.Join(d.Tags, ", "))}, {Name: "because", Value: d.Error}}
	others := slices.DeleteFunc(slices.Clone(d.Tags), isSnapshotTag)
	switch {
	case d.Blob == "":
	case len(d.Hits) > 0:
		for i := range d.Hits {
			f = append(f, ui.Field{Name: "hit", Value: d.Hits[i].text()})
		}
		return f
	case len(d.Snapshots) > 0: // what of them is hit is not known
		f = append(f, ui.Field{Name: "needed by", Value: tagRanges(d.Tags)})
	case len(others) > 0:
		f = append(f, ui.Field{Name: "tag", Value: strings.Join(others, ", ")})
	default:
		f = append(f, ui.Field{Name: "hit", Value: "nothing that a snapshot still uses"})
	}
	for _, o := range slices.Concat(d.Objects, d.Files) {
		f = append(f, ui.Field{Name: "hit", Value: o})
	}
	if more := d.further(); more != "" {
		f = append(f, ui.Field{Name: "", Value: more})
	}
	return f
}

// givenUpView names records that are damaged for good, and no damage any more here.
func givenUpView(tags []string) []ui.View {
	if len(tags) == 0 {
		return nil
	}
	return []ui.View{ui.Text("given up at this host, for they cannot be read: " + tagRanges(tags) + ". What a mirror still has of them it gives back: lifeboat repair --from MIRROR")}
}

// adviceOf says what mends damage.
func adviceOf(damaged []damage) []string {
	var systems []string
	for _, d := range damaged {
		for _, s := range d.Systems {
			if !slices.Contains(systems, string(s)) {
				systems = append(systems, string(s))
			}
		}
	}
	var next []string
	for _, s := range systems {
		next = append(next, "lifeboat snapshot "+s+"  (at the site that holds it: stores again what is still on its disk, so that the new snapshot is whole)")
	}
	from := "from what the registry stores still, and from the mirrors of the configuration"
	if len(systems) > 0 {
		from = "from what the new snapshot has stored, and from the mirrors of the configuration"
	}
	return append(next,
		"lifeboat repair  (mends "+from+")",
		"lifeboat repair --from URL  (mends from an exact copy, or from another repository)",
		"look at the registry's disk before anything else is written to it",
	)
}
