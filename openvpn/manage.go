package openvpn

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"

	"lethe/private"
)

// kind says what a message of the management interface is.
type kind uint8

const (
	connect     kind = iota + 1 // a new client wants in: cid, kid, login
	reauth                      // a client renegotiates: cid, kid, login
	established                 // a client's tunnel is up: cid
	disconnect                  // a client is gone: cid
	success                     // the oldest command without an answer succeeded
	failure                     // it failed
	status                      // the answer to "status 3": clients
)

// message is one message of the management interface, see management-notes.txt. Which fields are
// set depends on the kind.
type message struct {
	kind    kind
	cid     uint64
	kid     uint64
	login   login
	clients []client
}

// login is what a process tells of a client that wants in.
type login struct {
	username, password private.Value[string]
	peer               private.Value[netip.Addr]
}

// client is one line of the process's client list. v4 is invalid for a client that has not got
// through yet; named says that it has told its user name.
type client struct {
	cid      uint64
	named    bool
	username private.Value[string]
	v4       netip.Addr
}

// Limits of what a process may send. The longest user name of OpenVPN has 4096 bytes, the
// longest line 10240.
const (
	maxLine  = 16 << 10
	maxBlock = 4096 // lines between ">CLIENT:CONNECT" and "ENV,END"
)

var (
	errLine  = errors.New("management interface: line of more than 16384 bytes")
	errBlock = errors.New("management interface: block without end")
)

// decoder reads messages.
type decoder struct {
	r *bufio.Reader
}

func newDecoder(r io.Reader) *decoder { return &decoder{bufio.NewReaderSize(r, maxLine)} }

// line returns the next line without its end. It lies in the read buffer and is valid until the
// next call; wipe it when it may name a person.
func (d *decoder) line() ([]byte, error) {
	line, err := d.r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return nil, errLine
	}
	if err != nil {
		return nil, fmt.Errorf("management interface: %w", err)
	}
	return bytes.TrimSuffix(line[:len(line)-1], []byte{'\r'}), nil
}

// next returns the next message of a known kind. What else a process may say (logs, states, byte
// counts, addresses, greetings) is skipped. Errors name the form, never the content.
func (d *decoder) next() (message, error) {
	for {
		line, err := d.line()
		if err != nil {
			return message{}, err
		}
		switch {
		case bytes.HasPrefix(line, []byte("SUCCESS:")):
			return message{kind: success}, nil
		case bytes.HasPrefix(line, []byte("ERROR:")):
			return message{kind: failure}, nil
		case bytes.HasPrefix(line, []byte("TITLE\t")):
			return d.status()
		case bytes.HasPrefix(line, []byte(">CLIENT:")):
			m, err := d.client(line[len(">CLIENT:"):])
			if m.kind != 0 || err != nil {
				return m, err
			}
		}
		clear(line) // it may hold a log line or an address
	}
}

var notes = map[string]kind{"CONNECT": connect, "REAUTH": reauth, "ESTABLISHED": established, "DISCONNECT": disconnect}

// client reads a message that began with ">CLIENT:", of which head is the rest of the first line.
func (d *decoder) client(head []byte) (message, error) {
	name, rest, _ := strings.Cut(string(head), ",")
	m := message{kind: notes[name]}
	if m.kind == 0 {
		return m, nil
	}
	cid, kid, two := strings.Cut(rest, ",")
	var err1, err2 error
	m.cid, err1 = strconv.ParseUint(cid, 10, 64)
	if two {
		m.kid, err2 = strconv.ParseUint(kid, 10, 32)
	}
	if err1 != nil || err2 != nil || two != (m.kind <= reauth) {
		return message{}, errors.New("management interface: client or key number in an unknown form")
	}
	return m, d.env(&m.login)
}

// env reads the lines ">CLIENT:ENV,name=value" up to ">CLIENT:ENV,END". Three names are of use;
// everything else, above all what clients say of themselves (IV_*, UV_*), is dropped. Values hold
// any byte but line ends and may hold "=".
func (d *decoder) env(l *login) error {
	for range maxBlock {
		line, err := d.line()
		if err != nil {
			return err
		}
		pair, ok := bytes.CutPrefix(line, []byte(">CLIENT:ENV,"))
		if !ok {
			return errors.New("management interface: line without the prefix of its block")
		}
		if string(pair) == "END" {
			return nil
		}
		name, value, _ := bytes.Cut(pair, []byte{'='})
		switch string(name) {
		case "username":
			l.username = private.Of(string(value))
		case "password":
			l.password = private.Of(string(value))
		case "untrusted_ip", "untrusted_ip6":
			addr, err := netip.ParseAddr(string(value))
			if err != nil {
				return errors.New("management interface: peer address in an unknown form") // the cause holds the text
			}
			l.peer = private.Of(addr.WithZone("").Unmap())
		}
		clear(line)
	}
	return errBlock
}

// Columns of a CLIENT_LIST line in the answer to "status 3".
const (
	columnName = 1
	columnV4   = 3
	columnUser = 9
	columnCID  = 10
)

// status reads the rest of the answer to "status 3": lines of fields separated by tabs, up to
// "END". The clients' outer addresses stand in it and are dropped.
func (d *decoder) status() (message, error) {
	m := message{kind: status}
	for {
		line, err := d.line()
		if err != nil {
			return message{}, err
		}
		if string(line) == "END" {
			return m, nil
		}
		if bytes.HasPrefix(line, []byte("CLIENT_LIST\t")) {
			c, err := parseClient(line)
			if err != nil {
				return message{}, err
			}
			m.clients = append(m.clients, c)
		}
		clear(line)
	}
}

func parseClient(line []byte) (c client, err error) {
	f := bytes.Split(line, []byte{'\t'})
	if len(f) <= columnCID {
		return client{}, errors.New("management interface: client list with too few columns")
	}
	if c.cid, err = strconv.ParseUint(string(f[columnCID]), 10, 64); err == nil && len(f[columnV4]) > 0 {
		c.v4, err = netip.ParseAddr(string(f[columnV4]))
	}
	if err != nil {
		return client{}, errors.New("management interface: client list in an unknown form")
	}
	c.named = string(f[columnName]) != "UNDEF" || string(f[columnUser]) != "UNDEF"
	c.username = private.Of(string(f[columnUser]))
	return c, nil
}
