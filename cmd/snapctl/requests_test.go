package main

import (
	"testing"

	"github.com/snapctl/snapctl/remote"
)

func TestRequestsText(t *testing.T) {
	ops := remote.Counts{}
	ops[remote.OpPut].Calls, ops[remote.OpReadAt].Calls = 2, 1
	for want, r := range map[string]remote.Requests{
		"3 PUT, 1 LIST, 2 GET in 4 waits; sent 1.0 MiB, received 40 KiB; $0.0000187 at R2's prices": {
			Server: true, Put: 3, List: 1, Get: 2, Waits: 4, Sent: 1 << 20, Received: 40 << 10},
		"1 HEAD in 1 wait; $0.000000360 at R2's prices":                       {Server: true, Head: 1, Waits: 1},
		"2 DELETE in 1 wait; sent 9 B; $0.00 at R2's prices":                  {Server: true, Delete: 2, Waits: 1, Sent: 9},
		"3,000 PUT in 700 waits; $0.0135 at R2's prices":                      {Server: true, Put: 3000, Waits: 700},
		"1,000,000 LIST, 10,000,000 GET in 1,000 waits; $8.10 at R2's prices": {Server: true, List: 1e6, Get: 1e7, Waits: 1000},
		"2 put, 1 read in 2 waits; wrote 5 B, read 7 B; they cost nothing":    {Put: 2, Get: 1, Waits: 2, Sent: 5, Received: 7, Ops: ops},
	} {
		if got := requestsText(r); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}
