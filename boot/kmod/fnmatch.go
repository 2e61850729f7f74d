package kmod

import "strings"

// fnmatch reports whether s matches pattern as fnmatch(3) without flags has it: * is
// any string, ? any byte, […] a set of bytes with ranges, with ! or ^ in front its complement. Other
// than there a backslash stands for itself: aliases hold none.
//
// It is the greedy algorithm with one place to go back to, so the time is at most the product of both lengths.
func fnmatch(pattern, s string) bool {
	p, i := 0, 0
	star, mark := -1, 0 // behind the last *, and where in s it stopped
	for i < len(s) {
		if p < len(pattern) {
			if pattern[p] == '*' {
				star, mark = p+1, i
				p++
				continue
			}
			if n := one(pattern[p:], s[i]); n > 0 {
				p, i = p+n, i+1
				continue
			}
		}
		if star < 0 {
			return false
		}
		mark++
		p, i = star, mark
	}
	return strings.Trim(pattern[p:], "*") == ""
}

// one returns how long the element at the beginning of pattern is when it matches c, or 0.
func one(pattern string, c byte) int {
	switch pattern[0] {
	case '?':
		return 1
	case '[':
		if n, ok := set(pattern, c); n > 0 {
			if ok {
				return n
			}
			return 0
		}
	}
	if pattern[0] == c {
		return 1
	}
	return 0
}

// set matches c against a bracket expression. n is its length, 0 when there is none: then [ stands for itself.
func set(pattern string, c byte) (n int, match bool) {
	i := 1
	not := i < len(pattern) && (pattern[i] == '!' || pattern[i] == '^')
	if not {
		i++
	}
	for first := true; i < len(pattern); first = false {
		if pattern[i] == ']' && !first {
			return i + 1, match != not
		}
		low, high := pattern[i], pattern[i]
		if i+2 < len(pattern) && pattern[i+1] == '-' && pattern[i+2] != ']' {
			high = pattern[i+2]
			i += 2
		}
		i++
		match = match || low <= c && c <= high
	}
	return 0, false
}
