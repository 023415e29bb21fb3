// Package remotetest is how object stores are tested: [Run] is what every
// [remote.Store] must pass, [StartVersityGW] a real S3 server to run it
// against, and [StartStrictR2] a proxy before that server which keeps to R2's
// rules and makes trouble on request.
package remotetest
