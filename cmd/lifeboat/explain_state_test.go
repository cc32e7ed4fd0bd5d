package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"lifeboat/internal/dr"
	"lifeboat/internal/site"
	"lifeboat/internal/ui"
)

// What a command says of an error that does not say it itself: whether anything was
// done, and a step that leads on.
func TestStateAndNextStep(t *testing.T) {
	t.Parallel()
	half := &site.HalfWrittenError{System: "shop", Trees: []string{"layer:web", "volume:data"}}
	if text := half.Error(); strings.Contains(text, "[") || !strings.Contains(text, "layer:web, volume:data are half written") {
		t.Error(text)
	}
	for _, tc := range []struct {
		command     string
		err         error
		state, next string
	}{
		{"restore", untouched{fmt.Errorf("no such snapshot: %w", dr.ErrNotFound)}, stateNothing, "lifeboat snapshots"},
		{"restore", fmt.Errorf("half way: %w", dr.ErrNotFound), stateParts, "lifeboat snapshots"},
		{"snapshot", fmt.Errorf("snapshot: %w", half), stateNothing, "lifeboat failover shop"},
		{"failover", fmt.Errorf("failover: %w", half), stateParts, "lifeboat failback shop"},
		{"copy", fmt.Errorf("copy: %w", dr.ErrTampered), stateParts, "lifeboat repair --from"},
		{"restore", &fs.PathError{Op: "write", Path: "/state/x", Err: unix.ENOSPC}, stateParts, "LIFEBOAT_STATE_DIR="},
		{"check", &fs.PathError{Op: "open", Path: "/state/x", Err: unix.EROFS}, stateUntouched, "LIFEBOAT_STATE_DIR="},
		{"copy", errors.New("copy: something else"), stateParts, "mend what is named above"},
	} {
		root := &cobra.Command{Use: "lifeboat"}
		cmd := &cobra.Command{Use: tc.command}
		root.AddCommand(cmd)
		a := &app{cmd: cmd}
		var x ui.Explainer
		if err := a.whole(t.Context(), outcomeOf(t.Context(), tc.err), tc.err); !errors.As(err, &x) {
			t.Fatalf("%v is not explained", tc.err)
		}
		state, next := x.Explain()
		if state != tc.state || !strings.Contains(strings.Join(next, "\n"), tc.next) {
			t.Errorf("%s, %v: %q, %q", tc.command, tc.err, state, next)
		}
	}
}

// TestStoppedBeforeItBegan: a command that is stopped while it looks for what to do has
// left nothing anywhere.
func TestStoppedBeforeItBegan(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(fmt.Errorf("%w by SIGINT", errInterrupted))
	root := newRootCmd(newApp(process{out: io.Discard, err: io.Discard, env: func(string) string { return "" }}))
	cmd, _, err := root.Find([]string{"restore"})
	if err != nil {
		t.Fatal(err)
	}
	for err, want := range map[error]string{
		untouched{fmt.Errorf("find the latest snapshot: %w", ctx.Err())}: stateNothing,
		fmt.Errorf("extract: %w", ctx.Err()):                             afterStop["restore"],
	} {
		a := &app{cmd: cmd}
		var x ui.Explainer
		if werr := a.whole(ctx, outcomeOf(ctx, err), err); !errors.As(werr, &x) {
			t.Fatalf("%v is not explained", werr)
		}
		if state, _ := x.Explain(); state != want {
			t.Errorf("%v: %q", err, state)
		}
	}
}

// TestFullStateDirectory: another state directory is advised to those commands alone
// that do not need this host's identity and what it remembers.
func TestFullStateDirectory(t *testing.T) {
	t.Parallel()
	root, without := newRootCmd(newApp(process{out: io.Discard, err: io.Discard, env: func(string) string { return "" }})), 0
	for _, full := range []error{unix.ENOSPC, unix.EDQUOT, unix.EROFS} {
		var walk func(cmd *cobra.Command)
		walk = func(cmd *cobra.Command) {
			for _, c := range cmd.Commands() {
				walk(c)
			}
			a := &app{cmd: cmd}
			err := fmt.Errorf("local state: %w", &fs.PathError{Op: "write", Path: "/state/x", Err: full})
			_, next := a.byKind(outcomeOf(t.Context(), err), err)
			text := strings.Join(next, "\n")
			elsewhere := strings.Contains(text, "LIFEBOAT_STATE_DIR=")
			switch name := cmd.Name(); {
			case !strings.Contains(text, "make room at the path"):
				t.Errorf("%s: %q", cmd.CommandPath(), next)
			case elsewhere != slices.Contains([]string{"restore", "check", "verify", "ls", "diff", "snapshots"}, name):
				t.Errorf("%s: %q", cmd.CommandPath(), next)
			case !elsewhere:
				without++
			}
		}
		walk(root)
	}
	if without < 3*10 {
		t.Errorf("%d commands were looked at", without)
	}
}

// TestUnread: what nobody reads any more is no failure of a command that changes
// nothing, and stays one of any other.
func TestUnread(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		command string
		path    string
		err     error
		code    int
	}{
		{"ls", os.Stdout.Name(), unix.EPIPE, codeUnread},
		{"ls", os.Stdout.Name(), unix.ENOSPC, codeFailed},
		{"ls", "/a/socket", unix.EPIPE, codeFailed},
		{"snapshot", os.Stdout.Name(), unix.EPIPE, codeFailed},
	} {
		root := &cobra.Command{Use: "lifeboat"}
		cmd := &cobra.Command{Use: tc.command}
		root.AddCommand(cmd)
		var out, said strings.Builder
		a := newApp(process{out: &out, err: &said, env: func(string) string { return "" }})
		a.cmd = cmd
		code := a.finish(t.Context(), fmt.Errorf("answer: %w", &fs.PathError{Op: "write", Path: tc.path, Err: tc.err}))
		if code != tc.code || (said.String() == "") != (code == codeUnread) {
			t.Errorf("%+v: exit code %d, said %q", tc, code, said.String())
		}
	}
}
