package main

import (
	"context"
	"fmt"

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
of a system that is declared already.`,
		Example: `  lifeboat protect shop --project shop
  lifeboat protect wiki --container wiki-web --container wiki-db
  lifeboat protect shop`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeSystems,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runProtect(cmd.Context(), args[0], project, containers, exclude, degraded)
		},
	}
	cmd.Flags().StringVar(&project, "project", "", "Compose `PROJECT` that makes the system")
	cmd.Flags().StringArrayVar(&containers, "container", nil, "`CONTAINER` of the system (repeatable)")
	cmd.Flags().StringArrayVar(&exclude, "exclude", nil, "leave out volume:NAME, bind:/PATH or layer:CONTAINER (repeatable)")
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
	if project != "" || len(containers) > 0 {
		sys.Project, sys.Containers = project, containers
		sys.Exclude = nil
		for _, e := range exclude {
			x, err := config.ParseExclude(e)
			if err != nil {
				return err
			}
			sys.Exclude = append(sys.Exclude, x)
		}
		if declared {
			sys.Overrides = cfg.Systems[sysName].Overrides
		}
	} else if !declared {
		return fmt.Errorf("system %s is not declared yet: pass --project PROJECT or --container NAME: %w", name, dr.ErrUsage)
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
	added, err := config.AddSystem(cfg.Path, sysName, sys)
	if err != nil {
		return err
	}
	a.reload()
	ans := protectAnswer{System: sysName, Config: cfg.Path, Added: added, Coverage: found.Coverage, Containers: []string{}}
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
		case c.Reason != "":
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
