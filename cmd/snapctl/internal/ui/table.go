package ui

import (
	"strings"
	"unicode/utf8"
)

// A Table is rows of fields in aligned columns.
type Table struct {
	Right []bool // which columns hold numbers; as many as there are columns
	rows  [][]string
}

// Add adds a row.
func (t *Table) Add(fields ...string) { t.rows = append(t.rows, fields) }

// String is the table, a line for each row.
func (t *Table) String() string {
	widths := make([]int, len(t.Right))
	for _, row := range t.rows {
		for i, field := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(field))
		}
	}
	var b strings.Builder
	for _, row := range t.rows {
		for i, field := range row {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(field))
			switch {
			case t.Right[i]:
				b.WriteString(pad + field)
			case i < len(row)-1:
				b.WriteString(field + pad)
			default:
				b.WriteString(field)
			}
			if i < len(row)-1 {
				b.WriteString("  ")
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}
