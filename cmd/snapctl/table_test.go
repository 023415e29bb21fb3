package main

import (
	"testing"
)

func TestTable(t *testing.T) {
	table := table{right: []bool{false, true, false}}
	table.add("ID", "SIZE", "DIR")
	table.add("größe", "1 B", "/a")
	table.add("x", "1,024 KiB", "-")
	want := "ID          SIZE  DIR\n" +
		"größe        1 B  /a\n" +
		"x      1,024 KiB  -\n"
	if got := table.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
