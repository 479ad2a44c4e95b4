package main

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"

	"github.com/mainstay-go/mainstay/pkg/service/servicetest"
)

func TestMain(m *testing.M) { servicetest.Main(m, main) }

var splits = []struct {
	name    string
	in      string
	advance int
	msg     string
	ok      bool
	err     error
}{
	{name: "nothing", in: ""},
	{name: "half a length", in: "1"},
	{name: "a length", in: "12"},
	{name: "no content yet", in: "3:"},
	{name: "no end yet", in: "3:abc"},
	{name: "whole", in: "3:abc,", advance: 6, msg: "abc", ok: true},
	{name: "empty", in: "0:,", advance: 3, ok: true},
	{name: "more behind it", in: "1:a,2:b", advance: 4, msg: "a", ok: true},
	{name: "as long as may be", in: "12:abcdefghijkl,", advance: 16, msg: "abcdefghijkl", ok: true},
	{name: "too long", in: "13:", err: errNetstring},
	{name: "endless length", in: "123", err: errNetstring},
	{name: "no length", in: ":,", err: errNetstring},
	{name: "no digit", in: "x", err: errNetstring},
	{name: "a sign", in: "-1:", err: errNetstring},
	{name: "no comma", in: "1:ab", err: errNetstring},
}

func TestNetstringsAreSplit(t *testing.T) {
	for _, tt := range splits {
		t.Run(tt.name, func(t *testing.T) {
			advance, msg, ok, err := netstrings{most: 12}.Split([]byte(tt.in), false)
			if advance != tt.advance || string(msg) != tt.msg || ok != tt.ok || !errors.Is(err, tt.err) {
				t.Errorf("got %d %q %v %v, want %d %q %v %v", advance, msg, ok, err, tt.advance, tt.msg, tt.ok, tt.err)
			}
		})
	}
}

func FuzzNetstringsAreSplitAsTheyAreAppended(f *testing.F) {
	for _, tt := range splits {
		f.Add([]byte(tt.in))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		p := netstrings{most: 100}
		advance, msg, ok, err := p.Split(in, false)
		switch {
		case advance < 0 || advance > len(in) || ok != (advance > 0) || err != nil && ok:
			t.Fatalf("%d %q %v %v", advance, msg, ok, err)
		case !ok && err == nil && len(in) > 110:
			t.Fatal("more is wanted, although no message is that long")
		case ok:
			b, err := p.Append(nil, msg)
			if n, again, ok, err := p.Split(b, false); n != len(b) || !ok || err != nil || !bytes.Equal(again, msg) {
				t.Fatalf("%q: %d %q %v %v", b, n, again, ok, err)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestPackagesAreAnsweredAcrossAReload(t *testing.T) {
	s := servicetest.Start(t, servicetest.Options{Listeners: []string{"package"}, Config: "reload.bake = \"10ms\"\n"})
	c := s.Dial("package")
	for range 2 {
		const whole, begun = "\x01\x05\x00HELLO\x02\x00\x00", "\x03\x03\x00WOW"
		io.WriteString(c, "\x01\x05\x00hello\x02\x00\x00\x03\x03\x00wo")
		got := make([]byte, len(whole))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != whole {
			t.Fatalf("got %q, %v", got, err)
		}
		s.Reload()
		io.WriteString(c, "w")
		if _, err := io.ReadFull(c, got[:len(begun)]); err != nil || string(got[:len(begun)]) != begun {
			t.Fatalf("got %q, %v", got[:len(begun)], err)
		}
	}
}

func TestNetstringsAreAnsweredAcrossAReload(t *testing.T) {
	s := servicetest.Start(t, servicetest.Options{Listeners: []string{"netstring"}, Config: "reload.bake = \"10ms\"\n"})
	c := s.Dial("netstring")
	for range 2 {
		io.WriteString(c, "5:hello,0:,3:wo")
		got := make([]byte, len("5:HELLO,0:,"))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != "5:HELLO,0:," {
			t.Fatalf("got %q, %v", got, err)
		}
		s.Reload()
		io.WriteString(c, "w,")
		if _, err := io.ReadFull(c, got[:6]); err != nil || string(got[:6]) != "3:WOW," {
			t.Fatalf("got %q, %v", got[:6], err)
		}
	}
	io.WriteString(c, "no netstring")
	c.(*net.TCPConn).CloseWrite()
	if rest, err := io.ReadAll(c); err != nil || len(rest) != 0 {
		t.Errorf("got %q, %v, want the end", rest, err)
	}
}
