package main

import (
	"errors"
	"os"
	"runtime"
	"runtime/pprof"
)

// startProfiles starts what --cpuprofile and --memprofile ask for, and sets
// stopProfiles to what ends it.
func (a *app) startProfiles() error {
	if a.cpuProfile == "" && a.memProfile == "" {
		return nil
	}
	var cpu *os.File
	if a.cpuProfile != "" {
		var err error
		if cpu, err = os.Create(a.cpuProfile); err != nil {
			return err
		}
		if err := pprof.StartCPUProfile(cpu); err != nil {
			return errors.Join(err, cpu.Close())
		}
	}
	a.stopProfiles = func() error {
		var errs []error
		if cpu != nil {
			pprof.StopCPUProfile()
			errs = append(errs, cpu.Close())
		}
		if a.memProfile != "" {
			errs = append(errs, writeHeapProfile(a.memProfile))
		}
		return errors.Join(errs...)
	}
	return nil
}

func writeHeapProfile(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	runtime.GC() // so that the profile says what is live now
	return errors.Join(pprof.WriteHeapProfile(f), f.Close())
}
