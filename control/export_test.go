package control

// Forgetful is the check of the kernel's memory of peers.
var Forgetful = forgetful
