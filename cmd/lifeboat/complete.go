package main

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lifeboat/internal/dr"
	"lifeboat/internal/engine"
	"lifeboat/internal/override"
)

// completeWithin bounds what completion asks of registry and engine: whoever
// pressed the key waits for it.
const completeWithin = 2 * time.Second

type completer = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

const noFiles = cobra.ShellCompDirectiveNoFileComp

// quiet is an app with the same settings that neither says nor asks anything.
func (a *app) quiet() *app {
	q := newApp(process{in: strings.NewReader(""), out: io.Discard, err: io.Discard, env: a.env, exit: a.exit})
	q.flags, q.log = a.flags, slog.New(slog.DiscardHandler)
	q.flags.quiet, q.flags.json = true, false
	return q
}

// asked runs fn with the repository; where that cannot be opened at once, it is
// not run.
func (a *app) asked(cmd *cobra.Command, fn func(context.Context, *world)) {
	ctx := cmd.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, completeWithin)
	defer cancel()
	w, err := a.quiet().open(ctx, false)
	if err != nil {
		return
	}
	defer w.close()
	fn(ctx, w)
}

// completeSystems completes the first argument with the configuration's systems.
func (a *app) completeSystems(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, noFiles
	}
	return a.configured(), noFiles
}

func (a *app) configured() []string {
	c, err := a.Config()
	if err != nil {
		return nil
	}
	var names []string
	for name := range c.Systems {
		names = append(names, string(name))
	}
	slices.Sort(names)
	return names
}

// completeStored completes the first argument with the systems of the
// repository as well: a stand-in need not have them in its configuration.
func (a *app) completeStored(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, noFiles
	}
	names := a.configured()
	a.asked(cmd, func(ctx context.Context, w *world) {
		snaps, _, err := w.repo.Snapshots(ctx, "")
		if err != nil {
			return
		}
		for _, s := range snaps {
			names = append(names, string(s.System))
		}
	})
	slices.Sort(names)
	return slices.Compact(names), noFiles
}

// completeRefs completes SYSTEM, and behind an @ the snapshots, newest first.
func (a *app) completeRefs(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	name, _, at := strings.Cut(typed, "@")
	if !at || len(args) > 0 {
		return a.completeStored(cmd, args, typed)
	}
	return a.snapshotsOf(cmd, name, name+"@"), noFiles | cobra.ShellCompDirectiveKeepOrder
}

// completeSnapshot completes --snapshot.
func (a *app) completeSnapshot(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return nil, noFiles
	}
	return a.snapshotsOf(cmd, args[0], ""), noFiles | cobra.ShellCompDirectiveKeepOrder
}

func (a *app) snapshotsOf(cmd *cobra.Command, system, prefix string) []string {
	var out []string
	a.asked(cmd, func(ctx context.Context, w *world) {
		snaps, _, err := w.repo.Snapshots(ctx, dr.System(system))
		if err != nil {
			return
		}
		for _, s := range slices.Backward(snaps) {
			out = append(out, prefix+s.ID.Short()+"\t"+s.Created.Local().Format(time.DateTime)+" at "+string(s.Site))
		}
	})
	return out
}

// withRoot runs fn with the root record that the first argument names.
func (a *app) withRoot(cmd *cobra.Command, args []string, fn func(*dr.Root)) {
	if len(args) == 0 {
		return
	}
	a.asked(cmd, func(ctx context.Context, w *world) {
		_, rd, root, err := w.openRef(ctx, args[0], func(string) string { return "" })
		if err != nil {
			return
		}
		defer rd.Close()
		fn(root)
	})
}

// completeTrees completes --tree, and --volume without the kind.
func (a *app) completeTrees(kind string) completer {
	return func(cmd *cobra.Command, args []string, _ string) (out []string, _ cobra.ShellCompDirective) {
		a.withRoot(cmd, args, func(root *dr.Root) {
			for _, t := range root.Trees {
				if key, ok := strings.CutPrefix(t.Key, kind); ok {
					out = append(out, key)
				}
			}
		})
		return out, noFiles
	}
}

// completeOverride completes the key of --override: the sections, then what the
// system has.
func (a *app) completeOverride(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	directive := noFiles | cobra.ShellCompDirectiveNoSpace
	if !strings.Contains(typed, ".") {
		var out []string
		for _, s := range override.Sections() {
			out = append(out, s+".")
		}
		return out, directive
	}
	var out []string
	a.withRoot(cmd, args, func(root *dr.Root) { out = overrideKeys(root) })
	return out, directive
}

// overrideKeys are keys that mean something for the system, with their "=".
func overrideKeys(root *dr.Root) []string {
	keys := map[string]bool{}
	add := func(path ...string) {
		empty := ""
		if flag, ok := (override.Pair{Path: path, Value: &empty}).Flag(); ok {
			keys[flag] = true
		}
	}
	for _, c := range root.Containers {
		add("names", "containers", c.Name)
		for _, l := range []string{"memory", "cpus", "pids", "cpuset"} {
			add("limits", c.Name, l)
		}
		var config struct{ Env []string }
		var host struct {
			PortBindings map[string][]struct{ HostPort string }
		}
		if json.Unmarshal(c.Config, &config) == nil {
			for _, e := range config.Env {
				name, _, _ := strings.Cut(e, "=")
				add("environment", c.Name, name)
			}
		}
		if json.Unmarshal(c.HostConfig, &host) == nil {
			for _, list := range host.PortBindings {
				for _, b := range list {
					if n, err := strconv.ParseUint(b.HostPort, 10, 16); err == nil && n > 0 {
						add("ports", b.HostPort)
					}
				}
			}
		}
	}
	for _, v := range root.Volumes {
		add("names", "volumes", v.Name)
	}
	for _, b := range root.Binds {
		add("paths", b.Source)
	}
	for _, n := range root.Networks {
		for _, f := range []string{"name", "existing", "subnet", "gateway"} {
			add("networks", n.Name, f)
		}
	}
	add("names", "prefix")
	add("names", "project")
	return slices.Sorted(maps.Keys(keys))
}

// completeSites completes --to with the configuration's other sites.
func (a *app) completeSites(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	c, err := a.Config()
	if err != nil {
		return nil, noFiles
	}
	var names []string
	for name := range c.Sites {
		names = append(names, string(name))
	}
	slices.Sort(names)
	return names, noFiles
}

// completeEngine completes with what pick takes from the engine's containers.
func (a *app) completeEngine(pick func(engine.InventoryContainer) string) completer {
	return func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(context.Background(), completeWithin)
		defer cancel()
		set, err := a.Settings()
		if err != nil {
			return nil, noFiles
		}
		e, err := engine.Open(ctx, engine.Options{Host: set.EngineHost.Value, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			return nil, noFiles
		}
		defer e.Close()
		inv, err := e.Inventory(ctx)
		if err != nil {
			return nil, noFiles
		}
		var out []string
		for _, c := range inv.Containers {
			if name := pick(c); name != "" {
				out = append(out, name)
			}
		}
		slices.Sort(out)
		return slices.Compact(out), noFiles
	}
}

// complete sets how the values of a command's flags are completed.
func complete(cmd *cobra.Command, flags map[string]completer) {
	for name, fn := range flags {
		if err := cmd.RegisterFlagCompletionFunc(name, fn); err != nil {
			panic("completion of --" + name + " of " + cmd.Name() + ": " + err.Error()) // a flag that the command does not have
		}
	}
}
