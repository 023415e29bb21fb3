package main

import (
	"context"
	"fmt"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/listing"
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
func previewRestore(ctx context.Context, out *ui.Streams, repo *engine.Repository, ref, dir string, opts engine.RestoreOptions) error {
	progress := out.StartProgress()
	opts.Progress = progress
	p := listing.NewChanges(out, false)
	p.InObject("paths")
	opts.Would = p.Print
	receipt, err := repo.Restore(ctx, ref, dir, &opts)
	if err != nil {
		progress.Stop(nil)
		return restoreHint(ctx, repo, p.Finish(err, nil), ref, dir, opts)
	}
	progress.Stop(receipt.Problems)
	err = p.Finish(nil, previewOutput{
		Snapshot: receipt.Snapshot, Target: receipt.Target, DryRun: true, Changes: receipt.Changes,
		InPlace: receipt.InPlace, Kept: receipt.Kept, Problems: messages(receipt.Problems),
	})
	if err != nil {
		return err
	}
	s := fmt.Sprintf("would restore %s to %s: %s", receipt.Snapshot.ID, ui.Quoted(receipt.Target), changesText(receipt.Changes))
	if receipt.InPlace != "" {
		s += "; in place, since " + receipt.InPlace
	}
	if len(receipt.Kept) > 0 {
		s += "; left alone, as snapctl's own: " + quotedList(receipt.Kept)
	}
	out.Say(s)
	if len(receipt.Problems) > 0 {
		return fmt.Errorf("restore: what would change is %w: %s, named above", errIncomplete, ui.Plural(int64(len(receipt.Problems)), "problem"))
	}
	return nil
}
