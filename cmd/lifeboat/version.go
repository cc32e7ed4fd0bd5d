package main

import (
	"runtime"
	"runtime/debug"
	"strconv"

	"github.com/spf13/cobra"

	"lifeboat/internal/dr"
	"lifeboat/internal/ui"
)

// minEngineAPI is the oldest Docker Engine API that Lifeboat speaks (Docker
// 20.10); from there up it takes what the engine offers.
const minEngineAPI = "1.41"

// versionInfo is the answer of `lifeboat version`.
type versionInfo struct {
	Version  string `json:"version"`
	Commit   string `json:"commit,omitempty"`
	Modified bool   `json:"modified"` // built from a tree with changes
	Go       string `json:"go"`
	Platform string `json:"platform"`
	// Format is the repository format that this binary writes; it reads all
	// earlier ones.
	Format int `json:"format"`
	// API is the oldest Engine API that it speaks.
	API string `json:"api"`
}

func newVersionCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Tell the version, and what it reads and speaks",
		Example: `  lifeboat version
  lifeboat version --json | jq -r .version`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			v := thisVersion()
			return a.UI().Answer(v, ui.Fields{
				{Name: "lifeboat", Value: v.Version},
				{Name: "repository format", Value: strconv.Itoa(v.Format)},
				{Name: "Engine API", Value: v.API + " and newer"},
				{Name: "built with", Value: v.Go + " for " + v.Platform},
			})
		},
	}
}

// thisVersion reads what the Go toolchain wrote into the binary.
func thisVersion() versionInfo {
	v := versionInfo{Version: "unknown", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH, Format: dr.RootFormat, API: minEngineAPI}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Commit = s.Value
		case "vcs.modified":
			v.Modified = s.Value == "true"
		}
	}
	v.Version = versionOf(info.Main.Version, v.Commit, v.Modified)
	return v
}

// versionOf names a build that is no release after its commit.
func versionOf(module, commit string, modified bool) string {
	if module != "" && module != "(devel)" {
		return module
	}
	if commit == "" {
		return "unknown"
	}
	v := "commit " + commit[:min(len(commit), 12)]
	if modified {
		v += " with changes"
	}
	return v
}
