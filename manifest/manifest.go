package manifest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/chunk/wire"
	"github.com/zeebo/blake3"
)

// A manifest object, all numbers little-endian:
//
//	offset  size  field
//	0       8     magic "snapmani"
//	8       1     format version, 1
//	9       7     zero
//	16      4     stored length of the info, i
//	20      4     plaintext length of the info
//	24      4     stored length of the tree, t
//	28      4     plaintext length of the tree
//	32      i     info, stored like a frame: see appendInfo
//	32+i    32    BLAKE3-256 of all before
//	64+i    t     tree, stored like a frame: see appendTree
//	64+i+t  32    BLAKE3-256 of all before
//
// Where they are sealed the tree is with the BLAKE3-256 of the stored info, so that
// the two stay together.
//
// So that a listing can read the head alone, and a mount all in one request.
const (
	magic      = "snapmani"
	version    = 1
	headerSize = 32
	sumSize    = 32

	// MaxInfo bounds the info in bytes, and HeadSize is enough to hold header
	// and info of nearly every manifest: what a listing fetches of each.
	MaxInfo  = 1 << 20
	HeadSize = 4 << 10

	// MaxManifest is the longest manifest in bytes: a bound for decoders.
	MaxManifest = headerSize + MaxInfo + sumSize + chunk.MaxFrame + sumSize + 2*chunk.MaxOverhead
)

// Bounds of what people give.
const (
	MaxLabel = 256 // bytes of a name, a tag's key or value
	MaxTags  = 256
)

// Info is what a manifest says of its snapshot as a whole.
type Info struct {
	ID      ID
	Parent  ID // zero for none
	Created time.Time
	Expires time.Time // zero for never
	Dir     string    // the absolute path of the directory
	Name    string    // "" for none
	Tags    map[string]string
	Host    string
	User    string
	Version string // of the program

	Entries     uint64 // of the tree
	Files       uint64 // entries that are no directories
	Bytes       uint64 // sum of the files' sizes, hard links once
	NewBytes    uint64 // of contents that were not in the repository
	StoredBytes uint64 // what that took, tree pages included
	Skipped     uint64 // sockets
	Unreadable  uint64 // entries that could not be read, or not consistently
	Xattrs      bool   // some entry has extended attributes
	HardLinks   bool   // some entry is a Link
}

// Incomplete reports whether something that was asked for is missing.
func (i *Info) Incomplete() bool { return i.Unreadable > 0 }

// PackUse is a pack that a snapshot refers to.
type PackUse struct {
	ID    chunk.PackID
	Bytes uint64 // of plaintext that are referred to; what is referred to twice counts twice
}

// A Manifest is the object that is a snapshot.
type Manifest struct {
	Info
	Root  []byte    // the root page of the tree
	Packs []PackUse // sorted by id: every pack that the tree refers to
}

// Digest identifies the whole tree: BLAKE3-256 of the root page, which names
// the other pages by theirs.
func (m *Manifest) Digest() [32]byte { return blake3.Sum256(m.Root) }

// CheckLabel reports a name or tag that cannot be kept: too long, empty, not
// UTF-8, or with control characters.
func CheckLabel(s string) error {
	switch {
	case s == "":
		return errors.New("is empty")
	case len(s) > MaxLabel:
		return fmt.Errorf("has %d bytes, the most is %d", len(s), MaxLabel)
	case !utf8.ValidString(s):
		return errors.New("is not UTF-8")
	case strings.ContainsFunc(s, unicode.IsControl):
		return errors.New("holds a control character")
	}
	return nil
}

// Encode gives the object's bytes. It fails for what Decode would refuse.
func (m *Manifest) Encode(c *chunk.Codec) ([]byte, error) {
	info := m.Info.append(nil)
	tree := m.appendTree(nil)
	if len(info) > MaxInfo || len(tree) > chunk.MaxFrame {
		return nil, fmt.Errorf("manifest with %d bytes of info and %d of tree is too large", len(info), len(tree))
	}
	if _, err := decodeInfo(info); err != nil {
		return nil, err
	}
	if err := (&Manifest{Info: m.Info}).decodeTree(tree); err != nil {
		return nil, err
	}
	storedInfo := c.For(chunk.UseManifestInfo, nil).Encode(nil, info)
	storedTree := treeCodec(c, storedInfo).Encode(nil, tree)
	b := append(make([]byte, 0, headerSize+len(storedInfo)+len(storedTree)+2*sumSize), magic...)
	b = append(b, version, 0, 0, 0, 0, 0, 0, 0)
	for _, n := range []int{len(storedInfo), len(info), len(storedTree), len(tree)} {
		b = binary.LittleEndian.AppendUint32(b, uint32(n))
	}
	b = append(b, storedInfo...)
	b = appendSum(b)
	b = append(b, storedTree...)
	return appendSum(b), nil
}

