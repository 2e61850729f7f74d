// Package authdb is the local authentication database of a VPN server.
package authdb
