// Package remotetest is how object stores, and what uses them, are tested. [Run] is
// what every [remote.Store] must pass, [StartVersityGW] a real S3 server to run it
// against, and [StartStrictR2] a proxy before that server which keeps to R2's rules
// and makes trouble on request. [Memory] is a store in memory, and [Faulty] one whose
// operations fail as a test wants it.
package remotetest
