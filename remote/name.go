package remote

import (
	"errors"
	"fmt"
	"strings"
)

// An Op is one of the store's methods, as [Counts] and [OpError] tell them apart.
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

// An OpError is what every store's errors are wrapped in: what was being done, and to
// which object. [Op.Wrap] makes it.
type OpError struct {
	Op   Op
	Name string // of the object, or the prefix of a list
	Err  error
}

// Error names the operation and the object, and gives Err's text.
func (e *OpError) Error() string { return e.Op.String() + " " + e.Name + ": " + e.Err.Error() }

// Unwrap gives Err.
func (e *OpError) Unwrap() error { return e.Err }

// Wrap returns err as an [OpError] of the operation on an object, and nil for nil.
func (op Op) Wrap(name string, err error) error {
	if err == nil {
		return nil
	}
	if op == OpList && name == "" {
		name = "objects"
	}
	return &OpError{op, name, err}
}

// tmpDir is where [File] writes what is not yet an object; no object of any
// store may lie there.
const tmpDir = "tmp"

var errName = errors.New("not a valid object name")

// CheckName refuses what is not [0-9a-z-]+ with '/' between, as every [Store] does with
// the names that it is given. Names become paths, so this is also what keeps them inside
// the directory of a [File].
func CheckName(name string) error {
	if name == "" || name == tmpDir || strings.HasSuffix(name, "/") || !validPrefix(name) {
		return fmt.Errorf("%q: %w", name, errName)
	}
	return nil
}

// CheckPrefix is [CheckName] for a list's prefix, which may be empty or end
// anywhere. An invalid one would match nothing, and so look like an empty store.
func CheckPrefix(prefix string) error {
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
