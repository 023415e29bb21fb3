package main

import (
	"fmt"
	"math"
	"slices"
)

// equal is what may still be called as fast: times vary by as much.
const equal = 1.05

// mountFigures are what snapctl's mounts are held to.
func mountFigures(all samples, rttSeconds float64) []figure {
	all = all.where(func(s sample) bool { return s.Suite == suiteNameMount })
	// Trees of suite mount that only -large makes.
	many := all.where(func(s sample) bool { return filesOf(s.Tree) > 0 })
	all = all.where(func(s sample) bool { return filesOf(s.Tree) == 0 })

	natively := ext4.name
	if slices.ContainsFunc(all, func(s sample) bool { return s.Tool == native.name }) {
		natively = native.name
	}
	const kernel = "squashfs-zstd"
	of := func(work string) at { return at{suiteNameMount, work, ours} }
	against := func(name string, q quantity, work, tool string, must float64) figure {
		return all.against(name+" : "+tool, q, of(work), of(work).by(tool), must, 0)
	}
	fetched := at{suiteNameMount, workFromNode, onlyRead}
	count := "most files"
	if len(many) > 0 {
		count = many[0].Tree
	}
	return []figure{
		all.within("mount", wall, of(workMount), 0.025, 0),
		mountTrips(all, "mount over S3", rttSeconds),
		many.within("mount, "+count, wall, of(workMount), 0.025, 0),
		mountTrips(many, "mount over S3, "+count, rttSeconds),
		against("find, cold", wall, workFindCold, kernel, 0.5),
		against("find, warm", wall, workFindWarm, natively, equal),
		against("tar, cold", wall, workTarCold, kernel, 1),
		against("tar, warm", wall, workTarWarm, natively, 1.2),
		against("node, cold", wall, workNodeCold, natively, 1.3),
		against("node, warm", wall, workNodeWarm, natively, 1.1),
		all.within("from nothing over S3 to node done", wall, of(workFromNode), 2, 0),
		all.within("of what is stored, fetched for node", movedOfStored, fetched, 1./3, 0),
		all.within("the second time, by profile", wall, of(workFromNode).by(byProfile), 1, 0.7),
		all.within("fetched the second time", moved, of(workFromNode).by(byProfile), 10*megabyte, 0),
		all.within("sequential read of 1 GiB, server warm", perGiB, of(workReadServed), 1, 0),
		against("sequential read, page cache warm", perGiB, workReadCached, natively, equal),
		all.within("memory of the server, whole tree read", peak, of(workTarWarm), 200*megabyte, 0),
		many.within("memory of the server, "+count, peak, of(workTarWarm), 250*megabyte, 0),
	}
}

// mountTrips holds mounting over S3 to two round trips and 25 ms. Beside it
// stands how often it waited, as far as what it takes longer than the local
// mount says that.
func mountTrips(all samples, name string, rttSeconds float64) figure {
	f := all.within(name, wall, at{suiteNameMount, workMountFar, ours}, 2*rttSeconds+0.025, 0)
	if !f.Measured {
		return f
	}
	requests := total(all.where(at{suiteNameMount, workMountFar, ours}.has).requests())
	f.Beside = fmt.Sprintf("%d requests", requests)
	if near, ok := all.where(at{suiteNameMount, workMount, ours}.has).median(wall); ok && rttSeconds > 0 {
		f.Beside += ", " + trips.text(min(float64(requests), max(1, math.Round((f.Value-near)/rttSeconds))))
	}
	return f
}
