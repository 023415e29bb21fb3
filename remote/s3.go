package remote

import (
	"bytes"
	"cmp"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// S3Config says where a bucket is. Bucket is required.
type S3Config struct {
	// Endpoint is the server, as in "https://host:port"; empty for AWS.
	Endpoint string
	// Region is what requests are signed for. Default us-east-1; of AWS, if
	// Credentials are looked for, what the profile says, if anything.
	Region string
	Bucket string
	// Prefix is put before the objects' names, with a slash between. May be empty.
	Prefix string
	// Place is how errors call the bucket. Default "s3://bucket/prefix".
	Place string
	// Credentials, if set, are used instead of those that are looked for, as
	// [Open] describes.
	Credentials Credentials
	// Parallel is how many requests there will be at once: so many connections
	// are kept open. Default 32.
	Parallel int
	// UserAgent names the program and its version, as in "snapctl/1.0".
	UserAgent string
	// Transport, if not nil, carries the requests, and Parallel does not matter.
	Transport http.RoundTripper
	// Count, if not nil, counts every request that is sent.
	Count *Counter
}

const (
	defaultRegion   = "us-east-1"
	defaultParallel = 32

	deleteBatch = 1000 // names in one request, S3's limit
)

// S3 is a [Store] in a bucket of S3, R2, or a server that speaks S3. Put, Get,
// ReadAt, Stat and a Delete of one name are one request each; a list is one
// for 1,000 objects, and a Delete of more names one for 1,000 names. It does
// not retry: see [Retry].
//
// It keeps to what R2 supports: conditional puts in one piece, no streaming
// signature, no checksum headers but Content-MD5.
type S3 struct {
	core    *minio.Core
	bucket  string
	prefix  string // ends in '/', or is empty
	place   string
	secure  bool
	reached atomic.Bool // the server has answered, so its name is right

	// What a request needs that minio does not make: see lifecycleRequest.
	creds     *credentials.Credentials
	transport http.RoundTripper
	region    string
	agent     string

	dates dates
}

var (
	_ Store    = (*S3)(nil)
	_ Replacer = (*S3)(nil)
	_ Resumer  = (*S3)(nil)
	_ Clock    = (*S3)(nil)
)

// OpenS3 gives the store in a bucket. It looks for credentials ([ErrAccess]
// when there are none), and sends the server no request. The bucket must
// exist: the first operation tells ([ErrNoBucket]).
func OpenS3(ctx context.Context, c S3Config) (*S3, error) {
	s := &S3{bucket: c.Bucket, place: c.Place, secure: true}
	if c.Prefix != "" {
		s.prefix = strings.Trim(c.Prefix, "/") + "/"
	}
	if s.place == "" {
		s.place = strings.TrimSuffix("s3://"+c.Bucket+"/"+s.prefix, "/")
	}
	fail := func(err error) (*S3, error) { return nil, fmt.Errorf("open %s: %w", s.place, err) }

	host, lookup := "s3.amazonaws.com", minio.BucketLookupAuto
	if c.Endpoint != "" {
		u, err := url.Parse(c.Endpoint)
		if err != nil || u.Host == "" || u.User != nil {
			return fail(errors.New("the endpoint is not a URL such as https://host:port"))
		}
		// Only AWS is known to have a name for every bucket.
		host, lookup, s.secure = u.Host, minio.BucketLookupPath, u.Scheme == "https"
	}
	from, err := c.findCredentials(ctx)
	if err != nil {
		return fail(err)
	}
	if c.Transport == nil {
		t, err := newTransport(c.Parallel)
		if err != nil {
			return fail(err)
		}
		c.Transport = t
	}
	if c.Count != nil {
		c.Transport = c.Count.transport(c.Transport)
	}
	creds := credentials.New(minioSource{from})
	s.creds, s.transport, s.region, s.agent = creds, roundTripper{c.Transport, &s.dates}, c.Region, c.UserAgent
	core, err := minio.NewCore(host, &minio.Options{
		Creds:        creds,
		Secure:       s.secure,
		Transport:    s.transport,
		Region:       c.Region,
		BucketLookup: lookup,
		MaxRetries:   1, // one attempt: minio's retries are too short, and would multiply with ours
	})
	if err != nil {
		return fail(err)
	}
	if name, version, ok := strings.Cut(c.UserAgent, "/"); ok {
		core.SetAppInfo(name, version)
	}
	s.core = core
	return s, nil
}

// findCredentials gives where the credentials come from, and sets the region. It is here,
// and not in the first operation's retries, that one learns that there are none.
func (c *S3Config) findCredentials(ctx context.Context) (source, error) {
	region := cmp.Or(c.Region, defaultRegion) // with none, minio would ask the server first
	if c.Credentials != (Credentials{}) {
		c.Region = region
		return c.Credentials, nil
	}
	of := region
	if c.Endpoint != "" {
		of = defaultRegion // those of other servers are none of AWS
	}
	done := make(chan error, 1)
	var found *awsChain
	go func() { // what it calls may not care that it is cancelled
		var err error
		found, err = findAWS(ctx, of)
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			return nil, err
		}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if c.Region == "" && c.Endpoint == "" {
		region = cmp.Or(found.region(), region)
	}
	c.Region = region
	return found, nil
}

// Put is [Store.Put]. If the server says that there is such an object, it is
// compared: a Put whose answer was lost finds its own.
func (s *S3) Put(ctx context.Context, name string, data []byte) error {
	answer, err := s.put(ctx, name, data, true)
	switch {
	case errors.Is(err, errPrecondition):
		err = s.compare(ctx, name, data)
	case Transient(err) && !answer.refused():
		// Servers that refuse a conditional put before they have read all of it
		// may close the connection, and the refusal is lost however often it is
		// tried: so ask what there is.
		if cerr := s.compare(ctx, name, data); cerr == nil || errors.Is(cerr, ErrExist) {
			err = cerr
		}
	}
	return OpPut.Wrap(name, err)
}

// Replace is [Replacer.Replace].
func (s *S3) Replace(ctx context.Context, name string, data []byte) error {
	_, err := s.put(ctx, name, data, false)
	return OpReplace.Wrap(name, err)
}

func (s *S3) put(ctx context.Context, name string, data []byte, once bool) (*answer, error) {
	if err := begin(ctx, name); err != nil {
		return nil, err
	}
	opts := minio.PutObjectOptions{
		// No STREAMING-AWS4-HMAC-SHA256-PAYLOAD on plain HTTP, which R2 refuses.
		DisableContentSha256: true,
	}
	if once {
		opts.SetMatchETagExcept("*") // If-None-Match
	}
	// The server checks one hash of what arrived. Without TLS that is the one
	// which is part of the signature, so that nobody on the way can change it.
	var sumMD5, sumSHA256 string
	if s.secure {
		sum := md5.Sum(data)
		sumMD5 = base64.StdEncoding.EncodeToString(sum[:])
	} else {
		sum := sha256.Sum256(data)
		sumSHA256 = hex.EncodeToString(sum[:])
	}
	ctx, answer := withAnswer(ctx)
	// Core.PutObject is always one request; Client.PutObject goes multipart
	// over 16 MiB, and then drops the condition.
	_, err := s.core.PutObject(ctx, s.bucket, s.prefix+name, bytes.NewReader(data), int64(len(data)), sumMD5, sumSHA256, opts)
	return answer, s.mapErr(ctx, answer, err)
}

// compare is Put's answer when there is an object of that name already.
func (s *S3) compare(ctx context.Context, name string, data []byte) error {
	info, err := s.stat(ctx, name)
	switch {
	case errors.Is(err, ErrNotExist):
		return &TransientError{Err: errors.New("the object was there, and then was not")}
	case err != nil:
		return err
	case info.Size != int64(len(data)):
		return ErrExist
	}
	// An ETag that is the content's MD5 saves the download; any other one
	// proves nothing, since some servers and encryptions use other ETags.
	if sum := md5.Sum(data); info.ETag == hex.EncodeToString(sum[:]) {
		return nil
	}
	old, err := s.get(ctx, name)
	if err != nil {
		return err
	}
	if !bytes.Equal(old, data) {
		return ErrExist
	}
	return nil
}

// Get is [Store.Get].
func (s *S3) Get(ctx context.Context, name string) ([]byte, error) {
	data, err := s.get(ctx, name)
	return data, OpGet.Wrap(name, err)
}

func (s *S3) get(ctx context.Context, name string) ([]byte, error) {
	if err := begin(ctx, name); err != nil {
		return nil, err
	}
	ctx, answer := withAnswer(ctx)
	body, info, _, err := s.core.GetObject(ctx, s.bucket, s.prefix+name, minio.GetObjectOptions{})
	if err != nil {
		return nil, s.mapErr(ctx, answer, err)
	}
	defer body.Close()
	if info.Size < 0 {
		return nil, &TransientError{Err: errors.New("the server did not tell the object's size")}
	}
	data, err := room(info.Size)
	if err != nil {
		return nil, err
	}
	if err := s.readBody(ctx, body, data); err != nil {
		return nil, err
	}
	return data, nil
}

// readBody fills p, which is as long as the answer promised.
func (s *S3) readBody(ctx context.Context, body io.Reader, p []byte) error {
	n, err := io.ReadFull(body, p)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return &TransientError{Err: fmt.Errorf("the answer broke off after %d of %d bytes: %w", n, len(p), err)}
}

// ReadAt is [Store.ReadAt].
func (s *S3) ReadAt(ctx context.Context, name string, offset int64, p []byte) error {
	return OpReadAt.Wrap(name, s.readAt(ctx, name, offset, p))
}

func (s *S3) readAt(ctx context.Context, name string, offset int64, p []byte) error {
	if err := begin(ctx, name); err != nil {
		return err
	}
	if offset < 0 {
		return errNegative
	}
	if len(p) == 0 {
		return nil // no range can say this
	}
	var opts minio.GetObjectOptions
	if err := opts.SetRange(offset, offset+int64(len(p))-1); err != nil {
		return err
	}
	ctx, answer := withAnswer(ctx)
	body, info, header, err := s.core.GetObject(ctx, s.bucket, s.prefix+name, opts)
	if err != nil {
		return s.mapErr(ctx, answer, err)
	}
	defer body.Close()
	// A server (or a cache before it) that ignores the range answers with the
	// object's beginning.
	if got := header.Get("Content-Range"); !strings.HasPrefix(got, fmt.Sprintf("bytes %d-", offset)) {
		return fmt.Errorf("the server ignored the range that was asked for (Content-Range: %q)", got)
	}
	if info.Size >= 0 && info.Size < int64(len(p)) {
		return ErrShort
	}
	return s.readBody(ctx, body, p)
}

// Stat is [Store.Stat].
func (s *S3) Stat(ctx context.Context, name string) (Info, error) {
	info, err := s.stat(ctx, name)
	if err != nil {
		return Info{}, OpStat.Wrap(name, err)
	}
	return Info{Name: name, Size: info.Size, ModTime: info.LastModified}, nil
}

func (s *S3) stat(ctx context.Context, name string) (minio.ObjectInfo, error) {
	if err := begin(ctx, name); err != nil {
		return minio.ObjectInfo{}, err
	}
	rctx, answer := withAnswer(ctx)
	info, err := s.core.StatObject(rctx, s.bucket, s.prefix+name, minio.StatObjectOptions{})
	if err = s.mapErr(ctx, answer, err); err != nil && answer.refusedUnexplained() {
		if why := s.askWhy(ctx, name); why != nil && !errors.Is(why, ErrShort) { // of an empty object
			err = why
		}
	}
	return info, err
}

// askWhy gives the error of a request whose answer says why it is refused, as that of a
// HEAD cannot: it has no body. nil if that one is not refused.
func (s *S3) askWhy(ctx context.Context, name string) error {
	var opts minio.GetObjectOptions
	if err := opts.SetRange(0, 0); err != nil {
		return err
	}
	rctx, answer := withAnswer(ctx)
	body, _, _, err := s.core.GetObject(rctx, s.bucket, s.prefix+name, opts)
	if err != nil {
		return s.mapErr(ctx, answer, err)
	}
	body.Close()
	return nil
}

// List is [Store.List].
func (s *S3) List(ctx context.Context, prefix string, yield func(Info) error) error {
	return s.ListAfter(ctx, prefix, "", yield)
}

// ListAfter is [Resumer.ListAfter]. Objects whose names are not a [Store]'s
// are passed over: they are not ours.
func (s *S3) ListAfter(ctx context.Context, prefix, after string, yield func(Info) error) error {
	if err := errors.Join(ctx.Err(), CheckPrefix(prefix)); err != nil {
		return OpList.Wrap(prefix, err)
	}
	rctx, answer := withAnswer(ctx)
	opts := minio.ListObjectsOptions{Prefix: s.prefix + prefix, Recursive: true}
	if after != "" {
		opts.StartAfter = s.prefix + after
	}
	last := after
	for o := range s.core.ListObjectsIter(rctx, s.bucket, opts) {
		if o.Err != nil {
			return OpList.Wrap(prefix, s.mapErr(ctx, answer, o.Err))
		}
		name, ok := strings.CutPrefix(o.Key, s.prefix)
		if !ok || CheckName(name) != nil {
			continue
		}
		// Retry goes on behind the last name, and callers merge lists: a server
		// that does not sort would make them lose objects.
		if name <= last {
			return OpList.Wrap(prefix, fmt.Errorf("%s: the server's list is not sorted (%q after %q)", s.place, name, last))
		}
		last = name
		if err := yield(Info{Name: name, Size: o.Size, ModTime: o.LastModified}); err != nil {
			return err
		}
	}
	// The iterator ends without a word when its context does, and what it gave
	// then looks like the complete list.
	return OpList.Wrap(prefix, ctx.Err())
}

// Delete is [Store.Delete].
func (s *S3) Delete(ctx context.Context, names ...string) error {
	var errs []error
	valid := make([]string, 0, len(names))
	for _, name := range names {
		if err := begin(ctx, name); err != nil {
			errs = append(errs, OpDelete.Wrap(name, err))
		} else {
			valid = append(valid, name)
		}
	}
	if len(valid) == 1 { // no XML, and free of charge everywhere
		return errors.Join(append(errs, OpDelete.Wrap(valid[0], s.deleteOne(ctx, valid[0])))...)
	}
	for batch := range slices.Chunk(valid, deleteBatch) {
		errs = append(errs, s.deleteMany(ctx, batch)...)
	}
	return deleteErrors(errs)
}

func (s *S3) deleteOne(ctx context.Context, name string) error {
	ctx, answer := withAnswer(ctx)
	err := s.mapErr(ctx, answer, s.core.RemoveObject(ctx, s.bucket, s.prefix+name, minio.RemoveObjectOptions{}))
	if errors.Is(err, ErrNotExist) {
		return nil
	}
	return err
}

// deleteMany deletes at most deleteBatch names in one request.
func (s *S3) deleteMany(ctx context.Context, names []string) (errs []error) {
	rctx, answer := withAnswer(ctx)
	results, err := s.core.RemoveObjectsWithIter(rctx, s.bucket, func(yield func(minio.ObjectInfo) bool) {
		for _, name := range names {
			if !yield(minio.ObjectInfo{Key: s.prefix + name}) {
				return
			}
		}
	}, minio.RemoveObjectsOptions{})
	unheard := make(map[string]bool, len(names))
	for _, name := range names {
		unheard[name] = true
	}
	if err == nil {
		for r := range results {
			name := strings.TrimPrefix(r.ObjectName, s.prefix)
			err := s.mapErr(ctx, answer, r.Err)
			if err == nil || errors.Is(err, ErrNotExist) {
				delete(unheard, name)
			} else if unheard[name] {
				delete(unheard, name)
				errs = append(errs, OpDelete.Wrap(name, err))
			}
		}
	}
	// minio drops some errors, and stops at the first answer that it cannot
	// read: what the server did not say is deleted may be there still.
	for _, name := range names {
		if !unheard[name] {
			continue
		}
		err := s.mapErr(ctx, answer, err)
		if err == nil {
			err = &TransientError{Err: errors.New("the server did not say that it is deleted")}
		}
		errs = append(errs, OpDelete.Wrap(name, err))
	}
	return errs
}