// treeCodec is the codec for the tree that goes with an info.
func treeCodec(c *chunk.Codec, storedInfo []byte) *chunk.Codec {
	sum := blake3.Sum256(storedInfo)
	return c.For(chunk.UseManifestTree, sum[:])
}

func appendSum(b []byte) []byte {
	sum := blake3.Sum256(b)
	return append(b, sum[:]...)
}

// header is the decoded first bytes.
type header struct{ storedInfo, info, storedTree, tree int }

func (h header) headLen() int { return headerSize + h.storedInfo + sumSize }
func (h header) size() int    { return h.headLen() + h.storedTree + sumSize }

func decodeHeader(b []byte) (h header, err error) {
	if len(b) < headerSize || string(b[:8]) != magic {
		return h, fmt.Errorf("%w: no manifest", ErrDamaged)
	}
	if b[8] != version {
		return h, fmt.Errorf("%w: manifest of version %d, this program knows %d", ErrDamaged, b[8], version)
	}
	if !bytes.Equal(b[9:16], make([]byte, 7)) {
		return h, fmt.Errorf("%w: manifest header", ErrDamaged)
	}
	at := func(off int) int { return int(binary.LittleEndian.Uint32(b[off:])) }
	h = header{at(16), at(20), at(24), at(28)}
	if h.storedInfo > MaxInfo+chunk.MaxOverhead || h.info > MaxInfo || h.storedTree > chunk.MaxFrame+chunk.MaxOverhead || h.tree > chunk.MaxFrame {
		return h, fmt.Errorf("%w: manifest header: lengths out of bounds", ErrDamaged)
	}
	return h, nil
}

func checkSum(b []byte, end int) error {
	if len(b) < end+sumSize {
		return fmt.Errorf("%w: manifest of %d bytes is cut short", ErrDamaged, len(b))
	}
	if sum := blake3.Sum256(b[:end]); !bytes.Equal(sum[:], b[end:end+sumSize]) {
		return fmt.Errorf("%w: checksum of the manifest does not match", ErrDamaged)
	}
	return nil
}

// CheckObject reports bytes that are no manifest, or not a whole one, by its lengths and
// checksum alone.
func CheckObject(b []byte) error {
	h, err := decodeHeader(b)
	if err != nil {
		return err
	}
	if len(b) != h.size() {
		return fmt.Errorf("%w: manifest of %d bytes, %d expected", ErrDamaged, len(b), h.size())
	}
	return checkSum(b, len(b)-sumSize)
}

// HeadLen tells from the first 32 bytes of a manifest or more how many bytes
// [DecodeHead] needs.
func HeadLen(b []byte) (int, error) {
	h, err := decodeHeader(b)
	return h.headLen(), err
}

// DecodeHead decodes the info from the first bytes of a manifest, as many as
// [HeadLen] told or more.
func DecodeHead(c *chunk.Codec, b []byte) (*Info, error) {
	h, err := decodeHeader(b)
	if err != nil {
		return nil, err
	}
	if err := checkSum(b, headerSize+h.storedInfo); err != nil {
		return nil, err
	}
	raw, err := c.For(chunk.UseManifestInfo, nil).Decode(nil, b[headerSize:headerSize+h.storedInfo], h.info)
	if err != nil {
		return nil, fmt.Errorf("%w: manifest info: %w", ErrDamaged, err)
	}
	return decodeInfo(raw)
}

