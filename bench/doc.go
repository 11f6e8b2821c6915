// Command bench measures keylease and what it stands on side by side, and says of each target whether it is met:
//
//	go run ./bench                                  all of it, about ten minutes
//	go run ./bench --update docs/performance.md     the same, and the page's table is rewritten
//	go run ./bench --short                          a minute, to see that it works
//	go run ./bench --cycles 1000000                 what leases that came and went leave behind
//
// Its rule: only ratios within one run mean something. Whoever is compared takes turns, a ratio is taken in each round,
// and the median of the rounds counts. What counts is the shipped binary, driven over its socket or port with policy,
// sealing, trail and limits as they are; only the rates, which would end the measurement, are off. What the engine does
// in this process stands beside it and is called so.
package main
