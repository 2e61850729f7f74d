package openvpn_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"lethe/openvpn"
)

const block = ">CLIENT:CONNECT,7,2\r\n>CLIENT:ENV,n_clients=0\r\n>CLIENT:ENV,IV_PLAT=linux\r\n>CLIENT:ENV,UV_MAC=username=x\r\n" +
	">CLIENT:ENV,untrusted_port=999\r\n>CLIENT:ENV,untrusted_ip=::ffff:192.0.2.7\r\n>CLIENT:ENV,password=p=q=r\r\n>CLIENT:ENV,username=\xffé=ENV,END\r\n>CLIENT:ENV,END\r\n"

const statusHead = "TITLE\tOpenVPN\r\nTIME\tx\t1\r\nHEADER\tCLIENT_LIST\tCommon Name\r\n"

func TestDecode(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"skipped", ">INFO:OpenVPN Management Interface Version 5\r\n>HOLD:Waiting\r\n>LOG:1,W,x\r\n>STATE:1\r\n>FATAL:x\r\n>CLIENT:ADDRESS,1,10.0.0.1,1\r\n>BYTECOUNT_CLI:1,2,3\r\n\r\n", ""},
		{"answers", "SUCCESS: pid=1\r\nERROR: no\n", "success 0 0; failure 0 0; "},
		{"connect", block, "connect 7 2 \xffé=ENV,END/p=q=r/192.0.2.7; "},
		{"reauth IPv6", ">CLIENT:REAUTH,18446744073709551615,4294967295\r\n>CLIENT:ENV,untrusted_ip6=fe80::1%eth0\r\n>CLIENT:ENV,END\r\n", "reauth 18446744073709551615 4294967295 //fe80::1; "},
		{"established", ">CLIENT:ESTABLISHED,3\r\n>CLIENT:ENV,END\r\n", "established 3 0; "},
		{"disconnect", ">CLIENT:DISCONNECT,3\r\n>CLIENT:ENV,END\r\n", "disconnect 3 0; "},
		{"status", statusHead + "CLIENT_LIST\tu\t192.0.2.1:5\t10.64.0.9\tfd::1\t1\t2\td\t3\tu\t42\t0\tAES\r\nCLIENT_LIST\tUNDEF\t192.0.2.1:6\t\t\t1\t2\td\t3\tUNDEF\t43\t0\t\r\nROUTING_TABLE\tx\r\nEND\r\n", "status 42 u 10.64.0.9 true, 43 UNDEF invalid IP false, ; "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := openvpn.Decode(strings.NewReader(tt.in))
			if got != tt.want || fmt.Sprint(err) != "management interface: EOF" {
				t.Errorf("got %q, %v; want %q and the end", got, err, tt.want)
			}
		})
	}
}

func TestDecodeRefuses(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"long line", strings.Repeat("x", 20000), "more than 16384 bytes"},
		{"no numbers", ">CLIENT:CONNECT,a,b\r\n", "unknown form"},
		{"one number", ">CLIENT:CONNECT,1\r\n", "unknown form"},
		{"two numbers", ">CLIENT:DISCONNECT,1,2\r\n", "unknown form"},
		{"negative", ">CLIENT:ESTABLISHED,-1\r\n", "unknown form"},
		{"large key", ">CLIENT:CONNECT,1,4294967296\r\n", "unknown form"},
		{"end in block", ">CLIENT:CONNECT,1,2\r\n>CLIENT:ENV,username=canary\r\n", "EOF"},
		{"other line in block", ">CLIENT:CONNECT,1,2\r\nusername=canary\r\n", "without the prefix"},
		{"endless block", ">CLIENT:CONNECT,1,2\r\n" + strings.Repeat(">CLIENT:ENV,a=b\r\n", 5000), "block without end"},
		{"bad address", ">CLIENT:CONNECT,1,2\r\n>CLIENT:ENV,untrusted_ip=canary\r\n", "peer address"},
		{"end in status", statusHead, "EOF"},
		{"few columns", statusHead + "CLIENT_LIST\tcanary\r\n", "too few columns"},
		{"bad address in status", statusHead + "CLIENT_LIST\tu\tr\tcanary\t\t\t\t\t\tu\t1\r\n", "unknown form"},
		{"bad client in status", statusHead + "CLIENT_LIST\tu\tr\t10.0.0.1\t\t\t\t\t\tu\tcanary\r\n", "unknown form"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := openvpn.Decode(strings.NewReader(tt.in))
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "canary") {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// FuzzDecode checks that no input hangs or panics, that no error repeats content, and that what a
// client says of itself never becomes its name, password or address.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(block))
	f.Add([]byte(statusHead + "CLIENT_LIST\tu\t192.0.2.1:5\t10.64.0.9\tfd::1\t1\t2\td\t3\tu\t42\t0\tAES\r\nEND\r\n"))
	f.Add([]byte("SUCCESS: x\r\n>HOLD:x\nERROR:\n>CLIENT:DISCONNECT,1\n>CLIENT:ENV,END\n"))
	f.Add([]byte(">CLIENT:REAUTH,0,0\n>CLIENT:ENV,untrusted_ip6=::1\n>CLIENT:ENV,=\n>CLIENT:ENV,END\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := openvpn.Decode(strings.NewReader(strings.ReplaceAll(string(b), "\n", "\n>CLIENT:ENV,IV_X=username=canary\n")))
		if err == nil {
			t.Error("an input without end")
		} else if strings.Contains(err.Error(), "canary") {
			t.Errorf("error with content: %v", err)
		}
		if strings.Contains(got, "canary") {
			t.Errorf("a client's own words: %q", got)
		}
		_, _ = openvpn.Decode(strings.NewReader(string(b)))
	})
}

func TestPeerAddressIsUnmapped(t *testing.T) {
	got, _ := openvpn.Decode(strings.NewReader(block))
	if !strings.Contains(got, netip.MustParseAddr("192.0.2.7").String()) {
		t.Error(got)
	}
}
