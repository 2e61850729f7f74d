//go:build !lab

package version

const lab = false
