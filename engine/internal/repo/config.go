package repo

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/crypt"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/zeebo/blake3"
)

// ConfigName is the object that makes a place a repository. It is written once.
const ConfigName = "config"

// formatVersion is the version of all formats of a repository together.
const formatVersion = 1

// maxConfig bounds the config object in bytes.
const maxConfig = 64 << 10

// defaultGrace is how long garbage collection waits between announcing that it
// will delete a pack and deleting it. Writers must commit within half of it.
const defaultGrace = 24 * time.Hour

// Bounds of the grace. An object store may know times to the second only.
const (
	minGrace = 10 * time.Second
	maxGrace = 366 * 24 * time.Hour
)

// defaultCompression is the zstd level of new repositories.
const defaultCompression = 1

// Config is the config object: indented JSON, ending in a newline. The checksum
// is the BLAKE3-256 of the same JSON with an empty checksum.
type Config struct {
	Version     int               `json:"version"`
	ID          uuid.UUID         `json:"id"`
	CreatedAt   time.Time         `json:"createdAt"`
	Chunker     chunk.CDCParams   `json:"chunker"`
	Compression compressionConfig `json:"compression"`
	Encryption  *crypt.Config     `json:"encryption"` // null for none
	GCGrace     int64             `json:"gcGraceSeconds"`
	Checksum    string            `json:"checksum"`
}

type compressionConfig struct {
	Algorithm string `json:"algorithm"`
	Level     int    `json:"level"`
}

// NewConfig is the config of a new repository. It fails with ErrInvalid or ErrUnsupported where
// the options make no sense.
func NewConfig(o *snapshot.InitOptions) (*Config, error) {
	c := &Config{
		Version: formatVersion, ID: uuid.New(),
		Chunker:     chunk.DefaultCDCParams,
		Compression: compressionConfig{"zstd", defaultCompression},
		GCGrace:     int64(defaultGrace / time.Second),
	}
	if o != nil && o.Compression != 0 {
		c.Compression.Level = o.Compression
	}
	if o != nil && o.GCGrace != 0 {
		if o.GCGrace%time.Second != 0 {
			return nil, fmt.Errorf("%w: grace of %v is no number of seconds", snapshot.ErrInvalid, o.GCGrace)
		}
		c.GCGrace = int64(o.GCGrace / time.Second)
	}
	return c, c.check()
}

func (c *Config) check() error {
	switch {
	case c.Version != formatVersion:
		return fmt.Errorf("%w: format version %d, this program knows %d", snapshot.ErrUnsupported, c.Version, formatVersion)
	case c.Compression.Algorithm != "zstd":
		return fmt.Errorf("%w: compression %q", snapshot.ErrUnsupported, c.Compression.Algorithm)
	case c.Compression.Level < 1 || c.Compression.Level > 22:
		return fmt.Errorf("%w: compression level %d is not within 1 to 22", snapshot.ErrInvalid, c.Compression.Level)
	case c.GCGrace < int64(minGrace/time.Second) || c.GCGrace > int64(maxGrace/time.Second):
		return fmt.Errorf("%w: grace of %d seconds is not within %v to %v", snapshot.ErrInvalid, c.GCGrace, minGrace, maxGrace)
	}
	if c.Encryption != nil {
		return c.Encryption.Check()
	}
	return nil
}

// Encode gives the bytes of the config, with their checksum.
func (c Config) Encode() []byte {
	c.Checksum = ""
	sum := blake3.Sum256(c.json())
	c.Checksum = hex.EncodeToString(sum[:])
	return c.json()
}

func (c *Config) json() []byte {
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		panic(err) // plain fields always marshal
	}
	return append(b, '\n')
}

// DecodeConfig is the inverse of Config.Encode. It fails with ErrUnsupported for a newer
// version, and with ErrIntegrity for what is no config.
func DecodeConfig(b []byte) (*Config, error) {
	// The version first: what a newer version writes may not decode.
	var v struct {
		Version    int `json:"version"`
		Encryption *struct {
			Algorithm string `json:"algorithm"`
		} `json:"encryption"`
	}
	if len(b) > maxConfig {
		return nil, fmt.Errorf("%w: config of %d bytes", snapshot.ErrIntegrity, len(b))
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return nil, fmt.Errorf("%w: config: %w", snapshot.ErrIntegrity, err)
	}
	if v.Version > formatVersion {
		return nil, fmt.Errorf("%w: format version %d, this program knows %d", snapshot.ErrUnsupported, v.Version, formatVersion)
	}
	if v.Encryption != nil && v.Encryption.Algorithm != crypt.SealAlgorithm {
		return nil, fmt.Errorf("%w: encryption %q", snapshot.ErrUnsupported, v.Encryption.Algorithm)
	}
	c := &Config{}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(c); err != nil {
		return nil, fmt.Errorf("%w: config: %w", snapshot.ErrIntegrity, err)
	}
	if !bytes.Equal(c.Encode(), b) {
		return nil, fmt.Errorf("%w: config: checksum does not match", snapshot.ErrIntegrity)
	}
	return c, c.check()
}

// IsConfig reports whether a file is the config of a repository, of this version or a newer
// one. A damaged one is one too.
func IsConfig(b []byte) bool {
	var c struct {
		Version  int       `json:"version"`
		ID       uuid.UUID `json:"id"`
		Checksum string    `json:"checksum"`
	}
	if len(b) > maxConfig || json.Unmarshal(b, &c) != nil {
		return false
	}
	sum, err := hex.DecodeString(c.Checksum)
	return err == nil && len(sum) == 32 && c.Version > 0 && c.ID != uuid.Nil
}
