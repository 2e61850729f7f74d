package store

// Classify is classify, for tests.
var Classify = classify
