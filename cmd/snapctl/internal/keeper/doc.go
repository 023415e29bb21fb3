// Package keeper has mounts outlive the process that serves them.
//
// A keeper is a small process beside one that serves a mount in the background. It
// holds copies of the server's descriptors, above all of /dev/fuse: so the kernel
// does not end the mount when the server dies, and readers wait. The keeper then
// starts another server, which takes over (engine.Repository.TakeOver).
//
// The server starts the keeper, when it serves, which costs the mount nothing but
// that; the servers that follow are children of the keeper. A server whose keeper dies
// starts another (Server.watch): so the two watch each other. They talk through a
// socket, of which each side sees that the other is gone:
//
//	r  the first keeper is ready for signals
//	k  message and descriptors: what the next server needs, from the server and to it
//	e  the server is about to end, and is not to be replaced
//
// What is on its way through the socket is not lost when a process dies.
//
// This is the same program, so that a server that takes over speaks to the kernel
// as the first one did, also if the file of the program was replaced meanwhile.
//
// Run is the keeper. A server has itself kept with Server.Keep, and one that takes over
// with Handed.Keep.
package keeper
