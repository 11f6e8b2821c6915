// Package promises holds keylease to its word: one test per promise of SECURITY.md and per trial that a system of this
// kind has failed before. Its rule: every test drives the shipped binary, as its users do, over its command line, its
// socket or its port, and believes nothing but what comes out there. There is no code here but tests.
package promises
