package main

import (
	"math"
	"strconv"

	"github.com/snapctl/snapctl/remote"
)

// What R2 takes for its standard storage beyond what is free each month, in dollars:
// https://developers.cloudflare.com/r2/pricing/, in November 2026. Deleting is free, and
// so is what is moved.
const (
	gbMonth = 0.015    // a GB, 10^9 bytes, for a month
	classA  = 4.50e-06 // a request that writes or lists
	classB  = 0.36e-06 // a GET or a HEAD
)

// dollars is what requests cost.
func dollars(r remote.Requests) float64 {
	if !r.Server {
		return 0
	}
	return classA*float64(r.Put+r.List) + classB*float64(r.Get+r.Head)
}

// dollarText is an amount with the digits that matter: three, and cents at least.
func dollarText(d float64) string {
	digits := 2
	if d > 0 {
		digits = max(digits, 2-int(math.Floor(math.Log10(d))))
	}
	return "$" + strconv.FormatFloat(d, 'f', digits, 64)
}
