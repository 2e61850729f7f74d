package image

// ExitCode is exitCode, for tests.
var ExitCode = exitCode
