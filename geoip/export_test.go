package geoip

// IPNet is exported for tests.
var IPNet = ipNet
