package vici

// MaxDepth and MaxQueue are the limits of what is read.
const (
	MaxDepth = maxDepth
	MaxQueue = maxQueue
)

// Parse reads a message.
func Parse(b []byte, keep ...string) (*Message, error) { return parse(b, keep) }

// Append encodes a message.
func (m *Message) Append(b []byte) ([]byte, error) { return m.append(b) }
