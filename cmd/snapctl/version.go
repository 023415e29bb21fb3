package main

import (
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// versionInfo is what version --json prints.
type versionInfo struct {
	Version  string `json:"version"`
	Commit   string `json:"commit,omitempty"` // missing where it is not known
	Time     string `json:"time,omitempty"`   // of the commit
	Modified bool   `json:"modified,omitempty"`
	Go       string `json:"go"`
	OS       string `json:"os"`
	Arch     string `json:"arch"`
}

// stamp is what a release sets with -ldflags "-X main.version=v1.2.3 ...": it may be
// built where there is no git.
type stamp struct{ version, commit, time string }

func readVersion() versionInfo {
	return versionFrom(stamp{version, commit, commitTime}, debug.ReadBuildInfo)
}

// versionFrom is the release's version, else the module's when it was built by
// go install, else the commit.
func versionFrom(release stamp, buildInfo func() (*debug.BuildInfo, bool)) versionInfo {
	v := versionInfo{Version: "dev", Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
	settings := make(map[string]string)
	if info, ok := buildInfo(); ok {
		for _, s := range info.Settings {
			settings[s.Key] = s.Value
		}
		if m := info.Main.Version; m != "" && m != "(devel)" {
			v.Version = m
		}
	}
	v.Commit, v.Time = settings["vcs.revision"], settings["vcs.time"]
	v.Modified = settings["vcs.modified"] == "true"
	if v.Version == "dev" && v.Commit != "" {
		v.Version = "dev-" + v.Commit[:min(12, len(v.Commit))]
		if v.Modified {
			v.Version += "-modified"
		}
	}
	if release.version != "" {
		v.Version = release.version
	}
	if release.commit != "" {
		v.Commit, v.Time, v.Modified = release.commit, release.time, false
	}
	return v
}

func versionCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show the version",
		Long: `Shows the version, what it was built with, and for which system. With --json,
one object: version, commit, time (of the commit), modified (since the commit),
go, os and arch; what is not known is missing.`,
		Args:              takes(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			v := readVersion()
			if a.ui.JSON {
				return a.ui.PrintJSON(v)
			}
			return a.ui.Print("snapctl " + v.Version + " " + v.Go + " " + v.OS + "/" + v.Arch + "\n")
		},
	}
}
