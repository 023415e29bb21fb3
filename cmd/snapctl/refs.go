package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/snapctl/snapctl/manifest"
)

// maxStdin bounds what is read from standard input: far more than the JSON of
// a hundred thousand snapshots.
const maxStdin = 256 << 20

// about says which reference has no snapshot, where no repository could say so.
func about(ref string, err error) error {
	if errors.Is(err, errNothingYet) {
		return fmt.Errorf("snapshot %s: %w", quoted(ref), err)
	}
	return err
}

// ref is the reference that an argument stands for: itself, or for "-" the one
// on standard input.
func (a *app) ref(cmd *cobra.Command, arg string) (string, error) {
	refs, err := a.refs(cmd, []string{arg})
	if err != nil {
		return "", err
	}
	if len(refs) != 1 {
		return "", usagef(cmd, "%s: %d references on standard input instead of one", cmd.Name(), len(refs))
	}
	return refs[0], nil
}

// refs is the references that arguments stand for.
func (a *app) refs(cmd *cobra.Command, args []string) ([]string, error) {
	var all []string
	for _, arg := range args {
		switch arg {
		case "":
			return nil, usagef(cmd, "%s: a REF is empty", cmd.Name())
		case "-":
			data, err := a.readStdin(cmd.Context())
			if err != nil {
				return nil, fmt.Errorf("%s: reading standard input: %w", cmd.Name(), err)
			}
			refs, err := parseRefs(data)
			if err != nil {
				return nil, usagef(cmd, "%s: standard input: %w", cmd.Name(), err)
			}
			all = append(all, refs...)
		default:
			all = append(all, arg)
		}
	}
	return all, nil
}

// readStdin reads standard input to its end, or until the context ends: nobody
// may ever write to it.
func (a *app) readStdin(ctx context.Context) ([]byte, error) {
	type result struct {
		data []byte
		err  error
	}
	done := make(chan result, 1)
	go func() {
		data, err := io.ReadAll(io.LimitReader(a.stdin, maxStdin+1))
		if len(data) > maxStdin {
			err = errors.New("too long")
		}
		done <- result{data, err}
	}()
	select {
	case r := <-done:
		return r.data, r.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// parseRefs parses references one a line, or JSON: objects with an id, which
// is all that is looked at, or arrays of them.
func parseRefs(data []byte) ([]string, error) {
	refs := []string{}
	some := false
	for {
		data = bytes.TrimSpace(data)
		if len(data) == 0 {
			break
		}
		some = true
		if data[0] == '{' || data[0] == '[' {
			dec := json.NewDecoder(bytes.NewReader(data))
			ids, err := decodeHandles(dec, data[0] == '[')
			if err != nil {
				return nil, err
			}
			refs = append(refs, ids...)
			data = data[dec.InputOffset():]
			continue
		}
		line, rest, _ := bytes.Cut(data, []byte("\n"))
		refs = append(refs, string(bytes.TrimSpace(line)))
		data = rest
	}
	if !some {
		return nil, errors.New("no reference")
	}
	return refs, nil
}

// decodeHandles decodes a handle, or an array of handles, to their ids.
func decodeHandles(dec *json.Decoder, array bool) ([]string, error) {
	type handle struct {
		ID *manifest.ID `json:"id"`
	}
	var handles []handle
	var err error
	if array {
		err = dec.Decode(&handles)
	} else {
		handles = make([]handle, 1)
		err = dec.Decode(&handles[0])
	}
	if err != nil {
		return nil, fmt.Errorf("not the JSON of a snapshot: %w", err)
	}
	var ids []string
	for _, h := range handles {
		if h.ID == nil {
			return nil, errors.New(`not the JSON of a snapshot: no "id"`)
		}
		ids = append(ids, h.ID.String())
	}
	return ids, nil
}
