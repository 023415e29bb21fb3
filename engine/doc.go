// Package engine makes, lists, restores, mounts, forks and removes snapshots of
// directories.
//
// [Open] a [Repository], or [Init] a new one; then [Repository.Create],
// [Repository.List], [Repository.Restore], [Repository.Mount]. [Repository.Fork] gives
// a writable directory of a snapshot, [Repository.FS] an io/fs.FS, and
// [Repository.Diff] what differs between two. [Repository.Change] changes names, tags
// and expiry, [Repository.Prune] removes what no rule keeps, and [Repository.GC] frees
// what no snapshot needs. [Repository.Verify] looks for damage, [Repository.Repair] mends
// it, and [Repository.Usage] counts what there is. [Mounts], [Unmount] and [Forks] need no
// repository. A Repository is safe for parallel use, and there is no global state: one
// process can have several.
//
// With [InitOptions.Keys] a repository is encrypted; [Options.Passphrase] or
// [Options.Identities] open it.
//
// What is on disk and why it is safe is told in ARCHITECTURE.md.
package engine
