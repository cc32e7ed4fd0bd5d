package main

import (
	"bytes"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"lifeboat/internal/dr"
)

// completionAnswer is the answer of `lifeboat completion --json`.
type completionAnswer struct {
	Shell  string `json:"shell"`
	Script string `json:"script"`
}

func newCompletionCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Print a script that completes lifeboat's commands in a shell",
		Example: `  lifeboat completion bash > /etc/bash_completion.d/lifeboat
  lifeboat completion zsh > "${fpath[1]}/_lifeboat"
  lifeboat completion fish > ~/.config/fish/completions/lifeboat.fish`,
		Args:      cobra.ExactArgs(1),
		ValidArgs: []string{"bash", "zsh", "fish"},
		RunE: func(cmd *cobra.Command, args []string) error {
			if !a.flags.json {
				return writeCompletion(cmd.Root(), args[0], cmd.OutOrStdout())
			}
			var script bytes.Buffer
			if err := writeCompletion(cmd.Root(), args[0], &script); err != nil {
				return err
			}
			return a.UI().Answer(completionAnswer{Shell: args[0], Script: script.String()})
		},
	}
}

// writeCompletion writes the script for a shell.
func writeCompletion(root *cobra.Command, shell string, to io.Writer) error {
	switch shell {
	case "bash":
		return root.GenBashCompletionV2(to, true)
	case "zsh":
		return root.GenZshCompletion(to)
	case "fish":
		return root.GenFishCompletion(to, true)
	default:
		return fmt.Errorf("no completion for %q, only for bash, zsh and fish: %w", shell, dr.ErrUsage)
	}
}
