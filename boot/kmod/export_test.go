package kmod

// Fnmatch is fnmatch.
var Fnmatch = fnmatch
