package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"lifeboat/internal/config"
	"lifeboat/internal/dr"
	"lifeboat/internal/site"
	"lifeboat/internal/ui"
)

const (
	stateUntouched = "nothing was changed"
	stateNothing   = "nothing was done"
	stateParts     = "what this command had finished before stays; what it had only begun does not count"
)

// untouched is an error of a command that had not begun to change anything.
type untouched struct{ error }

// Unwrap implements the interface of package errors.
func (u untouched) Unwrap() error { return u.error }

// afterStop says of a command what state things are in once it was interrupted.
var afterStop = map[string]string{
	"snapshot": "no snapshot was committed by what was cut off; every container runs; what was sent is kept, and not sent again",
	"verify":   "nothing was changed; what was read is remembered, and not read again by the same command",
	"repair":   "what was mended stays; nothing that was sound was touched",
	"restore":  "what was restored stays in the directory, marked as cut off",
	"copy":     "what was copied stays; every snapshot that is visible there is whole",
	"forget":   "what was forgotten stays so; every other snapshot is as it was",
	"gc":       "every visible snapshot is whole; what was removed stays removed",
}

// readOnly are commands that change nothing, whatever becomes of them.
var readOnly = []string{"check", "verify", "snapshots", "status", "ls", "diff", "version", "help", "completion", "kit", "list"}

// snapshotsAndTrees is where to look for what a snapshot holds.
var snapshotsAndTrees = []string{"lifeboat snapshots  (lists systems and snapshots)", "lifeboat ls SYSTEM  (lists trees and what is in them)"}

// whereToLook says, by command, where the names are that it takes.
var whereToLook = map[string][]string{
	"snapshot": {"lifeboat status  (lists the systems that are protected here)", "lifeboat protect SYSTEM --project PROJECT"},
	"protect":  {"docker ps --all  (lists projects and containers)"},
	"key":      {"lifeboat key list"},
	"host":     {"lifeboat host list"},
	"ls":       snapshotsAndTrees,
	"restore":  snapshotsAndTrees,
	"diff":     snapshotsAndTrees,
}

// anyState are the commands that do their work as well with an empty state
// directory. The others speak, remove or start in this host's name: with another
// directory they would do so as a new host, which is not the one that is enrolled,
// holds the systems and knows what is here.
var anyState = []string{"lifeboat restore", "lifeboat check", "lifeboat verify", "lifeboat ls", "lifeboat diff", "lifeboat snapshots"}

// whole adds to an error what it does not say itself: every error of a command
// has the state of things and a next step (CLI contract: error.state, error.next).
func (a *app) whole(ctx context.Context, o outcome, err error) error {
	var helper passedOn
	if errors.As(err, &helper) { // the helper has told it
		return err
	}
	out := ui.Explained{What: err.Error(), Err: err}
	var x ui.Explainer
	if errors.As(err, &x) {
		out.State, out.Next = x.Explain()
	}
	if o.code == codeInterrupted {
		out.What = interruptedText(context.Cause(ctx), err)
	} else if out.State != "" && len(out.Next) > 0 {
		return err
	}
	state, next := a.byKind(o, err)
	out.State = cmp.Or(out.State, state)
	if len(out.Next) == 0 {
		out.Next = next
	}
	return out
}

// byKind is what can be said of an error by its kind and the command alone.
func (a *app) byKind(o outcome, err error) (state string, next []string) {
	path, top, name := a.commandWords()
	state = stateParts
	var early untouched
	switch {
	case slices.Contains(readOnly, name):
		state = stateUntouched
	case errors.As(err, &early):
		state = stateNothing
	}
	again := "run it again: " + a.sameAgain()
	switch o.code {
	case codeUsage:
		return "nothing was done", []string{path + " --help"}
	case codeInterrupted:
		if early.error != nil {
			return state, []string{again}
		}
		return cmp.Or(afterStop[name], state), []string{again}
	case codeNotFound:
		if list, ok := whereToLook[top]; ok {
			return state, list
		}
		return state, []string{"lifeboat snapshots  (lists systems and snapshots)", path + " --help"}
	case codeHeld:
		var half *site.HalfWrittenError
		if errors.As(err, &half) {
			if top == "snapshot" {
				state = stateNothing
			}
			return state, []string{
				fmt.Sprintf("lifeboat failover %s  (or lifeboat failback %s: that which was cut off goes on where it was)", half.System, half.System),
				again,
			}
		}
		return state, []string{"wait for what holds it to end, or take it out of the way; then " + again}
	case codeWrongKey:
		return "nothing was read or changed", []string{"name the right key: LIFEBOAT_KEY_FILE, or LIFEBOAT_PASSPHRASE_FILE"}
	case codeFenced:
		return state, []string{"lifeboat status  (says which site holds the system)"}
	case codeUnknown:
		return "it is not known whether the last step was done; nothing is lost either way", []string{"lifeboat status", again}
	case codePartial:
		return "what was done stays", []string{"look at what is named above, mend it, then " + again}
	}
	if errors.Is(err, dr.ErrTampered) {
		return state, []string{
			"lifeboat check  (says what is damaged, and which snapshots are hit)",
			"lifeboat repair --from URL  (of a mirror or another copy; without --from from what is left; with --drop-damaged what cannot be mended is forgotten), then " + again,
		}
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EROFS) {
		next := []string{"make room at the path that is named above, or make it writable; then " + again}
		if slices.Contains(anyState, path) {
			next = append(next, "or let this host remember somewhere else for the time being: "+config.EnvStateDir+"=/a/directory/on/another/disk (what is cached is fetched again; that the registry shows an older state than this host has seen is not noticed then)")
		}
		return state, next
	}
	return state, []string{"mend what is named above, then " + again}
}

// commandWords are the command's full name, its first word and its last.
func (a *app) commandWords() (path, top, name string) {
	if a.cmd == nil {
		return "lifeboat", "", ""
	}
	path = a.cmd.CommandPath()
	words := strings.Fields(path)
	if len(words) > 1 {
		top = words[1]
	}
	return path, top, words[len(words)-1]
}

// interruptedText says in one line what was cut off, and by what.
func interruptedText(cause, err error) string {
	if cause == nil {
		return err.Error()
	}
	var parts []string
	for line := range strings.SplitSeq(err.Error(), "\n") {
		line = strings.TrimSpace(line)
		if line != "" && line != context.Canceled.Error() && line != cause.Error() && !slices.Contains(parts, line) {
			parts = append(parts, line)
		}
	}
	text := strings.Join(parts, "; ")
	switch {
	case text == "":
		return cause.Error()
	case strings.Contains(text, cause.Error()):
		return text
	}
	return cause.Error() + ": " + text
}