// Decode decodes a manifest.
func Decode(c *chunk.Codec, b []byte) (*Manifest, error) {
	info, err := DecodeHead(c, b)
	if err != nil {
		return nil, err
	}
	h, err := decodeHeader(b)
	if err != nil {
		return nil, err
	}
	if err := CheckObject(b); err != nil {
		return nil, err
	}
	raw, err := treeCodec(c, b[headerSize:headerSize+h.storedInfo]).Decode(nil, b[h.headLen():h.headLen()+h.storedTree], h.tree)
	if err != nil {
		return nil, fmt.Errorf("%w: manifest tree: %w", ErrDamaged, err)
	}
	m := &Manifest{Info: *info}
	return m, m.decodeTree(raw)
}

// append appends the encoding of the info:
//
//	id, parent       16 bytes each
//	created          seconds varint (zigzag), nanoseconds uvarint
//	expires          the same; 0, 0 for never
//	directory, name, host, user, version   length-prefixed
//	tags             number, then key and value, length-prefixed, sorted by key
//	entries, files, bytes, new bytes, stored bytes, skipped, unreadable   uvarints
//	flags            byte: 1 some entry has extended attributes, 2 some is a hard link
func (i *Info) append(b []byte) []byte {
	b = append(append(b, i.ID[:]...), i.Parent[:]...)
	b = appendTime(b, i.Created)
	b = appendTime(b, i.Expires)
	for _, s := range []string{i.Dir, i.Name, i.Host, i.User, i.Version} {
		b = wire.AppendBytes(b, s)
	}
	b = binary.AppendUvarint(b, uint64(len(i.Tags)))
	keys := make([]string, 0, len(i.Tags))
	for k := range i.Tags {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		b = wire.AppendBytes(wire.AppendBytes(b, k), i.Tags[k])
	}
	for _, n := range []uint64{i.Entries, i.Files, i.Bytes, i.NewBytes, i.StoredBytes, i.Skipped, i.Unreadable} {
		b = binary.AppendUvarint(b, n)
	}
	var flags byte
	if i.Xattrs {
		flags |= hasXattrs
	}
	if i.HardLinks {
		flags |= hasLinks
	}
	return append(b, flags)
}

func appendTime(b []byte, t time.Time) []byte {
	var sec int64
	var nsec int
	if !t.IsZero() {
		sec, nsec = t.Unix(), t.Nanosecond()
	}
	return binary.AppendUvarint(binary.AppendVarint(b, sec), uint64(nsec))
}

func readTime(r *wire.Reader) time.Time {
	u := r.Uvarint("seconds", 1<<40)
	nsec := r.Uvarint("nanoseconds", 1e9-1)
	if u == 0 && nsec == 0 {
		return time.Time{}
	}
	return time.Unix(int64(u>>1)^-int64(u&1), int64(nsec))
}

func decodeInfo(raw []byte) (*Info, error) {
	r := wire.NewReader(raw)
	i := &Info{}
	copy(i.ID[:], r.Fixed("id", len(i.ID)))
	copy(i.Parent[:], r.Fixed("parent", len(i.Parent)))
	for _, id := range []ID{i.ID, i.Parent} {
		if _, err := ParseID(id.String()); err != nil && (id == i.ID || !id.IsZero()) {
			r.Failf("%v", err)
		}
	}
	i.Created, i.Expires = readTime(r), readTime(r)
	i.Dir = string(r.Bytes("directory", MaxPath))
	for _, s := range []*string{&i.Name, &i.Host, &i.User, &i.Version} {
		if *s = string(r.Bytes("label", MaxLabel)); *s != "" {
			if err := CheckLabel(*s); err != nil {
				r.Failf("%q %v", *s, err)
			}
		}
	}
	last := ""
	for n := r.Uvarint("number of tags", MaxTags); n > 0 && r.Err() == nil; n-- {
		k, v := string(r.Bytes("tag", MaxLabel)), string(r.Bytes("tag value", MaxLabel))
		if i.Tags == nil {
			i.Tags = map[string]string{}
		}
		if err := CheckLabel(k); r.Err() == nil && err != nil {
			r.Failf("tag %q %v", k, err)
		}
		if err := CheckLabel(v); v != "" && err != nil {
			r.Failf("value %q of tag %q %v", v, k, err)
		}
		if k <= last {
			r.Failf("tags out of order")
		}
		i.Tags[k], last = v, k
	}
	for _, n := range []*uint64{&i.Entries, &i.Files, &i.Bytes, &i.NewBytes, &i.StoredBytes, &i.Skipped, &i.Unreadable} {
		*n = r.Uvarint("total", 1<<63-1)
	}
	flags := r.Byte("flags")
	if flags&^allFlags != 0 {
		r.Failf("unknown flags %#x", flags)
	}
	i.Xattrs, i.HardLinks = flags&hasXattrs != 0, flags&hasLinks != 0
	if err := i.checkCounts(); err != nil {
		r.Failf("%v", err)
	}
	if err := r.Close(); err != nil {
		return nil, fmt.Errorf("%w: manifest info: %w", ErrDamaged, err)
	}
	return i, nil
}

