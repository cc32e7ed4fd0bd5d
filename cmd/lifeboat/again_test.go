package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"lifeboat/internal/plan"
	recovery "lifeboat/internal/recover"
	"lifeboat/internal/ui"
)

// parsed is an app whose command line was read and not run.
func parsed(t *testing.T, args ...string) *app {
	t.Helper()
	a := newApp(process{env: func(string) string { return "" }})
	root := newRootCmd(a)
	cmd, rest, err := root.Find(args)
	if err != nil {
		t.Fatal(err)
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { a.cmd = cmd; return nil }
	if err := cmd.ParseFlags(rest); err != nil {
		t.Fatal(err)
	}
	a.cmd = cmd
	return a
}

// TestConflictsInOneCommand: what solves all conflicts is one line that can be
// pasted, with what this run was called with.
func TestConflictsInOneCommand(t *testing.T) {
	t.Parallel()
	conflicts := recovery.Conflicts{
		{Object: "network edge", Solve: "docker network create edge"},
		{Object: "path /srv/a b", Override: "paths./srv/a b=/srv/a b-standin"},
		{Object: "port 8080/tcp of container web", Override: "ports.8080=18081"},
		{Object: "subnet 10.0.0.0/24 of network n", Override: "networks.n.subnet=10.0.1.0/24,fd00::/64"},
		{Object: "subnet fd01::/64 of network n", Override: "networks.n.subnet=10.0.1.0/24,fd00::/64"},
	}
	a := parsed(t, "failover", "shop", "--snapshot", "#3", "--override", "ports.8080=18080", "--override", "environment.web.PW=hunter2",
		"--override", "environment.web.TOKEN=@/run/t", "--dry-run", "--kit-stdin", "--yes")
	res := &recovery.Result{Plan: &recovery.Plan{Conflicts: conflicts}}
	err := a.explainBring("failover", "shop", res, conflicts)
	x, ok := err.(ui.Explained)
	if !ok || x.What != "5 thing(s) stand in the way here" || x.State != "nothing was changed" {
		t.Errorf("%#v", err)
	}
	if diff := cmp.Diff([]string{
		"docker network create edge",
		"lifeboat failover shop --dry-run --override 'environment.web.PW=***' --override environment.web.TOKEN=@/run/t --snapshot '#3' --yes " +
			"--override 'paths./srv/a b=/srv/a b-standin' --override ports.8080=18081 --override networks.n.subnet=10.0.1.0/24,fd00::/64",
	}, x.Next); diff != "" {
		t.Error(diff)
	}
	// Of several systems of a kit the one that is meant.
	a = parsed(t, "recover", "--kit", "kit.txt", "shop", "blog")
	if diff := cmp.Diff([]string{"lifeboat recover shop --kit kit.txt --override ports.8080=18081"}, a.solutions("shop", []plan.Conflict{conflicts[2]})); diff != "" {
		t.Error(diff)
	}
	// Conflicts that came up later stand in no table: the message names them.
	err = a.explainBring("failback", "shop", &recovery.Result{Plan: &recovery.Plan{}}, conflicts[:1])
	if err.Error() != "1 thing(s) stand in the way here: network edge" {
		t.Error(err)
	}
}
