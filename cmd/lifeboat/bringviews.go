package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"lifeboat/internal/quantity"
	recovery "lifeboat/internal/recover"
	"lifeboat/internal/ui"
)

func planViews(p *recovery.Plan) []ui.View {
	age := quantity.Duration(time.Duration(p.DataAgeS) * time.Second)
	if p.Move {
		age += ": the plan is made with it; what was written since comes along"
	} else {
		age += ": what was written after that is not in it"
	}
	views := []ui.View{ui.Fields{
		{Name: "system", Value: string(p.System)},
		{Name: "snapshot", Value: p.Snapshot.Short() + " of " + p.Created},
		{Name: "data age", Value: age},
		{Name: "to fetch", Value: toFetch(p)},
	}}
	t := ui.Table{Title: "plan", Columns: []ui.Column{{Title: "object"}, {Title: "action"}, {Title: "size", Right: true}}}
	for _, im := range p.Images {
		action := "fetch"
		if im.Here {
			action = "is here"
		}
		t.Rows = append(t.Rows, []string{"image " + im.Name, action, bytesText(im.Bytes)})
	}
	for _, o := range p.Objects {
		size := ""
		if o.Bytes > 0 {
			size = bytesText(o.Bytes)
		}
		t.Rows = append(t.Rows, []string{o.Object, o.Action, size})
	}
	views = append(views, t)
	if len(p.Changes) > 0 {
		c := ui.Table{Title: "overrides of this site", Columns: []ui.Column{{Title: "object"}, {Title: "what"}, {Title: "from", Elastic: true}, {Title: "to", Elastic: true}}}
		for _, x := range p.Changes {
			c.Rows = append(c.Rows, []string{x.Object, x.Field, x.From, x.To})
		}
		views = append(views, c)
	}
	if len(p.Conflicts) > 0 {
		c := ui.Table{Title: "in the way", Columns: []ui.Column{{Title: "object"}, {Title: "because", Elastic: true}, {Title: "solved by, for one"}}}
		for _, x := range p.Conflicts {
			c.Rows = append(c.Rows, []string{x.Object, x.With, x.Solve})
		}
		views = append(views, c)
	}
	if len(p.Notes) > 0 {
		views = append(views, ui.Text("note: "+strings.Join(p.Notes, "\nnote: ")))
	}
	return views
}

// toFetch is the bound, and what is expected where something is here already.
func toFetch(p *recovery.Plan) string {
	if p.FetchExpected < p.FetchAtMost {
		return fmt.Sprintf("about %s if the data here is as the last snapshot of it; %s at most", bytesText(p.FetchExpected), bytesText(p.FetchAtMost))
	}
	return bytesText(p.FetchAtMost) + " at most"
}

func resultViews(ans *bringAnswer) []ui.View {
	steps := ui.Steps{Title: "steps"}
	for _, r := range ans.Steps {
		state := ui.StepState(r.State)
		steps.Steps = append(steps.Steps, ui.Step{Title: r.Title, State: state, Detail: r.Error, TookMS: r.ElapsedMS})
	}
	fields := ui.Fields{
		{Name: "system", Value: string(ans.System)},
		{Name: "epoch", Value: fmt.Sprint(ans.Epoch)},
		{Name: "data age", Value: quantity.Duration(time.Duration(ans.DataAgeS) * time.Second)},
		{Name: "fetched", Value: bytesText(ans.BytesFetched)},
	}
	if ans.RTOMS > 0 {
		took := quantity.Duration(time.Duration(ans.RTOMS) * time.Millisecond)
		if ans.FirstBegan != nil {
			took += "; an earlier run, which was cut off, began at " + ans.FirstBegan.Local().Format(time.DateTime)
		}
		fields = slices.Insert(fields, 3, ui.Field{Name: "time to serve", Value: took})
	}
	if ans.DownMS != nil {
		fields = append(fields, ui.Field{Name: "service down", Value: quantity.Duration(time.Duration(*ans.DownMS) * time.Millisecond)})
	}
	if ans.Snapshot != nil {
		fields = append(fields, ui.Field{Name: "snapshot", Value: ans.Snapshot.Short()})
	}
	if ans.Divergent != nil {
		fields = append(fields, ui.Field{Name: "kept", Value: "divergent snapshot " + ans.Divergent.Short() + " of what this site held"})
	}
	views := []ui.View{steps, fields}
	if len(ans.Ports) > 0 {
		t := ui.Table{Title: "serves at", Columns: []ui.Column{{Title: "container"}, {Title: "port"}, {Title: "here"}}}
		for _, p := range ans.Ports {
			t.Rows = append(t.Rows, []string{p.Container, p.Port, p.Host})
		}
		views = append(views, t, ui.Text("what remains: point DNS or the load balancer here; protect the system here (lifeboat protect)"))
	}
	return views
}
