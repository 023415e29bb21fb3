package ui

import (
	"testing"
)

func TestTable(t *testing.T) {
	table := Table{Right: []bool{false, true, false}}
	table.Add("ID", "SIZE", "DIR")
	table.Add("größe", "1 B", "/a")
	table.Add("x", "1,024 KiB", "-")
	want := "ID          SIZE  DIR\n" +
		"größe        1 B  /a\n" +
		"x      1,024 KiB  -\n"
	if got := table.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
