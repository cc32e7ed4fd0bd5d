package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"lifeboat/internal/dr"
	"lifeboat/internal/registry/registrytest"
	"lifeboat/internal/ui"
)

// TestEveryErrorLeadsOn: whatever kind an error is of, from whichever command, it
// leaves with state and next.
func TestEveryErrorLeadsOn(t *testing.T) {
	t.Parallel()
	var all []*cobra.Command
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		all = append(all, c)
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(newRootCmd(newApp(process{env: func(string) string { return "" }, out: io.Discard, err: io.Discard})))
	if len(all) < 30 {
		t.Fatalf("%d commands", len(all))
	}
	stopped, cancel := context.WithCancelCause(t.Context())
	cancel(fmt.Errorf("%w by SIGINT", errInterrupted))
	for _, cmd := range append(all, nil) {
		for _, kind := range []error{
			dr.ErrUsage, dr.ErrPartial, dr.ErrNotFound, dr.ErrHeld, dr.ErrWrongKey, dr.ErrFenced, dr.ErrOutcomeUnknown, dr.ErrTampered,
			ui.ErrDeclined, errors.New("something"), context.Canceled,
			ui.Explained{What: "w", State: "s"},
			ui.Explained{What: "w", Next: []string{"n"}},
		} {
			ctx := t.Context()
			if errors.Is(kind, context.Canceled) {
				ctx = stopped
			}
			var out bytes.Buffer
			a := newApp(process{args: []string{"x", "--json"}, out: &out, err: io.Discard, env: func(string) string { return "" }})
			a.cmd = cmd
			code := a.finish(ctx, fmt.Errorf("work: %w", kind))
			var s said
			if err := json.Unmarshal(out.Bytes(), &s); err != nil {
				t.Fatal(err)
			}
			e := s.Error
			if e.Code != code || e.Kind == "" || e.Message == "" || e.State == "" || len(e.Next) == 0 || strings.Join(e.Next, "") == "" {
				t.Errorf("%v: %v: %+v", cmd, kind, e)
			}
		}
	}
}

// TestErrorsOfCommands: the same of commands that people get wrong.
func TestErrorsOfCommands(t *testing.T) {
	t.Parallel()
	reg, p := registrytest.Start(t), newPlace(t)
	p.run(0, "init", "--repo", reg.URL("dr"), "--fingerprint", reg.Fingerprint, "--site", "main", "--kit", p.path("kit.txt"))
	p.storeFiles(reg, "shop", "sha256:aa", before)
	for line, want := range map[string]struct {
		code        int
		state, next string
	}{
		"gc --max-unused 300%":                        {codeUsage, "nothing was done", "lifeboat gc --help"},
		"forget --keep-last x":                        {codeUsage, "nothing was done", "lifeboat forget --help"},
		"registry serve":                              {codeUsage, "nothing was done", "lifeboat registry serve --help"},
		"ls nosuch":                                   {codeNotFound, "nothing was changed", "lifeboat snapshots"},
		"ls shop@ffff":                                {codeNotFound, "nothing was changed", "lifeboat snapshots"},
		"ls shop --volume data --path no/such":        {codeNotFound, "nothing was changed", "lifeboat ls"},
		"diff shop@ffff @latest":                      {codeNotFound, "nothing was changed", "lifeboat snapshots"},
		"restore shop --volume x --to " + p.path("r"): {codeNotFound, "", "lifeboat ls"},
		"verify nosuch":                               {codeNotFound, "nothing was changed", "lifeboat snapshots"},
		"key remove nobody":                           {codeNotFound, "", "lifeboat key list"},
		"switchover shop":                             {codeUsage, "nothing was done", "lifeboat switchover --help"},
	} {
		t.Run(line, func(t *testing.T) {
			s := p.run(want.code, strings.Fields(line)...)
			if !strings.Contains(s.Error.State, want.state) || !strings.Contains(s.next(), want.next) {
				t.Errorf("%+v", s.Error)
			}
		})
	}
}

