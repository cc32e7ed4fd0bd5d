package main

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"lifeboat/internal/quantity"
	"lifeboat/internal/ui"
	"lifeboat/lab/systems"
)

// report is what was measured, for the end of the story.
type report struct {
	start, lost, repaired        time.Time
	snapshots                    []snapshotRow
	failover, failback           bringAnswer
	failoverBegan, failoverEnded time.Time
	failbackBegan, failbackEnded time.Time
	// failbackWire is what went over the WAN meanwhile, in bytes of IP packets.
	failbackWire int64
	list         []listedSnapshot
	checks       int
}

type snapshotRow struct {
	answer       snapshotAnswer
	began, ended time.Time
}

// pause is the longest time between two answers that visitors got, of those pauses that overlap with the
// given time; and when it began.
func pause(acks []systems.Ack, from, to time.Time) (time.Duration, time.Time) {
	inside := acks
	if i := slices.IndexFunc(acks, func(a systems.Ack) bool { return a.Acked.After(from) }); i > 0 {
		inside = acks[i-1:]
	}
	if i := slices.IndexFunc(inside, func(a systems.Ack) bool { return a.Acked.After(to) }); i >= 0 {
		inside = inside[:i+1]
	}
	return systems.LongestPause(inside)
}

// views are the timeline and the figures.
func (r *report) views(d *director) []ui.View {
	acks := slices.Concat(d.atMain.acks(), d.atStandin.acks(), d.back.acks())
	slices.SortFunc(acks, func(a, b systems.Ack) int { return a.Acked.Compare(b.Acked) })
	lost, lostSince := pause(acks, r.lost, r.failoverEnded)
	moved, movedSince := pause(acks, r.failbackBegan, r.failbackEnded)
	return []ui.View{
		r.timeline(acks, lost, lostSince, moved, movedSince),
		r.table(acks),
		r.failoverFields(d, lost),
		r.failbackFields(d, moved),
		ui.Text(fmt.Sprintf("%d verifications passed; %s entries were acknowledged to visitors in all", r.checks, quantity.Count(int64(len(acks))))),
	}
}

func (r *report) timeline(acks []systems.Ack, lost time.Duration, lostSince time.Time, moved time.Duration, movedSince time.Time) ui.View {
	at := func(t time.Time) time.Duration { return t.Sub(r.start) }
	end := acks[len(acks)-1].Acked
	t := ui.Timeline{Title: "timeline"}
	add := func(label string, from, to time.Time, note string, bad bool) {
		t.Spans = append(t.Spans, ui.Span{Label: label, Start: at(from), End: at(to), Note: note, Bad: bad})
	}
	add("serves at main", r.start, lostSince, "", false)
	for i, s := range r.snapshots {
		add(fmt.Sprintf("  snapshot %d", i+1), s.began, s.ended, fmt.Sprintf("sent %s, frozen %.0f ms", quantity.Size(s.answer.BytesSent), s.answer.FreezeMS), false)
	}
	add("nobody answers", lostSince, lostSince.Add(lost), "main site lost", true)
	add("  failover", r.failoverBegan, r.failoverEnded, "fetched "+quantity.Size(r.failover.BytesReceived), false)
	add("serves at the stand-in", lostSince.Add(lost), movedSince, "", false)
	add("  failback", r.failbackBegan, r.failbackEnded, "on the wire "+quantity.Size(r.failbackWire), false)
	add("nobody answers", movedSince, movedSince.Add(moved), "the move", true)
	add("serves at main again", movedSince.Add(moved), end, "", false)
	return t
}

// table is what was captured, at both sites.
func (r *report) table(acks []systems.Ack) ui.View {
	t := ui.Table{Title: "what was captured", Columns: []ui.Column{
		{Title: "#", Right: true},
		{Title: "site"},
		{Title: "what"},
		{Title: "scanned", Right: true},
		{Title: "new", Right: true},
		{Title: "sent", Right: true},
		{Title: "frozen", Right: true},
		{Title: "visitors waited", Right: true},
		{Title: "took", Right: true},
	}}
	taken := map[string]snapshotRow{}
	for _, s := range r.snapshots {
		taken[s.answer.Snapshot] = s
	}
	for _, s := range r.list {
		what, waited, took := "", "-", "-"
		row, here := taken[s.Snapshot]
		switch {
		case here:
			what, took = "under load", quantity.Duration(time.Duration(row.answer.ElapsedMS)*time.Millisecond)
			d, _ := pause(acks, row.began, row.ended)
			waited = quantity.Duration(d)
		case s.Kind == "divergent":
			what = "main's old data, kept aside"
		case s.FreezeMS > 0:
			what = "failback, under load"
		default:
			what = "failback, stopped: the rest"
		}
		frozen := "-"
		if s.FreezeMS > 0 {
			frozen = fmt.Sprintf("%.1f ms", s.FreezeMS)
		}
		sent := s.BytesSent
		if here {
			sent = row.answer.BytesSent
		}
		t.Rows = append(t.Rows, []string{
			strconv.Itoa(s.Number), s.Site, what, quantity.Size(s.BytesTotal), quantity.Size(s.BytesNew), quantity.Size(sent), frozen, waited, took,
		})
	}
	return t
}

func (r *report) failoverFields(d *director, lost time.Duration) ui.View {
	return titled{"failover", ui.Fields{
		{Name: "age of the data recovered", Value: fmt.Sprintf("%s at the loss; %d acknowledged entries are newer", quantity.Duration(r.lost.Sub(d.snapshot.Created)), len(d.lost))},
		{Name: "time until it served", Value: fmt.Sprintf("%s from the command; visitors were without an answer for %s", quantity.Duration(time.Duration(r.failover.RTOMS)*time.Millisecond), quantity.Duration(lost))},
		{Name: "received", Value: fmt.Sprintf("%s: images, writable layers, volumes, configuration, nothing staged before", quantity.Size(r.failover.BytesReceived))},
	}}
}

func (r *report) failbackFields(d *director, moved time.Duration) ui.View {
	var given, kept int64
	for _, s := range r.list {
		switch {
		case s.Kind == "divergent":
			kept += s.BytesSent
		case s.Site == "standin":
			given += s.BytesSent
		}
	}
	f := ui.Fields{
		{Name: "sent by the stand-in", Value: quantity.Size(given) + ": what had changed there, in two snapshots"},
		{Name: "received at main", Value: quantity.Size(r.failback.BytesReceived) + ", of which file content " + quantity.Size(r.failback.BytesFetched)},
	}
	if kept > 0 {
		f = append(f, ui.Field{Name: "kept aside by main", Value: quantity.Size(kept) + fmt.Sprintf(": its old data, divergent snapshot %s", shortID(r.failback.Divergent))})
	}
	f = append(f,
		ui.Field{Name: "on the wire in all", Value: quantity.Size(r.failbackWire) + ", counted by the WAN"},
		ui.Field{Name: "visitors waited", Value: quantity.Duration(moved) + ", and lost nothing"},
		ui.Field{Name: "the move took", Value: quantity.Duration(r.failbackEnded.Sub(r.failbackBegan))})
	return titled{"failback", f}
}

// titled is a view under a heading.
type titled struct {
	title string
	view  ui.View
}

// Render draws both.
func (t titled) Render(c *ui.Canvas) {
	c.Line("%s", c.Bold(t.title))
	t.view.Render(c)
}
