//go:build lab

package version

const lab = true
