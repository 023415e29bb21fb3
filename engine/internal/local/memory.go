package local

import "github.com/KimMachineGun/automemlimit/memlimit"

// usualMemory is the limit of a control group from which on a process in it uses as much
// memory as anywhere. A mount server that uses 128 MiB leaves as much to the keeper, to
// who reads, and to what the kernel keeps for them.
const usualMemory = 256 << 20

// MemoryShare tells how much of the memory that it would use elsewhere this process may
// use: 1, or less in a control group (version 1 or 2) that has less than 256 MiB, itself
// or within another.
func MemoryShare() float64 {
	limit, err := memlimit.FromCgroup()
	if err != nil {
		return 1 // there is no limit, or none that can be read
	}
	return min(1, float64(limit)/usualMemory)
}

// ShareOf is that share of a number, and least at the least.
func ShareOf(n, least int) int { return max(least, int(MemoryShare()*float64(n))) }
