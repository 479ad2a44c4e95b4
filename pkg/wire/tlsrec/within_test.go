package tlsrec

import (
	"bytes"
	"testing"
)

func TestRecordMadeInPlaceIsOneLikeAnyOther(t *testing.T) {
	forEachSuite(t, func(t *testing.T, id uint16) {
		for _, n := range []int{1, 64, MaxPlaintext} {
			client, server := newPair(t, id)
			for range 3 {
				b := bytes.Repeat([]byte{'x'}, n+Overhead)
				if !client.SealWithin(b) {
					t.Fatalf("%d bytes are no record", n)
				}
				advance, p, err := server.Open(b)
				if advance != len(b) || err != nil || !bytes.Equal(p, bytes.Repeat([]byte{'x'}, n)) {
					t.Fatalf("%d bytes: advance %d, %d bytes, %v", n, advance, len(p), err)
				}
				client.Cool() // as if it had been idle
				server.Cool()
			}
		}
	})
}

func TestRecordIsMadeInPlaceOnlyIfItIsTheOnlyOne(t *testing.T) {
	for _, tt := range []struct {
		name   string
		size   int
		before func(c *Conn)
	}{
		{"nothing", 0, func(*Conn) {}},
		{"more than a record holds", MaxPlaintext + 1, func(*Conn) {}},
		{"an update is owed", 10, func(c *Conn) { c.flags |= flagUpdateDue }},
		{"the key has protected enough", 10, func(c *Conn) { c.out.seq = rekeyAt - 1 }},
		{"writing has ended", 10, func(c *Conn) { c.CloseNotify(nil) }},
		{"all has failed", 10, func(c *Conn) { c.Drop() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			client, _ := newPair(t, suites[0].id)
			tt.before(client)
			b := bytes.Repeat([]byte{'x'}, tt.size+Overhead)
			if client.SealWithin(b) || !bytes.Equal(b, bytes.Repeat([]byte{'x'}, len(b))) {
				t.Error("it has made one")
			}
		})
	}
}

func TestCooledConnectionGoesOn(t *testing.T) {
	forEachSuite(t, func(t *testing.T, id uint16) {
		client, server := newPair(t, id)
		for i := range 4 {
			client.Cool()
			server.Cool()
			if i == 2 {
				client.flags |= flagUpdateDue
			}
			got, rest, err := openAll(server, mustSeal(t, client, nil, []byte("hello")))
			if string(got) != "hello" || len(rest) > 0 || err != nil {
				t.Fatalf("got %q, %d left, %v", got, len(rest), err)
			}
		}
	})
}
