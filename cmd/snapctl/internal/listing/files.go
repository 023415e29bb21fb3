// Package listing prints files and changes of snapshots one by one: as text for people and
// for other programs, or as JSON. NewFiles and NewChanges are where to start.
package listing

import (
	"bufio"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
	"github.com/snapctl/snapctl/engine"
)

// fileOutput is what ls and find print of a file with --json.
type fileOutput struct {
	Snapshot    string   `json:"snapshot,omitempty"` // where several are searched
	Path        string   `json:"path"`               // from the root of the snapshot
	PathBytes   []byte   `json:"pathBytes,omitempty"`
	Type        string   `json:"type"`
	Mode        string   `json:"mode"`
	UID         uint32   `json:"uid"`
	GID         uint32   `json:"gid"`
	Size        int64    `json:"size"`
	Mtime       string   `json:"mtime"`
	Links       uint32   `json:"links"`
	Inode       uint64   `json:"inode"`
	Target      string   `json:"target,omitempty"`
	TargetBytes []byte   `json:"targetBytes,omitempty"`
	Device      string   `json:"device,omitempty"`
	Xattrs      []string `json:"xattrs,omitempty"`
}

// FileFields describes fileOutput in a command's help.
const FileFields = `path (from the root of the snapshot), type (file, directory, symlink, fifo,
character device or block device), mode (octal), uid, gid, size, mtime, links,
inode (the same for all names of a file), target of a symlink, device
(major:minor), and xattrs, their names. A path or target that is not UTF-8 is
also there as pathBytes or targetBytes, in base64`

// Files prints files one by one.
type Files struct {
	json, long bool
	end        string // of a name
	terminal   bool
	out        *bufio.Writer
	n          int
}

// NewFiles gives a printer to standard output: of names, or with long of more. null ends each name with a NUL.
func NewFiles(s *ui.Streams, long, null bool) *Files {
	l := &Files{json: s.JSON, long: long, end: "\n", terminal: s.Out.Terminal(), out: bufio.NewWriterSize(s.Out, 64<<10)}
	if null {
		l.end = "\x00"
	}
	return l
}

// Print prints a file under a name. snapshot is its id, where there are several.
func (l *Files) Print(snapshot, name string, i *engine.FileInfo) error {
	l.n++
	if l.json {
		return l.printJSON(snapshot, i)
	}
	if snapshot != "" {
		name = snapshot + ":" + name
	}
	line := name + l.end
	switch {
	case l.long:
		line = l.longLine(name, i)
	case l.terminal && l.end == "\n":
		line = ui.Quoted(name) + l.end
	}
	_, err := l.out.WriteString(line)
	if err == nil && l.terminal {
		err = l.out.Flush()
	}
	return err
}

// Finish ends the output, whatever the error that ends it.
func (l *Files) Finish(err error) error {
	var werr error
	switch {
	case !l.json:
	case l.n > 0:
		_, werr = l.out.WriteString("]\n")
	case err == nil:
		_, werr = l.out.WriteString("[]\n")
	}
	if werr == nil {
		werr = l.out.Flush()
	}
	if werr != nil {
		return werr
	}
	return err
}

func (l *Files) longLine(name string, i *engine.FileInfo) string {
	a := i.Sys().(*engine.FileAttr)
	size := strconv.FormatInt(i.Size(), 10)
	if i.Mode()&fs.ModeDevice != 0 {
		size = deviceText(a)
	}
	when := i.ModTime().UTC().Format(time.RFC3339)
	if l.terminal {
		when = i.ModTime().Local().Format(time.DateTime)
	}
	line := fmt.Sprintf("%s %3d %5d %5d %10s %s  %s", modeText(i.Mode()), a.Links, a.UID, a.GID, size, when, ui.Quoted(name))
	if i.Type() == fs.ModeSymlink {
		line += " -> " + ui.Quoted(a.Target)
	}
	return line + l.end
}

