package lab

import "bytes"

// ParseNotification is the parser of notifications.
var ParseNotification = parseNotification

// Descriptors is the parser of their control messages.
var Descriptors = descriptors

// ReadRequest is the parser of the control socket's requests.
func ReadRequest(b []byte) error { return readRequest(bytes.NewReader(b), new(request)) }