// TestSecondKeyIsNamed: the key of the second repository is asked for by its own
// flags.
func TestSecondKeyIsNamed(t *testing.T) {
	t.Parallel()
	reg, p := registrytest.Start(t), newPlace(t)
	p.run(0, "init", "--repo", reg.URL("dr"), "--fingerprint", reg.Fingerprint, "--site", "main", "--kit", p.path("kit.txt"))
	p.storeFiles(reg, "shop", "sha256:aa", before)
	q := newPlace(t)
	q.run(0, "init", "--repo", reg.URL("other"), "--fingerprint", reg.Fingerprint, "--kit", q.path("kit.txt"))
	for _, args := range [][]string{
		{"copy", "--to", reg.URL("other"), "--to-fingerprint", reg.Fingerprint, "--to-key-file", p.config().KeyFile},
		{"repair", "--from", reg.URL("other")},
	} {
		s := p.run(codeWrongKey, args...)
		flag := "--" + strings.TrimPrefix(args[1], "--") + "-key-file"
		if !strings.Contains(s.next(), flag) || strings.Contains(s.next(), "LIFEBOAT_KEY_FILE") {
			t.Errorf("%v: %q", args[0], s.next())
		}
	}
}

// TestInterruptedText: one line, what was cut off and by what, once.
func TestInterruptedText(t *testing.T) {
	t.Parallel()
	cause := fmt.Errorf("%w by SIGTERM", errInterrupted)
	for _, tc := range []struct {
		err  error
		want string
	}{
		{context.Canceled, "interrupted by SIGTERM"},
		{cause, "interrupted by SIGTERM"},
		{errors.Join(cause, context.Canceled), "interrupted by SIGTERM"},
		{fmt.Errorf("push: %w", context.Canceled), "interrupted by SIGTERM: push: context canceled"},
		{fmt.Errorf("verify: %w", errors.Join(cause, context.Canceled)), "verify: interrupted by SIGTERM"},
		{errors.Join(errors.New("a"), errors.New("a"), errors.New("b")), "interrupted by SIGTERM: a; b"},
	} {
		if got := interruptedText(cause, tc.err); got != tc.want {
			t.Errorf("%q, want %q", got, tc.want)
		}
	}
}

// TestSnapshotInterrupted: it says that nothing was committed and everything runs.
func TestSnapshotInterrupted(t *testing.T) {
	t.Parallel()
	var errs bytes.Buffer
	a := newApp(process{args: []string{"snapshot", "shop"}, out: io.Discard, err: &errs, env: func(string) string { return "" }})
	root := newRootCmd(a)
	a.cmd, _, _ = root.Find([]string{"snapshot"})
	if err := a.cmd.ParseFlags([]string{"shop", "--quiet"}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(fmt.Errorf("%w by SIGINT", errInterrupted))
	if code := a.finish(ctx, fmt.Errorf("push: %w", context.Canceled)); code != codeInterrupted {
		t.Errorf("exit code %d", code)
	}
	for _, want := range []string{"no snapshot was committed", "every container runs", "is kept", "lifeboat snapshot shop --quiet"} {
		if !strings.Contains(errs.String(), want) {
			t.Errorf("%q is missing in\n%s", want, &errs)
		}
	}
}

// TestWarningsAreReadable: what packages log is told as a warning, once; the log
// itself is for who asks for it.
func TestWarningsAreReadable(t *testing.T) {
	t.Parallel()
	for level, want := range map[string]string{
		"":     `! a tag does not verify (tag s.shop.1, number 3): gone\x1b[31m` + "\n",
		"warn": "level=WARN",
	} {
		var errs bytes.Buffer
		a := newApp(process{out: io.Discard, err: &errs, env: func(k string) string { return map[string]string{envLog: level}[k] }})
		a.flags.quiet = true
		cmd := &cobra.Command{Use: "x"}
		if err := a.begin(cmd); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			a.Log().With(slog.String("tag", "s.shop.1")).Warn("a tag does not verify", "number", 3, "error", errors.New("gone\x1b[31m"))
		}
		a.Log().Info("not told")
		got := errs.String()
		if level == "" && got != want || !strings.Contains(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
