package ui_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"lifeboat/internal/dr"
	"lifeboat/internal/ui"
)

func env(m map[string]string) func(string) string { return func(k string) string { return m[k] } }

var inEnglish = env(map[string]string{"LANG": "en_GB.UTF-8"})

type recorded struct {
	*ui.Printer
	out, err bytes.Buffer
}

func printer(o ui.Options) *recorded {
	r := &recorded{}
	o.Out, o.Err = &r.out, &r.err
	if o.Env == nil {
		o.Env = inEnglish
	}
	r.Printer = ui.New(o)
	return r
}

func TestAnswerForPeople(t *testing.T) {
	t.Parallel()
	p := printer(ui.Options{})
	err := p.Answer(map[string]int{"n": 1}, ui.Text("one"), ui.Fields{{"snapshot", "ab12"}, {"freeze time", "32 ms"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(nil); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff("one\n\nsnapshot     ab12\nfreeze time  32 ms\n", p.out.String()); d != "" {
		t.Error(d)
	}
}

func TestAnswerAsJSON(t *testing.T) {
	t.Parallel()
	failure := &ui.Failure{
		Err:  fmt.Errorf("failover shop: %w", ui.Explained{What: "get https://u:hunter2@h/: no\x1b[2Jt found", State: "nothing runs", Next: []string{"lifeboat snapshots shop"}, Err: dr.ErrNotFound}),
		Code: 10, Kind: "not-found",
	}
	for _, tt := range []struct {
		name    string
		answer  any
		failure *ui.Failure
		want    string
	}{
		{"answer", map[string]any{"snapshot": "<a&b>", "n": 1}, nil, `{"snapshot":"<a&b>","n":1}`},
		{"failure", nil, failure, `{"error":{"code":10,"kind":"not-found","message":"failover shop: get https://***@h/: no\u001b[2Jt found","state":"nothing runs","next":["lifeboat snapshots shop"]}}`},
		{"both", map[string]any{"n": 1}, failure, `{"n":1,"error":{"code":10,"kind":"not-found","message":"failover shop: get https://***@h/: no\u001b[2Jt found","state":"nothing runs","next":["lifeboat snapshots shop"]}}`},
		{"both, empty answer", struct{}{}, &ui.Failure{Err: errors.New("x"), Code: 1, Kind: "failed"}, `{"error":{"code":1,"kind":"failed","message":"x","state":"","next":[]}}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := printer(ui.Options{JSON: true})
			if tt.answer != nil {
				if err := p.Answer(tt.answer, ui.Text("not shown")); err != nil {
					t.Fatal(err)
				}
			}
			if p.out.Len() > 0 {
				t.Errorf("written before the end: %s", &p.out)
			}
			if err := p.Close(tt.failure); err != nil {
				t.Fatal(err)
			}
			var got, want any
			d := json.NewDecoder(&p.out)
			if err := d.Decode(&got); err != nil {
				t.Fatal(err)
			}
			if _, err := d.Token(); !errors.Is(err, io.EOF) {
				t.Error("more than one document")
			}
			if err := json.Unmarshal([]byte(tt.want), &want); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Error(d)
			}
			if err := p.Close(tt.failure); err != nil || p.out.Len() > 0 {
				t.Errorf("closed twice: %v", err)
			}
		})
	}
	t.Run("given while the command goes on", func(t *testing.T) {
		t.Parallel()
		p := printer(ui.Options{JSON: true})
		fmt.Fprintln(p.Out(), `{"listen":"x"}`)
		if err := p.Close(failure); err != nil || p.out.String() != "{\"listen\":\"x\"}\n" || p.err.Len() == 0 {
			t.Errorf("%v, %q", err, p.out.String())
		}
		if p := printer(ui.Options{JSON: true}); p.Close(nil) != nil || p.out.Len() > 0 {
			t.Errorf("no answer: %q", p.out.String())
		}
	})
	t.Run("mistakes of a command", func(t *testing.T) {
		t.Parallel()
		p := printer(ui.Options{JSON: true})
		if p.Answer([]int{1}) == nil || p.Answer(func() {}) == nil {
			t.Error("an answer that is no object was taken")
		}
		if err := p.Answer(map[string]int{}); err != nil {
			t.Error(err)
		}
		if p.Answer(map[string]int{}) == nil {
			t.Error("a second answer was taken")
		}
	})
}

func TestErrorForPeople(t *testing.T) {
	t.Parallel()
	p := printer(ui.Options{Quiet: true})
	err := ui.Explained{
		What: "freeze shop: timed out\x07", State: "thawed; nothing was stored",
		Next: []string{"lifeboat snapshot shop", "lifeboat status"}, Err: dr.ErrPartial,
	}
	if cerr := p.Close(&ui.Failure{Err: err, Code: 3}); cerr != nil {
		t.Fatal(cerr)
	}
	want := "lifeboat: freeze shop: timed out\\x07\nstate: thawed; nothing was stored\nnext:  lifeboat snapshot shop\nnext:  lifeboat status\n"
	if d := cmp.Diff(want, p.err.String()); d != "" {
		t.Error(d)
	}
	if p.out.Len() > 0 {
		t.Errorf("on stdout: %s", &p.out)
	}
}

func TestKindsAreNotPrinted(t *testing.T) {
	t.Parallel()
	for want, err := range map[string]error{
		"lifeboat: system x\n":                      fmt.Errorf("system x: %w", dr.ErrNotFound),
		"lifeboat: a: not found here\n":             fmt.Errorf("a: not found here: %w", dr.ErrUsage),
		"lifeboat: says usage error\n":              errors.New("says usage error"),
		"lifeboat: x: usage error\n":                errors.New("x: usage error"), // of another kind: not ours to cut
		"lifeboat: wrong key\n":                     dr.ErrWrongKey,
		"lifeboat: only the cause\n":                ui.Explained{Err: errors.New("only the cause")},
		"lifeboat: declined; nothing was changed\n": ui.ErrDeclined,
	} {
		p := printer(ui.Options{})
		if cerr := p.Close(&ui.Failure{Err: err}); cerr != nil {
			t.Fatal(cerr)
		}
		if d := cmp.Diff(want, p.err.String()); d != "" {
			t.Error(d)
		}
	}
}

func TestNotesAndWarnings(t *testing.T) {
	t.Parallel()
	for _, quiet := range []bool{false, true} {
		p := printer(ui.Options{Quiet: quiet})
		p.Note("took %d", 1)
		p.Warn("get %s", "oci://u:hunter2@h/n")
		p.Show(ui.Text("the plan"))
		fmt.Fprintln(p.Log(), "logged")
		want := "took 1\n! get oci://***@h/n\nthe plan\nlogged\n"
		if quiet {
			want = "! get oci://***@h/n\nlogged\n"
		}
		if d := cmp.Diff(want, p.err.String()); d != "" {
			t.Errorf("quiet %v: %s", quiet, d)
		}
		if p.out.Len() > 0 {
			t.Errorf("on stdout: %s", &p.out)
		}
	}
}

// TestHold shows that nothing is written while a system is frozen.
func TestHold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := printer(ui.Options{})
		task := p.Progress().Bytes("read", 100)
		p.Hold()
		p.Note("a")
		fmt.Fprintln(p.Out(), "b")
		task.Add(50)
		time.Sleep(time.Minute) // of the bubble's clock: some beats of the progress
		synctest.Wait()
		task.Done(nil)
		for range 3 {
			fmt.Fprintln(p.Log(), strings.Repeat("x", 1<<19))
		}
		if p.out.Len() > 0 || p.err.Len() > 0 {
			t.Errorf("written while held: %q %q", p.out.String(), p.err.String())
		}
		p.Release()
		if got := p.err.String(); !strings.HasPrefix(got, "a\nread: 50 B of 100 B") || !strings.Contains(got, "it is lost") || p.out.String() != "b\n" {
			t.Errorf("after the release: %.200q %q", got, p.out.String())
		}
		p.Note("c")
		if !strings.HasSuffix(p.err.String(), "c\n") {
			t.Error("nothing is written after the release")
		}
		if err := p.Close(nil); err != nil {
			t.Fatal(err)
		}
	})
}

func TestConfirmWithoutTerminal(t *testing.T) {
	t.Parallel()
	p := printer(ui.Options{In: strings.NewReader("yes\n")})
	err := p.Confirm(t.Context(), "Overwrite volume shop_db?")
	var x ui.Explainer
	if !errors.Is(err, dr.ErrUsage) || !errors.As(err, &x) {
		t.Fatalf("got %v", err)
	}
	if state, next := x.Explain(); state == "" || !strings.Contains(strings.Join(next, ""), "--yes") {
		t.Errorf("state %q, next %q", state, next)
	}
	if err := printer(ui.Options{Yes: true}).Confirm(t.Context(), "?"); err != nil {
		t.Errorf("--yes: %v", err)
	}
}

func TestConfirmOnTerminal(t *testing.T) {
	t.Parallel()
	for answer, want := range map[string]error{"y\n": nil, "YES\n": nil, "n\n": ui.ErrDeclined, "\n": ui.ErrDeclined, "yep\n": ui.ErrDeclined, "\x04": ui.ErrDeclined} {
		main, tty := pty(t)
		var errb bytes.Buffer
		p := ui.New(ui.Options{In: tty, Out: io.Discard, Err: &errb, Env: inEnglish})
		if _, err := io.WriteString(main, answer); err != nil {
			t.Fatal(err)
		}
		if err := p.Confirm(t.Context(), "Go on?"); !errors.Is(err, want) {
			t.Errorf("%q: %v", answer, err)
		}
		if !strings.HasPrefix(errb.String(), "Go on? [y/N] ") {
			t.Errorf("asked %q", errb.String())
		}
	}
	t.Run("interrupted", func(t *testing.T) {
		t.Parallel()
		main, tty := pty(t)
		ctx, cancel := context.WithCancelCause(t.Context())
		stop := errors.New("stopped")
		cancel(stop)
		if err := ui.New(ui.Options{In: tty, Out: io.Discard, Err: io.Discard}).Confirm(ctx, "Go on?"); !errors.Is(err, stop) {
			t.Errorf("got %v", err)
		}
		_, _ = io.WriteString(main, "\n") // lets the reader end
	})
}

// pty opens a pseudo terminal of 60 columns.
func pty(t *testing.T) (main, tty *os.File) {
	t.Helper()
	main, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = main.Close() })
	fd := int(main.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tty.Close() })
	if err := unix.IoctlSetWinsize(int(tty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 60}); err != nil {
		t.Fatal(err)
	}
	return main, tty
}
