// Package test holds the end-to-end tests: the real programs, built with
// coverage counters, in labs of their own (package lab).
//
// Every test that needs a service makes one with its own prefix and takes it
// down again. With LETHE_COVER in the environment, a directory, the programs
// leave their coverage there; scripts/test merges it with that of the unit tests.
package test
