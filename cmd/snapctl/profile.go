package main

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
)

// Profiles are those of one command, which developers read with go tool pprof.
type profiles struct {
	cpu, mem string // files; "" for none

	file    *os.File // that the CPU profile is written to; nil if there is none
	started bool
}

// start starts what --cpuprofile and --memprofile ask for.
func (p *profiles) start() error {
	if p.mem != "" { // the process may leave the directory that it is in
		name, err := filepath.Abs(p.mem)
		if err != nil {
			return err
		}
		p.mem = name
	}
	if p.cpu != "" {
		f, err := os.Create(p.cpu)
		if err != nil {
			return err
		}
		if err := pprof.StartCPUProfile(f); err != nil {
			return errors.Join(err, f.Close())
		}
		p.file = f
	}
	p.started = true
	return nil
}

// stop ends the profiles, and writes them, if they were started.
func (p *profiles) stop() error {
	if !p.started {
		return nil
	}
	var errs []error
	if p.file != nil {
		pprof.StopCPUProfile()
		errs = append(errs, p.file.Close())
	}
	if p.mem != "" {
		errs = append(errs, writeHeapProfile(p.mem))
	}
	return errors.Join(errs...)
}

// drop leaves the profiles to another process with the same flags, which is yet to start.
func (p *profiles) drop() {
	if p.file != nil {
		pprof.StopCPUProfile()
	}
	p.started = false
}

func writeHeapProfile(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	runtime.GC() // so that the profile says what is live now
	return errors.Join(pprof.WriteHeapProfile(f), f.Close())
}
