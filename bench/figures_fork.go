package main

import "fmt"

// forkFigures are what snapctl's forks are held to.
func forkFigures(all samples, rttSeconds float64) []figure {
	all = all.where(func(s sample) bool { return s.Suite == suiteNameFork })
	of := func(work string) at { return at{suiteNameFork, work, ours} }
	return []figure{
		all.lessStart("fork of what is mounted", of(workFork), 0.010),
		all.lessStart("save one line", of(workSaveLine), 0.050),
		all.lessStart("save one line more", of(workSaveAgain), 0.050),
		all.within("save one line, adds", added, of(workSaveLine), 150e3, 0),
		all.within("diff of one line", wall, of(workDiff), 0.050, 0),
		saveFarFigure(all, rttSeconds),
		all.against("fetched for many forks : for one", moved, of(workForksMany), of(workForksOne), equal, 0),
	}
}

// lessStart holds a median to a limit, less what it takes to start a program.
func (s samples) lessStart(name string, a at, must float64) figure {
	f := figure{Name: name + ", less start-up", Unit: secs, Must: must}
	whole, okWhole := s.where(a.has).median(wall)
	start, okStart := s.where(at{a.suite, workStart, a.tool}.has).median(wall)
	if okWhole && okStart {
		f.Measured, f.Value = true, max(0, whole-start)
		f.Beside = secs.text(whole) + " - " + secs.text(start)
	}
	return f
}

// saveFarFigure holds saving a line over S3 to five round trips and 50 ms.
func saveFarFigure(all samples, rttSeconds float64) figure {
	a := at{suiteNameFork, workSaveFar, ours}
	f := all.within("save one line over S3", wall, a, 5*rttSeconds+0.050, 0)
	if f.Measured {
		f.Beside = fmt.Sprintf("%d requests", total(all.where(a.has).requests()))
	}
	return f
}
