// Package doctor tries what mounts and forks need of a machine, each for real but in a place
// of its own, and says what to do about what does not work. Machine.Checks is where to start.
package doctor
