package main

import (
	"reflect"
	"testing"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want float64
		ok   bool
	}{
		{nil, 0, false},
		{[]float64{3}, 3, true},
		{[]float64{9, 1}, 5, true},
		{[]float64{9, 1, 2}, 2, true},
		{[]float64{4, 1, 100, 2}, 3, true},
	} {
		in := append([]float64(nil), c.in...)
		if got, ok := median(c.in); got != c.want || ok != c.ok {
			t.Errorf("median(%v) = %v, %v", c.in, got, ok)
		}
		if !reflect.DeepEqual(in, append([]float64(nil), c.in...)) {
			t.Errorf("median changed %v to %v", in, c.in)
		}
	}
}

func TestGroupsAreInTheOrderOfWorks(t *testing.T) {
	s := samples{
		{Suite: "local", Tree: "a", Work: workRestore},
		{Suite: "local", Tree: "a", Work: workCreate},
		{Suite: "local", Tree: "a", Work: workRestore, Run: 1},
		{Suite: "s3", Tree: "a", Work: workCreate},
		{Suite: "local", Work: workStart},
	}
	want := []group{{"local", "a", workCreate}, {"local", "a", workRestore}, {"local", "", workStart}, {"s3", "a", workCreate}}
	if got := s.groups(); !reflect.DeepEqual(got, want) {
		t.Errorf("groups = %v, want %v", got, want)
	}
}

func TestEveryWorkIsInTheTables(t *testing.T) {
	// A work that groups does not know would vanish from the tables.
	for _, w := range []string{workStart, workOpen, workCreate, workAgain, workSecond, workRestore, workListFirst, workListAgain} {
		if s := (samples{{Suite: "x", Work: w}}); len(s.groups()) != 1 {
			t.Errorf("%q has no table", w)
		}
	}
}

func TestRequests(t *testing.T) {
	s := samples{
		{Requests: map[string]int{"PUT": 1, "GET": 4}},
		{Requests: map[string]int{"PUT": 3}},
		{Requests: map[string]int{"PUT": 9, "GET": 2}},
	}
	if got, want := s.requests(), (map[string]int{"PUT": 3, "GET": 2}); !reflect.DeepEqual(got, want) {
		t.Errorf("requests = %v, want %v", got, want)
	}
	if got := (samples{{}}).requests(); got != nil {
		t.Errorf("requests of a local work = %v", got)
	}
}
