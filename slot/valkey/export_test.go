package valkey

// ParseReplication opens the parser to its fuzz test.
func ParseReplication(text string) (role string, replicas []string) { return parseReplication(text) }
