package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
	"github.com/snapctl/snapctl/manifest"
)

// maxStdin bounds what is read from standard input: far more than the JSON of
// a hundred thousand snapshots.
const maxStdin = 256 << 20

// about says which reference has no snapshot, where no repository could say so.
func about(ref string, err error) error {
	if errors.Is(err, errNothingYet) {
		return fmt.Errorf("snapshot %s: %w", ui.Quoted(ref), err)
	}
	return err
}

// A handle is what is known of a snapshot without asking: a reference, and the directory
// that its JSON names, "" for none.
type handle struct{ ref, dir string }

// References are what the arguments of a command stand for: themselves, or what is on
// standard input.
type references struct{ stdin io.Reader }

// ref is the reference that an argument stands for: itself, or for "-" the one
// on standard input.
func (r *references) ref(cmd *cobra.Command, arg string) (string, error) {
	h, err := r.handle(cmd, arg)
	return h.ref, err
}

// handle is ref with the directory of a handle.
func (r *references) handle(cmd *cobra.Command, arg string) (handle, error) {
	all, err := r.handles(cmd, []string{arg})
	if err != nil {
		return handle{}, err
	}
	if len(all) != 1 {
		return handle{}, usagef(cmd, "%s: %d references on standard input instead of one", cmd.Name(), len(all))
	}
	return all[0], nil
}

// all is the references that arguments stand for.
func (r *references) all(cmd *cobra.Command, args []string) ([]string, error) {
	handles, err := r.handles(cmd, args)
	return refsOf(handles), err
}

func refsOf(handles []handle) (refs []string) {
	for _, h := range handles {
		refs = append(refs, h.ref)
	}
	return refs
}

func (r *references) handles(cmd *cobra.Command, args []string) ([]handle, error) {
	var all []handle
	for _, arg := range args {
		switch arg {
		case "":
			return nil, usagef(cmd, "%s: a REF is empty", cmd.Name())
		case "-":
			data, err := r.readStdin(cmd.Context())
			if err != nil {
				return nil, fmt.Errorf("%s: reading standard input: %w", cmd.Name(), err)
			}
			handles, err := parseHandles(data)
			if err != nil {
				return nil, usagef(cmd, "%s: standard input: %w", cmd.Name(), err)
			}
			all = append(all, handles...)
		default:
			h := handle{ref: arg}
			if strings.HasPrefix(arg, "{") {
				// What is wrong with it the engine says, as of any reference.
				if parsed, err := decodeHandles(json.NewDecoder(strings.NewReader(arg)), false); err == nil {
					h.dir = parsed[0].dir
				}
			}
			all = append(all, h)
		}
	}
	return all, nil
}

// readStdin reads standard input to its end, or until the context ends: nobody
// may ever write to it.
func (r *references) readStdin(ctx context.Context) ([]byte, error) {
	type result struct {
		data []byte
		err  error
	}
	done := make(chan result, 1)
	go func() {
		data, err := io.ReadAll(io.LimitReader(r.stdin, maxStdin+1))
		if len(data) > maxStdin {
			err = errors.New("too long")
		}
		done <- result{data, err}
	}()
	select {
	case got := <-done:
		return got.data, got.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// parseHandles parses references one a line, or JSON: objects with an id and maybe a dir,
// which is all that is looked at, or arrays of them.
func parseHandles(data []byte) ([]handle, error) {
	var all []handle
	some := false
	for {
		data = bytes.TrimSpace(data)
		if len(data) == 0 {
			break
		}
		some = true
		if data[0] == '{' || data[0] == '[' {
			dec := json.NewDecoder(bytes.NewReader(data))
			handles, err := decodeHandles(dec, data[0] == '[')
			if err != nil {
				return nil, err
			}
			all = append(all, handles...)
			data = data[dec.InputOffset():]
			continue
		}
		line, rest, _ := bytes.Cut(data, []byte("\n"))
		all = append(all, handle{ref: string(bytes.TrimSpace(line))})
		data = rest
	}
	if !some {
		return nil, errors.New("no reference")
	}
	return all, nil
}

// decodeHandles decodes a handle, or an array of handles.
func decodeHandles(dec *json.Decoder, array bool) ([]handle, error) {
	type object struct {
		ID  *manifest.ID `json:"id"`
		Dir any          `json:"dir"`
	}
	var objects []object
	var err error
	if array {
		err = dec.Decode(&objects)
	} else {
		objects = make([]object, 1)
		err = dec.Decode(&objects[0])
	}
	if err != nil {
		return nil, fmt.Errorf("not the JSON of a snapshot: %w", err)
	}
	var all []handle
	for _, o := range objects {
		if o.ID == nil {
			return nil, errors.New(`not the JSON of a snapshot: no "id"`)
		}
		h := handle{ref: o.ID.String()}
		// Bytes that JSON could not say are in the snapshot itself.
		if dir, _ := o.Dir.(string); filepath.IsAbs(dir) && !strings.ContainsRune(dir, utf8.RuneError) {
			h.dir = dir
		}
		all = append(all, h)
	}
	return all, nil
}
