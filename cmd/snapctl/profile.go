package main

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
)

// startProfiles starts what --cpuprofile and --memprofile ask for, and sets
// stopProfiles to what ends it.
func (a *app) startProfiles() error {
	if a.cpuProfile == "" && a.memProfile == "" {
		return nil
	}
	if a.memProfile != "" { // the process may leave the directory that it is in
		name, err := filepath.Abs(a.memProfile)
		if err != nil {
			return err
		}
		a.memProfile = name
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

// dropProfiles leaves the profiles to another process with the same flags, which
// is yet to start.
func (a *app) dropProfiles() {
	if a.cpuProfile != "" {
		pprof.StopCPUProfile()
	}
	a.stopProfiles = func() error { return nil }
}

func writeHeapProfile(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	runtime.GC() // so that the profile says what is live now
	return errors.Join(pprof.WriteHeapProfile(f), f.Close())
}