// checkCounts reports counts that no tree can have together: whoever reads them may make
// room for what they say.
func (i *Info) checkCounts() error {
	switch {
	case i.Entries > maxEntries:
		return fmt.Errorf("%d entries, the most is %d", i.Entries, uint64(maxEntries))
	case i.Files > 0 && i.Files >= i.Entries:
		return fmt.Errorf("%d files among %d entries, one of which is the root directory", i.Files, i.Entries)
	case i.Bytes > 0 && i.Files == 0:
		return fmt.Errorf("%d bytes in no file", i.Bytes)
	case i.HardLinks && i.Files == 0:
		return errors.New("hard links of no file")
	case i.Xattrs && i.Entries == 0:
		return errors.New("extended attributes of no entry")
	}
	return nil
}

// appendTree appends the encoding of root page and pack table:
//
//	id               16 bytes, that of the info: in an encrypted repository, where
//	                 info and tree are sealed each, no other tree can be put here
//	root page        length-prefixed
//	number of packs  uvarint; then for each, sorted by id
//	  id             32 bytes
//	  bytes          uvarint
func (m *Manifest) appendTree(b []byte) []byte {
	b = wire.AppendBytes(append(b, m.ID[:]...), m.Root)
	b = binary.AppendUvarint(b, uint64(len(m.Packs)))
	for _, p := range m.Packs {
		b = binary.AppendUvarint(append(b, p.ID[:]...), p.Bytes)
	}
	return b
}

func (m *Manifest) decodeTree(raw []byte) error {
	r := wire.NewReader(raw)
	if id := r.Fixed("id", len(m.ID)); string(id) != string(m.ID[:]) {
		r.Failf("tree of another snapshot")
	}
	m.Root = r.Bytes("root page", MaxPage)
	m.Packs = make([]PackUse, r.Count("number of packs", chunk.IDSize+1))
	rest := uint64(1<<63 - 1) // so that nobody who adds them up overflows
	for i := range m.Packs {
		p := &m.Packs[i]
		copy(p.ID[:], r.Fixed("pack id", chunk.IDSize))
		p.Bytes = r.Uvarint("bytes of a pack", rest)
		rest -= p.Bytes
		if i > 0 && bytes.Compare(m.Packs[i-1].ID[:], p.ID[:]) >= 0 {
			r.Failf("packs out of order")
		}
	}
	if err := r.Close(); err != nil {
		return fmt.Errorf("%w: manifest tree: %w", ErrDamaged, err)
	}
	return nil
}

// Tree reads the manifest's tree, and checks that the info tells the truth of it.
func (m *Manifest) Tree(src PageSource) (*Tree, error) {
	t, err := NewTree(m.Root, src)
	if err != nil {
		return nil, err
	}
	_, entries, flags := t.root.says()
	if entries != m.Entries || m.Xattrs != (flags&hasXattrs != 0) || m.HardLinks != (flags&hasLinks != 0) {
		return nil, fmt.Errorf("%w: manifest: the info does not tell of this tree", ErrDamaged)
	}
	return t, nil
}

// SetTree makes the root of a finished tree the manifest's.
func (m *Manifest) SetTree(root *Root) {
	m.Root, m.Entries, m.Xattrs, m.HardLinks = root.Page, root.Entries, root.Xattrs, root.HardLinks
	m.Packs = make([]PackUse, 0, len(root.Use))
	for id, n := range root.Use {
		m.Packs = append(m.Packs, PackUse{id, n})
	}
	slices.SortFunc(m.Packs, func(a, b PackUse) int { return bytes.Compare(a.ID[:], b.ID[:]) })
}
