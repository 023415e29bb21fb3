package chunk

import "fmt"

// DecodePack decodes the index of a pack that is there as a whole, and checks that
// header and index are of one pack. It does not look at the frames.
func DecodePack(c *Codec, pack []byte) (*PackIndex, error) {
	if len(pack) < PackHeaderSize+PackFooterSize || len(pack) > MaxPack {
		return nil, fmt.Errorf("%w: %d bytes", ErrNotPack, len(pack))
	}
	if string(pack[:len(packMagic)]) != packMagic {
		return nil, fmt.Errorf("%w: no header", ErrNotPack)
	}
	if v := pack[8]; v != packVersion {
		return nil, fmt.Errorf("%w: format version %d, this program knows %d", ErrNotPack, v, packVersion)
	}
	n, err := PackIndexSize(pack[len(pack)-PackFooterSize:])
	if err != nil {
		return nil, err
	}
	if n > len(pack) {
		return nil, fmt.Errorf("%w: an index of %d bytes in a pack of %d", ErrNotPack, n, len(pack))
	}
	x, err := DecodePackTail(c, pack[len(pack)-n:], int64(len(pack)))
	if err == nil && PackKind(pack[9]) != x.Kind {
		return nil, fmt.Errorf("%w: header of kind %d, index of kind %d", ErrNotPack, pack[9], x.Kind)
	}
	return x, err
}
