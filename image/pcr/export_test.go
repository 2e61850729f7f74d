package pcr

// Variable is the data of an event, which real logs name the digest of.
var Variable = variable
