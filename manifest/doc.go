// Package manifest is the tree of a snapshot and the object that holds it.
//
// A tree is a run of [Entry] values ordered by [Compare]: by the path of the
// directory that holds the entry, component by component, then by name. So the
// entries of a directory lie side by side, and so does a whole subtree. The run
// is cut into pages where the keys say so (a prolly tree), so that an edit
// changes one page per level and snapshots share the others. Pages are chunks
// in tree packs; the root page is inside the manifest object.
//
// An entry's rank is its place in the run. Rank 0 is the root directory itself.
//
// [Builder] makes a tree from entries in order; [Tree] reads one: by rank, by
// key, or in order. [Manifest] is the object: who made the snapshot and when
// ([Info]), the root page, and the table of packs that it needs.
package manifest
