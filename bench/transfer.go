package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"golang.org/x/sync/errgroup"
)

// Images go up and down in parts of this size, so many at once.
const (
	partSize = 16 << 20
	parallel = 8
)

// A bucket is where a tool keeps its vault, and how it gets there.
type bucket struct {
	endpoint       string // http://host:port
	name, prefix   string // the prefix ends in '/'
	region         string
	access, secret string
}

// folder is a part of the bucket.
func (b bucket) folder(name string) bucket {
	b.prefix += name + "/"
	return b
}

// credentials are the environment variables that every S3 client reads.
func (b bucket) credentials() []string {
	return []string{"AWS_ACCESS_KEY_ID=" + b.access, "AWS_SECRET_ACCESS_KEY=" + b.secret, "AWS_DEFAULT_REGION=" + b.region}
}

func s3Client(endpoint string, creds *credentials.Credentials) (*minio.Core, error) {
	u, err := url.Parse(endpoint)
	if err != nil {
		return nil, err
	}
	return minio.NewCore(u.Host, &minio.Options{Creds: creds, Region: "us-east-1", BucketLookup: minio.BucketLookupPath})
}

// transferArgs are ENDPOINT BUCKET KEY FILE.
func transferArgs(args []string) (c *minio.Core, bucket, key, file string, err error) {
	if len(args) != 4 {
		return nil, "", "", "", errors.New("want ENDPOINT BUCKET KEY FILE")
	}
	c, err = s3Client(args[0], credentials.NewEnvAWS())
	return c, args[1], args[2], args[3], err
}

func upload(ctx context.Context, args []string) error {
	c, bucket, key, file, err := transferArgs(args)
	if err != nil {
		return err
	}
	_, err = c.FPutObject(ctx, bucket, key, file, minio.PutObjectOptions{
		PartSize: partSize, NumThreads: parallel, DisableContentSha256: true,
	})
	return err
}

func download(ctx context.Context, args []string) (err error) {
	c, bucket, key, file, err := transferArgs(args)
	if err != nil {
		return err
	}
	info, err := c.StatObject(ctx, bucket, key, minio.StatObjectOptions{})
	if err != nil {
		return err
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for offset := int64(0); offset < info.Size; offset += partSize {
		g.Go(func() error {
			var opts minio.GetObjectOptions
			want := min(partSize, info.Size-offset)
			if err := opts.SetRange(offset, offset+want-1); err != nil {
				return err
			}
			body, _, _, err := c.GetObject(ctx, bucket, key, opts)
			if err != nil {
				return err
			}
			defer body.Close()
			n, err := io.Copy(io.NewOffsetWriter(f, offset), body)
			if err == nil && n != want {
				err = fmt.Errorf("got %d bytes of %d at %d", n, want, offset)
			}
			return err
		})
	}
	return g.Wait()
}
