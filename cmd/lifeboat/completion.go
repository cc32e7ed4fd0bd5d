package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"lifeboat/internal/dr"
)

func newCompletionCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Print a script that completes lifeboat's commands in a shell",
		Example: `  lifeboat completion bash > /etc/bash_completion.d/lifeboat
  lifeboat completion zsh > "${fpath[1]}/_lifeboat"
  lifeboat completion fish > ~/.config/fish/completions/lifeboat.fish`,
		Args:      cobra.ExactArgs(1),
		ValidArgs: []string{"bash", "zsh", "fish"},
		RunE: func(cmd *cobra.Command, args []string) error {
			root, out := cmd.Root(), cmd.OutOrStdout()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(out, true)
			case "zsh":
				return root.GenZshCompletion(out)
			case "fish":
				return root.GenFishCompletion(out, true)
			default:
				return fmt.Errorf("no completion for %q, only for bash, zsh and fish: %w", args[0], dr.ErrUsage)
			}
		},
	}
}
