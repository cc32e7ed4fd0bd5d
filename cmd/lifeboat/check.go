package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"lifeboat/internal/dr"
	"lifeboat/internal/redact"
	"lifeboat/internal/repo"
	"lifeboat/internal/ui"
)

func newCheckCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "check",
		GroupID: groupCare,
		Short:   "Check the structure of the repository, quickly",
		Long: `Check the structure of the repository: every visible snapshot opens, everything
that it names exists with the right size. Data is not read: verify does that.

The exit code is 3 where the only problems are tags that hold something of
somebody else's: every snapshot is whole. It is 1 where something that Lifeboat
stored is damaged or gone.`,
		Example: `  lifeboat check
  lifeboat check --json | jq .problems`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.runCheck(cmd.Context(), "check", func(ctx context.Context, r *repo.Repo) ([]repo.Problem, error) { return r.Check(ctx) })
		},
	}
}

func newVerifyCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "verify",
		GroupID: groupCare,
		Short:   "Read and authenticate all data of the repository",
		Long:    `Read and authenticate all data of the repository. Exit codes are those of check.`,
		Example: `  lifeboat verify`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.runCheck(cmd.Context(), "verify", func(ctx context.Context, r *repo.Repo) ([]repo.Problem, error) {
				task := a.UI().Progress().Bytes("verify", -1)
				problems, err := r.Verify(ctx, func(p repo.VerifyProgress) {
					task.SetTotal(p.BytesTotal)
					task.SetDone(p.Bytes)
				})
				task.Done(err)
				return problems, err
			})
		},
	}
}

func (a *app) runCheck(ctx context.Context, what string, check func(context.Context, *repo.Repo) ([]repo.Problem, error)) error {
	w, err := a.open(ctx, false)
	if err != nil {
		return err
	}
	defer w.close()
	problems, err := check(ctx, w.repo)
	if err != nil {
		return err
	}
	ans := checkAnswer{Problems: []string{}, Damaged: []damage{}}
	foreign := 0
	for _, p := range problems {
		if p.Foreign() {
			foreign++
		}
		ans.Problems = append(ans.Problems, p.String())
	}
	ans.Damaged = gather(problems)
	for i := range ans.Damaged {
		if err := ans.Damaged[i].find(ctx, w.repo); err != nil {
			a.UI().Warn("what is hit could not be found out: %v", err)
		}
	}
	if err := a.UI().Answer(ans, checkViews(ans, problems)...); err != nil {
		return err
	}
	switch {
	case len(problems) == 0:
		return nil
	case foreign == len(problems):
		return ui.Explained{
			What:  fmt.Sprintf("every snapshot is whole, but %d tag(s) hold something that is not Lifeboat's or not of a host that may write", foreign),
			State: "nothing was changed; such tags are passed over everywhere",
			Next:  []string{"find out which login writes them, and take it away"},
			Err:   dr.ErrPartial,
		}
	}
	return ui.Explained{
		What:  fmt.Sprintf("%s found %d thing(s) of the repository damaged or gone", what, len(ans.Damaged)),
		State: "nothing was changed; snapshots that are not named above are whole",
		Next:  adviceOf(ans.Damaged),
		Err:   dr.ErrTampered,
	}
}

// checkAnswer is the JSON answer of check and verify.
type checkAnswer struct {
	Problems []string `json:"problems"`
	Damaged  []damage `json:"damaged"`
}

// damage is one stored thing that is not whole, with every snapshot that needs
// it.
type damage struct {
	Blob      string          `json:"blob,omitempty"`
	Error     string          `json:"error"`
	Systems   []dr.System     `json:"systems"`
	Snapshots []dr.SnapshotID `json:"snapshots"`
	Tags      []string        `json:"tags"`
	// Objects and Files are what is hit of the newest of these snapshots.
	Objects      []string `json:"objects"`
	Files        []string `json:"files"`
	FurtherFiles int      `json:"further_files"`

	newest *repo.Problem
}

// listedFiles bounds how many files a damage lists.
const listedFiles = 10

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
				Objects: []string{}, Files: []string{},
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

// find says what of the newest snapshot concerned is hit.
func (d *damage) find(ctx context.Context, r *repo.Repo) error {
	if d.newest == nil {
		return nil
	}
	hit, err := r.Struck(ctx, *d.newest, listedFiles)
	d.Objects, d.Files, d.FurtherFiles = append(d.Objects, hit.Objects...), append(d.Files, hit.Files...), hit.Further
	return err
}

func checkViews(ans checkAnswer, problems []repo.Problem) []ui.View {
	if len(problems) == 0 {
		return []ui.View{ui.Text("no problems were found")}
	}
	var views []ui.View
	for _, d := range ans.Damaged {
		f := ui.Fields{{Name: "damaged", Value: cmp.Or(d.Blob, strings.Join(d.Tags, ", "))}, {Name: "because", Value: d.Error}}
		if n := len(d.Tags); d.Blob != "" && n > 0 {
			tags := d.Tags[0]
			if n > 1 {
				tags = fmt.Sprintf("%s to %s, %d in all", d.Tags[0], d.Tags[n-1], n)
			}
			f = append(f, ui.Field{Name: "snapshots", Value: tags})
		}
		for _, o := range d.Objects {
			f = append(f, ui.Field{Name: "hit", Value: o})
		}
		for _, file := range d.Files {
			f = append(f, ui.Field{Name: "hit", Value: file})
		}
		if d.FurtherFiles > 0 {
			f = append(f, ui.Field{Name: "", Value: fmt.Sprintf("and %d more files", d.FurtherFiles)})
		}
		views = append(views, f)
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
	return append(next,
		"bring the blob back from a copy of the registry's data; the older snapshots are whole again then",
		"look at the registry's disk before anything else is written to it",
	)
}
