package main

import (
	"bytes"

	"github.com/spf13/cobra"
)

// Groups of commands in the help.
const (
	groupProtect = "protect"
	groupRecover = "recover"
	groupCare    = "care"
)

// newRootCmd puts the command together.
func newRootCmd(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "lifeboat",
		Short: "Disaster recovery for Docker hosts, with nothing but an OCI registry",
		Long: `Disaster recovery for Docker hosts, with nothing but an OCI registry.

Lifeboat copies whole running systems, encrypted and deduplicated, into a
private registry, brings them up at another Docker host when theirs is lost, and
brings them back with what was written meanwhile.

The answer goes to stdout, everything else to stderr. With --json the answer is
one JSON document; an error is its key "error" with code, kind, message, state
and next.

Exit codes: 0 done, 1 failed, 2 usage, 3 done in part, 10 not found, 11 held by
another, 12 wrong key, 13 fenced, 14 outcome unknown, 130 interrupted, 141 nobody
reads the answer any more (| head).

Environment: LIFEBOAT_REPO, LIFEBOAT_CONFIG, LIFEBOAT_KEY_FILE,
LIFEBOAT_PASSPHRASE_FILE, LIFEBOAT_STATE_DIR, LIFEBOAT_LOG (debug, info, warn,
error), DOCKER_HOST. A flag goes before the environment, the environment before
the configuration file.`,
		Example: `  lifeboat init --repo oci://registry.example.org/dr
  lifeboat protect shop --project shop
  lifeboat snapshot shop

  # on the bad day, at the stand-in
  lifeboat failover shop

  # on the good day after, at the main site
  lifeboat failback shop`,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.AddGroup(
		&cobra.Group{ID: groupProtect, Title: "Protect:"},
		&cobra.Group{ID: groupRecover, Title: "Recover:"},
		&cobra.Group{ID: groupCare, Title: "Repository, keys and registry:"},
	)
	f := root.PersistentFlags()
	f.StringVar(&a.flags.repo, "repo", "", "repository `URL`: oci://HOST[:PORT]/NAME, or oci+http:// on loopback")
	f.StringVar(&a.flags.config, "config", "", "configuration `FILE` (default /etc/lifeboat/lifeboat.yaml)")
	f.BoolVar(&a.flags.json, "json", a.flags.json, "answer with one JSON document")
	f.BoolVarP(&a.flags.quiet, "quiet", "q", false, "no progress and no notes")
	f.BoolVarP(&a.flags.yes, "yes", "y", false, "answer every question with yes")
	f.BoolVar(&a.flags.kitStdin, "kit-stdin", false, "read a recovery kit from standard input (helper containers)")
	_ = f.MarkHidden("kit-stdin")
	f.BoolVar(&a.flags.insecure, "insecure", false, "allow plain HTTP to other than loopback addresses")
	f.BoolVar(&a.flags.acceptOlder, "accept-older", false, "take the repository as it is although this host has seen a newer state of it")
	// The default in the help would be what was found on the command line.
	f.Lookup("json").DefValue = "false"

	registry := newRegistryCmd()
	registry.GroupID = groupCare
	root.AddCommand(
		newInitCmd(a), newProtectCmd(a), newSnapshotCmd(a), newSnapshotsCmd(a), newStatusCmd(a),
		newFailoverCmd(a), newFailbackCmd(a), newSwitchoverCmd(a), newRecoverCmd(a), newRestoreCmd(a), newLsCmd(a), newDiffCmd(a),
		newCheckCmd(a), newVerifyCmd(a), newRepairCmd(a), newForgetCmd(a), newGCCmd(a), newCopyCmd(a), newKeyCmd(a), newKitCmd(a), newHostCmd(a), registry,
		newVersionCmd(a), newCompletionCmd(a),
	)
	root.SetHelpCommand(newHelpCmd())
	root.SetHelpFunc(a.help(root.HelpFunc()))
	return root
}

// helpAnswer is a help text as --json gives it.
type helpAnswer struct {
	Command string `json:"command"`
	Help    string `json:"help"`
}

// help answers with a help text, which is what text writes.
func (a *app) help(text func(*cobra.Command, []string)) func(*cobra.Command, []string) {
	return func(cmd *cobra.Command, args []string) {
		if !a.flags.json {
			text(cmd, args)
			return
		}
		var b bytes.Buffer
		out := cmd.OutOrStdout()
		cmd.SetOut(&b)
		text(cmd, args)
		cmd.SetOut(out)
		_ = a.UI().Answer(helpAnswer{Command: cmd.CommandPath(), Help: b.String()}) // two strings always encode
	}
}

// newHelpCmd is cobra's help command, except that an unknown command is an
// error.
func newHelpCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "help [COMMAND]",
		Short:   "Help about any command",
		Example: "  lifeboat help failover",
		RunE: func(cmd *cobra.Command, args []string) error {
			about, rest, err := cmd.Root().Find(args)
			if err == nil && len(rest) > 0 {
				err = subcommandOnly(about, rest)
			}
			if err != nil {
				return usage(cmd.Root(), err)
			}
			about.InitDefaultHelpFlag()
			return about.Help()
		},
	}
}
