package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
)

// readReports reads what earlier runs wrote, each other suites of one machine
// and tree, and makes one report of it.
func readReports(files []string) (*report, error) {
	var whole *report
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		r := &report{}
		if err := json.Unmarshal(b, r); err != nil {
			return nil, fmt.Errorf("%s is not what -json writes: %w", file, err)
		}
		if len(r.Samples) == 0 {
			return nil, fmt.Errorf("%s: nothing was measured", file)
		}
		if whole == nil {
			whole = r
			continue
		}
		if err := whole.join(r); err != nil {
			return nil, fmt.Errorf("%s and %s: %w", files[0], file, err)
		}
	}
	return whole, nil
}

// join adds the samples of other suites. Bars side by side must be comparable.
func (r *report) join(more *report) error {
	a, b := r.Machine, more.Machine
	switch {
	case a.CPU != b.CPU || a.Cores != b.Cores || a.Kernel != b.Kernel:
		return fmt.Errorf("measured on two machines: %s, %d cores, Linux %s, and %s, %d cores, Linux %s", a.CPU, a.Cores, a.Kernel, b.CPU, b.Cores, b.Kernel)
	case len(r.Trees) == 0 || len(more.Trees) == 0 || r.Trees[0].Label != more.Trees[0].Label || r.Trees[0].content != more.Trees[0].content:
		return errors.New("measured with two trees")
	case r.Options.RTTSeconds != more.Options.RTTSeconds || r.Options.Bandwidth != more.Options.Bandwidth:
		return errors.New("measured at two distances: -rtt and -bandwidth must be the same")
	}
	suites := r.Samples.distinct(func(s sample) string { return s.Suite })
	for _, s := range more.Samples.distinct(func(s sample) string { return s.Suite }) {
		if slices.Contains(suites, s) {
			return fmt.Errorf("suite %s is in both", s)
		}
	}
	r.Samples = append(r.Samples, more.Samples...)
	return nil
}
