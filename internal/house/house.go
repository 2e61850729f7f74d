// Package house holds the rules of this repository that a compiler does not
// check, as tests: who may import whom, where a program may end, where text may
// be logged, how large things may grow. It has no code of its own.
package house
