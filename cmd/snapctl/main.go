// Snapctl takes snapshots of directories into a repository, deduplicated, and
// brings them back. It is a thin shell around package engine: main.go and
// run.go turn errors and signals into exit codes, root.go holds what all
// commands share, and each command has a file of its own, with a function that
// makes it and one that runs it. What a command needs are parts of app: streams
// (package ui), repositories, references, completions and secrets. Data goes to
// standard output, everything said to people to standard error.
package main

import "os"

// Set by releases: -ldflags "-X main.version=v1.2.3 -X main.commit=... ".
var version, commit, commitTime string

func main() { os.Exit(run(processEnv(), os.Args[1:])) }
