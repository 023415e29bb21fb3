package main

import (
	"bufio"
	"context"
	"fmt"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
	"github.com/snapctl/snapctl/engine"
)

// previewOutput is what restore --dry-run --json prints, beside paths.
type previewOutput struct {
	Snapshot engine.Snapshot       `json:"snapshot"`
	Target   string                `json:"target"`
	DryRun   bool                  `json:"dryRun"`
	Changes  engine.RestoreChanges `json:"changes"`
	InPlace  string                `json:"inPlace,omitempty"`
	Kept     []string              `json:"kept,omitempty"`
	Problems []string              `json:"problems,omitempty"`
}

// previewRestore prints what a restore would change.
func (a *app) previewRestore(ctx context.Context, repo *engine.Repository, ref, dir string, opts engine.RestoreOptions) error {
	progress := a.ui.StartProgress()
	opts.Progress = progress
	p := &diffPrinter{app: a, terminal: a.ui.Out.Terminal(), out: bufio.NewWriterSize(a.ui.Out, 64<<10)}
	opts.Would = p.print
	if a.ui.JSON {
		p.before = `{"paths":`
	}
	receipt, err := repo.Restore(ctx, ref, dir, &opts)
	if err != nil {
		progress.Stop(nil)
		if p.counts != ([3]int64{}) {
			err = p.finish(err)
		}
		return restoreHint(ctx, repo, err, ref, dir, opts)
	}
	progress.Stop(receipt.Problems)
	p.after = func() (string, error) {
		rest, err := ui.JSONLine(previewOutput{
			Snapshot: receipt.Snapshot, Target: receipt.Target, DryRun: true, Changes: receipt.Changes,
			InPlace: receipt.InPlace, Kept: receipt.Kept, Problems: messages(receipt.Problems),
		})
		return "," + rest[1:], err
	}
	if err := p.finish(nil); err != nil {
		return err
	}
	s := fmt.Sprintf("would restore %s to %s: %s", receipt.Snapshot.ID, ui.Quoted(receipt.Target), changesText(receipt.Changes))
	if receipt.InPlace != "" {
		s += "; in place, since " + receipt.InPlace
	}
	if len(receipt.Kept) > 0 {
		s += "; left alone, as snapctl's own: " + quotedList(receipt.Kept)
	}
	a.ui.Say(s)
	if len(receipt.Problems) > 0 {
		return fmt.Errorf("restore: what would change is %w: %s, named above", errIncomplete, ui.Plural(int64(len(receipt.Problems)), "problem"))
	}
	return nil
}
