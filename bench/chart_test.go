package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The figures of this report were made up.
const madeUpReport = "testdata/report.json"

// textsOf are the texts of an SVG file, and fails unless it is well-formed.
func textsOf(t *testing.T, svg []byte) []string {
	t.Helper()
	var texts []string
	in := false
	dec := xml.NewDecoder(bytes.NewReader(svg))
	for {
		token, err := dec.Token()
		if err == io.EOF {
			return texts
		}
		if err != nil {
			t.Fatal(err)
		}
		switch x := token.(type) {
		case xml.StartElement:
			in = x.Name.Local == "text"
		case xml.CharData:
			if in {
				texts = append(texts, string(x))
			}
		case xml.EndElement:
			in = false
		}
	}
}

func TestChartsFromAReport(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "charts")
	make := func() string {
		var stdout bytes.Buffer
		if err := run(t.Context(), []string{"-chart", dir, "-from", madeUpReport}, &stdout, &bytes.Buffer{}); err != nil {
			t.Fatal(err)
		}
		return stdout.String()
	}
	written := strings.Fields(make())
	about := "example-v1: 110,534 files, 827 MB; 4 cores"
	for name, want := range map[string][]string{
		"create.svg": {"A whole snapshot takes", about,
			"snapctl", "tar+zstd", "squashfs-lz4", "cp", "squashfs-zstd", "restic", "borg", "casync",
			"3.20 s", "4.10 s", "5.20 s", "8.40 s", "9.80 s", "11.3 s", "22.4 s", "41.2 s"},
		"second-version.svg": {"A second version adds", about,
			"snapctl", "borg", "restic", "casync", "tar+zstd", "squashfs-zstd", "squashfs-lz4", "cp",
			"9.0 MB", "13 MB", "14 MB", "41 MB", "190 MB", "192 MB", "270 MB", "827 MB"},
		"start.svg": {"From nothing over S3 to node done", about + "; 30 ms, 100 MB/s a connection",
			"snapctl", "snapctl, the second time", "squashfs-zstd", "restic",
			"1.10 s", "710 ms", "2.60 s", "31.2 s"},
		"fork.svg": {"A fork, and a changed line saved", about + "; * no snapshot without its base",
			"snapctl", "overlay, image of upper*", "overlay, tar of upper*", "overlay, new image", "restic",
			"66.0 ms", "9.0 ms", "10.0 ms", "10.2 s", "15.0 s"},
	} {
		file := filepath.Join(dir, name)
		if !slices.Contains(written, file) {
			t.Errorf("%s is not said to be written: %q", file, written)
		}
		svg, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got := textsOf(t, svg); !slices.Equal(got, want) {
			t.Errorf("%s says\n%q\nwant\n%q", name, got, want)
		}
		if len(svg) > 20<<10 {
			t.Errorf("%s has %d bytes", name, len(svg))
		}
		make()
		if again, err := os.ReadFile(file); err != nil || !bytes.Equal(svg, again) {
			t.Errorf("%s is another one the second time (%v)", name, err)
		}
	}
	if len(written) != 4 {
		t.Errorf("written: %q", written)
	}
}

// A chart is about what was measured, and about nothing else.
func TestChartsLeaveOut(t *testing.T) {
	whole, err := readReports([]string{madeUpReport})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		keep func(sample) bool
		want []string
	}{
		"one suite":   {func(s sample) bool { return s.Suite == suiteNameFork }, []string{"fork"}},
		"no peers":    {func(s sample) bool { return strings.HasPrefix(s.Tool, ours) }, nil},
		"peers alone": {func(s sample) bool { return !strings.HasPrefix(s.Tool, ours) }, nil},
		"saved only":  {func(s sample) bool { return s.Work == workSaveLine }, nil},
	} {
		r := *whole
		r.Samples = whole.Samples.where(c.keep)
		var got []string
		for _, c := range chartsOf(&r) {
			got = append(got, c.file)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: charts %q, want %q", name, got, c.want)
		}
	}
	r := *whole
	r.Samples = nil
	if err := r.writeCharts(t.TempDir(), io.Discard); err == nil || !strings.Contains(err.Error(), "nothing to make a chart of") {
		t.Errorf("error %v", err)
	}
}

func TestReportsJoin(t *testing.T) {
	write := func(change func(*report)) string {
		r, err := readReports([]string{madeUpReport})
		if err != nil {
			t.Fatal(err)
		}
		change(r)
		b, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "report.json")
		if err := os.WriteFile(file, b, 0o644); err != nil {
			t.Fatal(err)
		}
		return file
	}
	only := func(suite string) func(*report) {
		return func(r *report) { r.Samples = r.Samples.where(func(s sample) bool { return s.Suite == suite }) }
	}
	local := write(only("local"))
	all, err := readReports([]string{local, write(only(suiteNameMount)), write(only(suiteNameFork))})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(chartsOf(all)); n != 4 {
		t.Errorf("%d charts of three reports", n)
	}
	for want, change := range map[string]func(*report){
		"suite local is in both":  only("local"),
		"two machines":            func(r *report) { r.Machine.Cores = 64 },
		"two trees":               func(r *report) { r.Trees[0].Files++ },
		"two distances":           func(r *report) { r.Options.RTTSeconds = 0.2 },
		"nothing was measured":    func(r *report) { r.Samples = nil },
		"-json writes":            nil,
		"no such file":            nil,
		"-from wants -chart too,": nil,
	} {
		args := []string{"-chart", t.TempDir(), "-from", local}
		switch {
		case change != nil:
			args = append(args, write(change))
		case want == "no such file":
			args = append(args, "nowhere.json")
		case want == "-json writes":
			args = append(args, "chart.go")
		default:
			args = args[2:]
		}
		if err := run(t.Context(), args, io.Discard, io.Discard); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}

// A run that measures makes charts too, in a folder that was not there.
func TestRunMakesCharts(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "charts")
	_, _, err := smoke(t, fake(t, `cp -a "$repo/$2/tree" "$3"`), "-suite", "local", "-peers", "cp", "-chart", dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"create.svg", "second-version.svg"} {
		svg, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if texts := textsOf(t, svg); !slices.Contains(texts, ours) || !slices.Contains(texts, "cp") {
			t.Errorf("%s says %q", name, texts)
		}
	}
}
