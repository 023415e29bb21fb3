package remote

import (
	"errors"
	"fmt"
	"strings"
)

// An Op is one of the store's methods, as [Faulty] and [Counts] tell them apart.
type Op int

// The operations, in the order in which [Counts] are printed.
const (
	OpPut Op = iota
	OpGet
	OpReadAt
	OpList
	OpStat
	OpDelete
	OpReplace
	OpLifecycle // its name is "rules"
	numOps
)

var opNames = [numOps]string{"put", "get", "read", "list", "stat", "delete", "replace", "lifecycle"}

// String gives the operation's name in lower case, as in "put".
func (op Op) String() string { return opNames[op] }

// opError is what every store's errors are wrapped in: what was being done,
// and to which object.
type opError struct {
	op   Op
	name string
	err  error
}

func (e *opError) Error() string { return e.op.String() + " " + e.name + ": " + e.err.Error() }
func (e *opError) Unwrap() error { return e.err }

func wrap(op Op, name string, err error) error {
	if err == nil {
		return nil
	}
	if op == OpList && name == "" {
		name = "objects"
	}
	return &opError{op, name, err}
}

// tmpDir is where [File] writes what is not yet an object; no object of any
// store may lie there.
const tmpDir = "tmp"

var errName = errors.New("not a valid object name")

// checkName refuses what is not [0-9a-z-]+ with '/' between: names become
// paths, so this is also what keeps them inside the store's folder.
func checkName(name string) error {
	if name == "" || name == tmpDir || strings.HasSuffix(name, "/") || !validPrefix(name) {
		return fmt.Errorf("%q: %w", name, errName)
	}
	return nil
}

// checkPrefix is checkName for a list's prefix, which may be empty or end
// anywhere. An invalid one would match nothing, and so look like an empty store.
func checkPrefix(prefix string) error {
	if !validPrefix(prefix) {
		return fmt.Errorf("%q: %w", prefix, errName)
	}
	return nil
}

func validPrefix(s string) bool {
	last := byte('/')
	for i := range len(s) {
		c := s[i]
		switch {
		case '0' <= c && c <= '9', 'a' <= c && c <= 'z', c == '-':
		case c == '/' && last != '/':
		default:
			return false
		}
		last = c
	}
	return !strings.HasPrefix(s, tmpDir+"/")
}
