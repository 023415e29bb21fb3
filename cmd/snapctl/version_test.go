package main

import (
	"runtime/debug"
	"testing"
)

func TestVersionFrom(t *testing.T) {
	info := func(module string, settings ...debug.BuildSetting) func() (*debug.BuildInfo, bool) {
		return func() (*debug.BuildInfo, bool) {
			return &debug.BuildInfo{Main: debug.Module{Version: module}, Settings: settings}, true
		}
	}
	revision := debug.BuildSetting{Key: "vcs.revision", Value: "0123456789abcdef0123"}
	for _, c := range []struct {
		want    string
		release string
		info    func() (*debug.BuildInfo, bool)
	}{
		{"v1.2.3", "v1.2.3", info("v1.0.0", revision)},
		{"v1.0.0", "", info("v1.0.0", revision)},
		{"dev-0123456789ab", "", info("(devel)", revision)},
		{"dev-0123456789ab-modified", "", info("", revision, debug.BuildSetting{Key: "vcs.modified", Value: "true"})},
		{"dev", "", info("(devel)")},
		{"dev", "", func() (*debug.BuildInfo, bool) { return nil, false }},
	} {
		if got := versionFrom(stamp{version: c.release}, c.info); got.Version != c.want {
			t.Errorf("%s; want %s", got.Version, c.want)
		}
	}
}

// TestVersionStamp: what a release was stamped with counts more than what Go knows.
func TestVersionStamp(t *testing.T) {
	built := func() (*debug.BuildInfo, bool) {
		return &debug.BuildInfo{Settings: []debug.BuildSetting{
			{Key: "vcs.revision", Value: "built"}, {Key: "vcs.time", Value: "2026-01-02T03:04:05Z"}, {Key: "vcs.modified", Value: "true"},
		}}, true
	}
	if v := versionFrom(stamp{}, built); v.Commit != "built" || v.Time != "2026-01-02T03:04:05Z" || !v.Modified {
		t.Errorf("%+v", v)
	}
	v := versionFrom(stamp{version: "v1.2.3", commit: "released", time: "2025-01-02T03:04:05Z"}, built)
	if v.Version != "v1.2.3" || v.Commit != "released" || v.Time != "2025-01-02T03:04:05Z" || v.Modified {
		t.Errorf("%+v", v)
	}
}
