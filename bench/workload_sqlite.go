package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// sqliteWorkload is a SQLite database. After: an UPDATE of one row in a
// thousand, all over it, and some rows more, in place.
var sqliteWorkload = workload{
	name:     "sqlite",
	programs: []string{"sqlite3"},
	bytes:    func(o *options) int64 { return int64(sqliteRows(o)) * 300 },
	write: func(ctx context.Context, b *bench, before, after string) error {
		if err := errors.Join(os.Mkdir(before, 0o755), os.Mkdir(after, 0o755)); err != nil {
			return err
		}
		rows := sqliteRows(b.o)
		from, to := filepath.Join(before, "app.db"), filepath.Join(after, "app.db")
		err := b.sqlite(ctx, from, `PRAGMA page_size = 4096;
			CREATE TABLE message (id INTEGER PRIMARY KEY, sender TEXT NOT NULL, body TEXT NOT NULL);
			`+insertRows(1, rows)+`
			CREATE INDEX message_sender ON message (sender);`)
		if err == nil {
			err = copyFile(from, to)
		}
		if err == nil {
			err = b.sqlite(ctx, to, `UPDATE message SET body = 'edited ' || body WHERE id % 1000 = 7;
			`+insertRows(rows+1, rows/500))
		}
		return err
	},
}

func sqliteRows(o *options) int {
	if o.smoke {
		return 5_000
	}
	return 1_000_000
}

// insertRows is SQL that inserts n rows, which differ as texts of users do.
func insertRows(first, n int) string {
	return fmt.Sprintf(`WITH RECURSIVE row(i) AS (SELECT %d UNION ALL SELECT i + 1 FROM row WHERE i < %d)
			INSERT INTO message SELECT i, 'user-' || (i * 7919 %% 5003),
				printf('message %%d of %%08x: ', i, i * 2654435761 %% 4294967296)
				|| substr(hex(i * 40503 %% 65536) || ' and some words that are in all of them, ', 1, 20 + i %% 30)
				|| printf('%%08x%%08x', i * 2246822519 %% 4294967296, i * 3266489917 %% 4294967296) FROM row;`, first, first+n-1)
}

func (b *bench) sqlite(ctx context.Context, file, sql string) error {
	_, err := b.runner.run(ctx, command{Args: []string{"sqlite3", "-batch", "-bail", file, sql}})
	return err
}
