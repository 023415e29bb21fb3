package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
)

// A visit takes one tool through all works with trees: opening its empty
// vault, create, create again, the second version, restore.
type visit struct {
	*bench
	suite  string
	trees  []tree // one, or two versions of it
	tool   tool
	run    int
	place  place
	vault  vault
	stored func() (int64, error) // bytes that the vault takes
	watch  func(*sample) func()  // called before a work; what it gives, after it; may be nil
	cold   bool                  // restore as another machine would
}

// yardstick is find -printf, which reads what a program must at least read
// that wants to know whether a tree has changed.
const yardstick = "find"

func (v visit) do(ctx context.Context) error {
	first := v.trees[0]
	s := sample{Suite: v.suite, Tree: first.Label, Tool: v.tool.Name(), Run: v.run}
	work := func(work string, do func() (usage, error)) error {
		s.Work, s.Requests, s.ServerCPU = work, nil, 0
		v.settle()
		done := func() {}
		if v.watch != nil {
			done = v.watch(&s)
		}
		u, err := do()
		if err != nil {
			return fmt.Errorf("%s: %w", work, err)
		}
		done()
		now, err := v.stored()
		if err != nil {
			return err
		}
		s.Added, s.Stored = now-s.Stored, now
		if work == workOpen { // what is there was made before
			s.Added = 0
		}
		v.record(s, u)
		return nil
	}
	create := func(name string, t tree) func() (usage, error) {
		return func() (usage, error) { return v.vault.Create(ctx, name, t.Path) }
	}

	if o, ok := v.vault.(opener); ok {
		if err := work(workOpen, func() (usage, error) { return o.OpenOnly(ctx) }); err != nil {
			return err
		}
	}
	if err := work(workCreate, create("first", first)); err != nil {
		return err
	}
	if !v.tool.Whole() {
		if err := work(workAgain, create("again", first)); err != nil {
			return err
		}
		if v.tool.Name() == ours && v.watch == nil {
			if err := v.find(ctx); err != nil {
				return err
			}
		}
		if len(v.trees) > 1 {
			if err := work(workSecond, create("second", v.trees[1])); err != nil {
				return err
			}
		}
	}
	if v.cold {
		if err := v.place.forget(ctx, v.vault); err != nil {
			return err
		}
	}
	target := filepath.Join(v.work, "target")
	defer removeAll(target)
	return work(workRestore, func() (usage, error) {
		u, err := v.vault.Restore(ctx, "first", target)
		if err != nil {
			return u, err
		}
		got, err := contentOf(target)
		if err == nil && got != first.content {
			err = fmt.Errorf("restored %+v, not %+v", got, first.content)
		}
		return u, err
	})
}

// find measures the yardstick of 'create again'.
func (v visit) find(ctx context.Context) error {
	if _, err := exec.LookPath(yardstick); err != nil {
		return nil
	}
	u, err := v.runner.run(ctx, command{Args: []string{yardstick, v.trees[0].Path, "-printf", `%s %m\n`}})
	if err == nil {
		v.record(sample{Suite: v.suite, Tree: v.trees[0].Label, Work: workAgain, Tool: yardstick, Run: v.run}, u)
	}
	return err
}
