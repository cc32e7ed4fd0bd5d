package main

import (
	"sync"

	"lifeboat/internal/plan"
	"lifeboat/internal/quantity"
	"lifeboat/internal/repo"
	"lifeboat/internal/ui"
)

// captureProgress shows the phases of a snapshot. While anything may be frozen
// nothing is written: a terminal that does not take a line must not hold up the
// thaw (invariant 5).
type captureProgress struct {
	ui   *ui.Printer
	name string
	mu   sync.Mutex
	task *ui.Task
	held bool
}

func (p *captureProgress) Phase(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.task != nil {
		p.task.Done(nil)
		p.task = nil
	}
	if p.held {
		p.ui.Release()
		p.held = false
	}
	if name == "freeze" {
		p.ui.Hold()
		p.held = true
		return
	}
	p.task = p.ui.Progress().Bytes(p.name+" "+name, -1)
}

func (p *captureProgress) Expect(total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.task.SetTotal(total)
}

func (p *captureProgress) Bytes(n int64) {
	p.mu.Lock()
	t := p.task
	p.mu.Unlock()
	t.Add(n)
}

// end finishes what is shown.
func (p *captureProgress) end(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held {
		p.ui.Release()
		p.held = false
	}
	if p.task != nil {
		p.task.Done(err)
		p.task = nil
	}
}

// recoverProgress shows the steps of a bring-up.
type recoverProgress struct {
	ui   *ui.Printer
	mu   sync.Mutex
	task *ui.Task
}

func (p *recoverProgress) Step(title string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.task = p.ui.Progress().Bytes(title, -1)
}

func (p *recoverProgress) StepEnded(r plan.Report) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.task == nil {
		return
	}
	var err error
	if r.State == "failed" {
		err = errStep
	}
	p.task.Done(err)
	p.task = nil
}

func (p *recoverProgress) Total(n int64) { p.current().SetTotal(n) }
func (p *recoverProgress) Done(n int64)  { p.current().Add(n) }
func (p *recoverProgress) Note(s string) { p.ui.Note("%s", s) }

func (p *recoverProgress) current() *ui.Task {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.task
}

// stages shows the stages of a collection one after the other.
type stages struct {
	ui   *ui.Printer
	now  repo.CollectStage
	task *ui.Task
}

func (s *stages) tell(p repo.CollectProgress) {
	if p.Stage != s.now {
		s.end(nil)
		s.now = p.Stage
		if p.Stage == repo.CollectRewrite {
			s.task = s.ui.Progress().Bytes(string(p.Stage), p.Total)
		} else {
			s.task = s.ui.Progress().Items(string(p.Stage), p.Total)
		}
	}
	s.task.SetDone(p.Done)
}

func (s *stages) end(err error) {
	s.task.Done(err)
	s.task = nil
}

func bytesText(n int64) string {
	if n < 0 {
		return "?"
	}
	return quantity.Size(n)
}
