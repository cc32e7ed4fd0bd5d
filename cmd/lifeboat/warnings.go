package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"

	"lifeboat/internal/ui"
)

// warnings is a log handler for people: what packages warn of becomes a line like
// the command's own warnings, each told once. Who wants the log as it is sets
// LIFEBOAT_LOG.
type warnings struct {
	said  *saidOnce
	attrs []slog.Attr
}

type saidOnce struct {
	ui   *ui.Printer
	mu   sync.Mutex
	seen map[string]bool
}

// maxSaid bounds how many lines are remembered as told.
const maxSaid = 4096

func newWarnings(p *ui.Printer) warnings {
	return warnings{said: &saidOnce{ui: p, seen: map[string]bool{}}}
}

// Enabled is true for warnings and errors.
func (w warnings) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }

// Handle tells a record: its message, why, and what it concerns.
func (w warnings) Handle(_ context.Context, r slog.Record) error {
	var about, why []string
	add := func(a slog.Attr) bool {
		switch v := a.Value.Resolve().String(); {
		case v == "":
		case a.Key == "error" || a.Key == "reason" || a.Key == "problem" || a.Key == "text":
			why = append(why, v)
		default:
			about = append(about, a.Key+" "+v)
		}
		return true
	}
	for _, a := range w.attrs {
		add(a)
	}
	r.Attrs(add)
	line := r.Message
	if len(about) > 0 {
		line += fmt.Sprintf(" (%s)", strings.Join(about, ", "))
	}
	if len(why) > 0 {
		line += ": " + strings.Join(why, "; ")
	}
	w.said.say(line)
	return nil
}

func (s *saidOnce) say(line string) {
	s.mu.Lock()
	first := !s.seen[line]
	if first && len(s.seen) < maxSaid {
		s.seen[line] = true
	}
	s.mu.Unlock()
	if first {
		s.ui.Warn("%s", line)
	}
}

// WithAttrs adds attributes to every record.
func (w warnings) WithAttrs(as []slog.Attr) slog.Handler {
	w.attrs = append(append([]slog.Attr{}, w.attrs...), as...)
	return w
}

// WithGroup keeps the attributes of the group under their own names.
func (w warnings) WithGroup(string) slog.Handler { return w }
