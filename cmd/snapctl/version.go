package main

import (
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// versionInfo is what version --json prints.
type versionInfo struct {
	Version string `json:"version"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
}

func readVersion() versionInfo {
	return versionInfo{
		Version: versionFrom(version, debug.ReadBuildInfo),
		Go:      runtime.Version(),
		OS:      runtime.GOOS,
		Arch:    runtime.GOARCH,
	}
}

// versionFrom is the release's version, else the module's when it was built by
// go install, else the commit.
func versionFrom(release string, buildInfo func() (*debug.BuildInfo, bool)) string {
	if release != "" {
		return release
	}
	info, ok := buildInfo()
	if !ok {
		return "dev"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	settings := make(map[string]string)
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	revision := settings["vcs.revision"]
	if revision == "" {
		return "dev"
	}
	revision = "dev-" + revision[:min(12, len(revision))]
	if settings["vcs.modified"] == "true" {
		revision += "-modified"
	}
	return revision
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "version",
		Short:             "Show the version",
		Long:              `Shows the version, what it was built with, and for which system.`,
		Args:              takes(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			v := readVersion()
			if a.json {
				return a.printJSON(v)
			}
			return a.print("snapctl " + v.Version + " " + v.Go + " " + v.OS + "/" + v.Arch + "\n")
		},
	}
}
