package tlsrec

import (
	"context"
	"crypto/tls"
	"fmt"
	"strings"
	"testing"
)

// shakeHands has a client with a cache and a server agree, both of this
// package, and returns what the client has got behind the handshake.
func shakeHands(t *testing.T, server, client *tls.Config) (c, s Result) {
	t.Helper()
	hc, hs := Client(context.Background(), client), Server(context.Background(), server)
	defer hc.Abort()
	defer hs.Abort()
	var behind []byte
	for !hc.Done() || !hs.Done() {
		if _, err := hc.Step(); err != nil {
			t.Fatal(err)
		}
		if out := hc.Output(); len(out) > 0 {
			if err := hs.Feed(out); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := hs.Step(); err != nil {
			t.Fatal(err)
		}
		if out := hs.Output(); hc.Done() {
			behind = append(behind, out...)
		} else if err := hc.Feed(out); err != nil {
			t.Fatal(err)
		}
	}
	c, err := hc.Result()
	if err != nil {
		t.Fatal(err)
	}
	if s, err = hs.Result(); err != nil {
		t.Fatal(err)
	}
	c.Rest = append(c.Rest, behind...)
	return c, s
}

func TestTicketsGetToTheCacheWhereverTheyAreCut(t *testing.T) {
	server, client := configs()
	client.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	for i := range 4 {
		c, s := shakeHands(t, server, client)
		if want := i > 0; c.Info.Resumed != want || s.Info.Resumed != want {
			t.Fatalf("handshake %d: resumed %v here, %v there", i+1, c.Info.Resumed, s.Info.Resumed)
		}
		if len(c.Rest) == 0 {
			t.Fatal("the server has sent no ticket")
		}
		// As a connection does: what is not a whole record stays.
		var kept []byte
		for _, b := range c.Rest {
			kept = append(kept, b)
			if !c.Tickets.Feed(kept) {
				t.Fatal("no more is wanted before data has come")
			}
			n, plain, err := c.Conn.OpenAll(kept)
			if err != nil || len(plain) > 0 {
				t.Fatal(plain, err)
			}
			kept = kept[n:]
		}
		if text := fmt.Sprintf("%v %+v %#v", *c.Tickets, *c.Tickets, *c.Tickets); strings.Contains(text, "0x") {
			t.Errorf("it prints as %s", text)
		}
	}
}

func TestTicketsAreNotWaitedForForEver(t *testing.T) {
	for _, tt := range []struct {
		name string
		feed func(t *testing.T, s Result) []byte
		more bool
	}{
		{"data", func(t *testing.T, s Result) []byte { return mustSeal(t, s.Conn, nil, []byte("data")) }, false},
		{"half a record", func(t *testing.T, s Result) []byte { return mustSeal(t, s.Conn, nil, []byte("data"))[:9] }, true},
		{"a KeyUpdate", func(t *testing.T, s Result) []byte {
			s.Conn.flags |= flagUpdateDue
			return s.Conn.AppendPending(nil)
		}, true},
		{"KeyUpdates without end", func(t *testing.T, s Result) (b []byte) {
			for range maxTickets / 20 {
				s.Conn.flags |= flagUpdateDue
				b = s.Conn.AppendPending(b)
			}
			return b
		}, false},
		{"close_notify", func(t *testing.T, s Result) []byte { return s.Conn.CloseNotify(nil) }, false},
		{"what is no record of this connection", func(*testing.T, Result) []byte { return []byte("\x17\x03\x03\x00\x03abc") }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server, client := configs()
			client.ClientSessionCache = tls.NewLRUClientSessionCache(1)
			c, s := shakeHands(t, server, client)
			if !c.Tickets.Feed(c.Rest) {
				t.Fatal("no more is wanted before data has come")
			}
			if more := c.Tickets.Feed(tt.feed(t, s)); more != tt.more {
				t.Errorf("more is wanted: %v, want %v", more, tt.more)
			}
		})
	}
}

func TestWithoutACacheThereAreNoTickets(t *testing.T) {
	server, client := configs()
	for name, change := range map[string]func(*tls.Config){
		"no cache": func(c *tls.Config) { c.ClientSessionCache = nil },
		"tickets are off": func(c *tls.Config) {
			c.ClientSessionCache, c.SessionTicketsDisabled = tls.NewLRUClientSessionCache(1), true
		},
		"it is not TLS 1.3": func(c *tls.Config) {
			c.ClientSessionCache, c.MaxVersion = tls.NewLRUClientSessionCache(1), tls.VersionTLS12
		},
	} {
		own := client.Clone()
		change(own)
		if c, _ := shakeHands(t, server, own); c.Tickets != nil {
			t.Errorf("%s: there are", name)
		}
	}
}
