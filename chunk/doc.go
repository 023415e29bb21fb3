// Package chunk is what snapshots are stored as: a [Splitter] cuts files into
// chunks, a [Hasher] names them, a [Codec] compresses runs of neighbouring
// chunks into frames, and a [PackBuilder] gathers frames into packs, the unit
// of upload. A [Location] says where a chunk lies.
//
// It knows nothing of trees, files or object stores.
package chunk
