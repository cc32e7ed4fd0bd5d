package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"lifeboat/internal/config"
	"lifeboat/internal/dr"
	"lifeboat/internal/engine"
	"lifeboat/internal/ui"
)

func newProtectCmd(a *app) *cobra.Command {
	var project string
	var containers, exclude []string
	var degraded bool
	cmd := &cobra.Command{
		Use:     "protect SYSTEM",
		GroupID: groupProtect,
		Short:   "Declare a system and print what will be captured, what not, and why",
		Long: `Declare a system in the configuration: a Compose project, or named containers.
The coverage report tells of each of its objects whether it will be captured,
and if not, why. Nothing is captured yet.

The configuration keeps its comments and order. Run again, it prints the report
of a system that is declared already; with --exclude it leaves out more of it.`,
		Example: `  lifeboat protect shop --project shop
  lifeboat protect wiki --container wiki-web --container wiki-db
  lifeboat protect shop --exclude volume:shop_cache --exclude volume:shop_db:/tmp`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeSystems,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runProtect(cmd.Context(), args[0], project, containers, exclude, degraded)
		},
	}
	cmd.Flags().StringVar(&project, "project", "", "Compose `PROJECT` that makes the system")
	cmd.Flags().StringArrayVar(&containers, "container", nil, "`CONTAINER` of the system (repeatable)")
	cmd.Flags().StringArrayVar(&exclude, "exclude", nil, "leave out volume:NAME, bind:/PATH or layer:CONTAINER (repeatable)")
	complete(cmd, map[string]completer{
		"project":   a.completeEngine(func(c engine.InventoryContainer) string { return c.Project }),
		"container": a.completeEngine(func(c engine.InventoryContainer) string { return c.Name }),
	})
	cmd.Flags().BoolVar(&degraded, "degraded", false, "report what snapshot --degraded would capture")
	return cmd
}

// protectAnswer is the JSON answer of protect.
type protectAnswer struct {
	System     dr.System         `json:"system"`
	Config     string            `json:"config"`
	Added      bool              `json:"added"`
	Containers []string          `json:"containers"`
	Coverage   []dr.CoverageItem `json:"coverage"`
	// UnusedExcludes are those that nothing of the system answers to.
	UnusedExcludes []string `json:"unused_excludes"`
}

func parseExcludes(list []string) ([]config.Exclude, error) {
	var out []config.Exclude
	for _, e := range list {
		x, err := config.ParseExclude(e)
		if err != nil {
			return nil, fmt.Errorf("--exclude: %w", err)
		}
		out = append(out, x)
	}
	return out, nil
}

// unusedExcludes finds mistyped excludes. Whether there is something at a path
// inside a volume or container is not looked at.
func unusedExcludes(found *engine.System, sys config.System) []string {
	out := []string{}
	for _, x := range sys.Exclude {
		used := false
		switch x.Kind {
		case dr.TreeVolume:
			used = slices.ContainsFunc(found.Volumes, func(v engine.Volume) bool { return v.Name == x.Name })
		case dr.TreeLayer:
			used = slices.ContainsFunc(found.Containers, func(c engine.Container) bool { return c.Name == x.Name })
		case dr.TreeBind:
			used = slices.ContainsFunc(found.Binds, func(b engine.Bind) bool {
				return x.Name == b.Source || strings.HasPrefix(x.Name, strings.TrimSuffix(b.Source, "/")+"/")
			})
		}
		if !used {
			out = append(out, x.String())
		}
	}
	return out
}

func (a *app) runProtect(ctx context.Context, name, project string, containers, exclude []string, degraded bool) error {
	sysName, err := dr.ParseSystem(name)
	if err != nil {
		return err
	}
	cfg, err := a.ConfigToEdit()
	if err != nil {
		return err
	}
	sys, declared := cfg.Systems[sysName]
	more, err := parseExcludes(exclude)
	if err != nil {
		return err
	}
	define := project != "" || len(containers) > 0
	switch {
	case define:
		sys = config.System{Project: project, Containers: containers, Exclude: more, Overrides: sys.Overrides}
	case !declared:
		return fmt.Errorf("system %s is not declared yet: pass --project PROJECT or --container NAME: %w", name, dr.ErrUsage)
	default:
		sys.Exclude = slices.Clone(sys.Exclude)
		for _, x := range more {
			if !slices.Contains(sys.Exclude, x) {
				sys.Exclude = append(sys.Exclude, x)
			}
		}
	}
	set, err := a.Settings()
	if err != nil {
		return err
	}
	w := &world{cfg: cfg, src: source{url: set.Repo.Value, stateDir: set.StateDir.Value}}
	if err := a.openEngine(ctx, w); err != nil {
		return err
	}
	defer w.close()
	sel := a.selector(w, sys)
	sel.Archive = a.degrade(w, degraded)
	if !w.host.Local && !sel.Archive {
		a.UI().Note("the files of the engine's host cannot be reached from here (%s): snapshots are taken by a helper container; where the engine allows none, see protect --degraded", w.host.Reason)
	}
	found, err := w.engine.Discover(ctx, sel)
	if err != nil {
		return err
	}
	var added bool
	if define {
		added, err = config.AddSystem(cfg.Path, sysName, sys)
	} else {
		added, err = config.AddExcludes(cfg.Path, sysName, more)
	}
	if err != nil {
		return err
	}
	a.reload()
	ans := protectAnswer{
		System: sysName, Config: cfg.Path, Added: added, Coverage: found.Coverage, Containers: []string{},
		UnusedExcludes: unusedExcludes(found, sys),
	}
	for _, x := range ans.UnusedExcludes {
		a.UI().Warn("%s is excluded, and the system has nothing of that name", x)
	}
	for _, c := range found.Containers {
		ans.Containers = append(ans.Containers, c.Name)
	}
	return a.UI().Answer(ans, protectView(found, sys), ui.Text(protectNext(found, sysName, added, cfg.Path)+again(sel.Archive)))
}

func protectView(found *engine.System, sys config.System) ui.View {
	t := ui.Table{Title: "coverage", Columns: []ui.Column{{Title: "object"}, {Title: "captured"}, {Title: "size", Right: true}, {Title: "remark", Elastic: true}}}
	for _, c := range found.Coverage {
		captured := "yes"
		for _, x := range sys.Exclude {
			if x.String() == c.Object {
				c.Captured, c.Reason = false, "excluded in the configuration"
			}
		}
		switch {
		case c.Refused:
			captured = "REFUSED"
		case !c.Captured:
			captured = "NO"
		case c.Partial:
			captured = "in part"
		}
		size := ""
		if c.Bytes >= 0 {
			size = bytesText(c.Bytes)
		}
		t.Rows = append(t.Rows, []string{c.Object, captured, size, c.Reason})
	}
	return t
}

func protectNext(found *engine.System, name dr.System, added bool, path string) string {
	text := fmt.Sprintf("%d containers; declared in %s", len(found.Containers), path)
	if !added {
		text = fmt.Sprintf("%d containers; %s is as it was", len(found.Containers), path)
	}
	return text + "\nnext: lifeboat snapshot " + string(name)
}
