package notify

// RestoreAt is Restore for descriptors from another number on: in a test
// process, 3 is taken.
var RestoreAt = restore

// Parse is the parser of the passed variables.
var Parse = parse