func (l *Files) printJSON(snapshot string, i *engine.FileInfo) error {
	begin := ",\n"
	if l.n == 1 {
		begin = "["
	}
	text, err := ui.JSONLine(newFileOutput(snapshot, i))
	if err == nil {
		_, err = l.out.WriteString(begin + strings.TrimSuffix(text, "\n"))
	}
	return err
}

func newFileOutput(snapshot string, i *engine.FileInfo) *fileOutput {
	a := i.Sys().(*engine.FileAttr)
	f := &fileOutput{
		Snapshot: snapshot, Path: a.Path, PathBytes: bytesUnlessText(a.Path), Type: typeText(i.Mode()), Mode: fmt.Sprintf("%04o", permissions(i.Mode())),
		UID: a.UID, GID: a.GID, Size: i.Size(), Mtime: i.ModTime().UTC().Format(time.RFC3339Nano),
		Links: a.Links, Inode: a.Inode, Target: a.Target, TargetBytes: bytesUnlessText(a.Target),
	}
	if i.Mode()&fs.ModeDevice != 0 {
		f.Device = deviceText(a)
	}
	for _, x := range a.Xattrs {
		f.Xattrs = append(f.Xattrs, x.Name)
	}
	return f
}

// bytesUnlessText is what JSON cannot hold as a string, nil for what it can.
func bytesUnlessText(s string) []byte {
	if utf8.ValidString(s) {
		return nil
	}
	return []byte(s)
}

func deviceText(a *engine.FileAttr) string {
	return fmt.Sprintf("%d:%d", a.Device.Major, a.Device.Minor)
}

// A fileType is a type by the letter that ls -l begins with, the one that --type
// takes, and a word.
type fileType struct {
	letter, flag byte
	mode         fs.FileMode
	text         string
}

var fileTypes = []fileType{
	{'-', 'f', 0, "file"},
	{'d', 'd', fs.ModeDir, "directory"},
	{'l', 'l', fs.ModeSymlink, "symlink"},
	{'p', 'p', fs.ModeNamedPipe, "fifo"},
	{'c', 'c', fs.ModeDevice | fs.ModeCharDevice, "character device"},
	{'b', 'b', fs.ModeDevice, "block device"},
}

// TypeLetters are those that find --type takes.
const TypeLetters = "fdlpcb"

// HasType reports whether a file is of one of the types that letters name.
func HasType(m fs.FileMode, letters string) bool {
	return slices.ContainsFunc(fileTypes, func(t fileType) bool {
		return m.Type() == t.mode && strings.IndexByte(letters, t.flag) >= 0
	})
}

func typeText(m fs.FileMode) string {
	for _, t := range fileTypes {
		if m.Type() == t.mode {
			return t.text
		}
	}
	return "unknown"
}

func permissions(m fs.FileMode) uint32 {
	p := uint32(m.Perm())
	for i, bit := range []fs.FileMode{fs.ModeSticky, fs.ModeSetgid, fs.ModeSetuid} {
		if m&bit != 0 {
			p |= 0o1000 << i
		}
	}
	return p
}

// modeText is a mode as ls shows it: drwxr-sr-x.
func modeText(m fs.FileMode) string {
	b := []byte("?rwxrwxrwx")
	for _, t := range fileTypes {
		if m.Type() == t.mode {
			b[0] = t.letter
		}
	}
	for i := range 9 {
		if m&(0o400>>i) == 0 {
			b[1+i] = '-'
		}
	}
	for _, s := range []struct {
		mode fs.FileMode
		at   int
		with byte
	}{{fs.ModeSetuid, 3, 's'}, {fs.ModeSetgid, 6, 's'}, {fs.ModeSticky, 9, 't'}} {
		switch {
		case m&s.mode == 0:
		case b[s.at] == 'x':
			b[s.at] = s.with
		default:
			b[s.at] = s.with - 'a' + 'A'
		}
	}
	return string(b)
}
