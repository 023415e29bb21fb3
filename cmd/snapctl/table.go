package main

import (
	"strings"
	"unicode/utf8"
)

// A table is rows of fields in aligned columns.
type table struct {
	right []bool // columns of numbers
	rows  [][]string
}

func (t *table) add(fields ...string) { t.rows = append(t.rows, fields) }

func (t *table) String() string {
	widths := make([]int, len(t.right))
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
			case t.right[i]:
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
