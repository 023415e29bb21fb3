// Package remote is where repositories keep their objects: a local folder
// ([OpenFile]), or S3 and R2 ([OpenS3]), both behind [Store]. [Open] takes a URL
// and gives the store with retries.
//
// Retrying ([Retry]) and counting ([Counter]) are decorators of the same interface,
// as is the disk cache in package diskcache. Package remotetest has stores for tests,
// and the suite that every store must pass. The package knows nothing of snapshots.
package remote

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Errors that callers branch on; they are wrapped with the object's name and
// what was being done.
var (
	// ErrNotExist: there is no object of that name.
	ErrNotExist = errors.New("object does not exist")
	// ErrExist: Put found an object of that name with other content.
	ErrExist = errors.New("object exists already with other content")
	// ErrShort: the object ends before the range that was asked for.
	ErrShort = errors.New("object is shorter than expected")
	// ErrLarge: the object is larger than any that Get makes room for.
	ErrLarge = errors.New("object is larger than any that is read whole")
	// ErrAccess: the credentials are missing, wrong, or not allowed to do this.
	ErrAccess = errors.New("access denied")
	// ErrNoBucket: the bucket, or the folder's parent, does not exist.
	ErrNoBucket = errors.New("bucket does not exist")
	// ErrClock: this machine's clock is too far off for the server.
	ErrClock = errors.New("the clock of this machine is wrong")
)

// A Store holds immutable objects by name. Names are relative paths of
// components [0-9a-z-]+ with '/' between them, the first of which is not tmp;
// no object's name is another's folder. All methods are safe for
// parallel use, and honour the cancellation of their context.
type Store interface {
	// Put makes an object, which is durable when Put returns. It never
	// overwrites: if there is one of that name with the same content, that is
	// success; with other content, ErrExist. data is not kept nor changed.
	Put(ctx context.Context, name string, data []byte) error
	// Get gives an object's whole content. It fails with ErrLarge for more than MaxGet bytes.
	Get(ctx context.Context, name string) ([]byte, error)
	// ReadAt fills p with the object's bytes from offset on, or fails: with
	// ErrShort where the object ends before. An empty p asks for nothing, not
	// even whether the object exists.
	ReadAt(ctx context.Context, name string, offset int64, p []byte) error
	// List calls yield for every object whose name begins with prefix, in byte
	// order of the names. It returns yield's error, and it returns nil only
	// when the list was complete.
	List(ctx context.Context, prefix string, yield func(Info) error) error
	// Stat tells an object's size and time.
	Stat(ctx context.Context, name string) (Info, error)
	// Delete removes objects. Names that do not exist are no error. It tries
	// all of them, and joins the errors.
	Delete(ctx context.Context, names ...string) error
}

// A Replacer is a Store that can also overwrite an object: for leases, which
// are refreshed, and for nothing else.
type Replacer interface {
	Replace(ctx context.Context, name string, data []byte) error
}

// Info describes an object.
type Info struct {
	Name    string
	Size    int64
	ModTime time.Time // by the store's clock, not this machine's
}

// MaxGet bounds what Get makes room for, in bytes: what a file that is one hole, or a
// server, says of an object's size must not take all memory.
const MaxGet = 256 << 20

// room is memory for an object of that size.
func room(size int64) ([]byte, error) {
	if size > MaxGet {
		return nil, fmt.Errorf("%w: %d bytes, the most is %d", ErrLarge, size, int64(MaxGet))
	}
	return make([]byte, size), nil
}
