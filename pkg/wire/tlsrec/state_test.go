package tlsrec

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestConnectionIsMovedAtEveryByte(t *testing.T) {
	forEachSuite(t, func(t *testing.T, id uint16) {
		for _, client := range []bool{false, true} {
			peer, us := newPair(t, id)
			if client {
				peer, us = us, peer
			}
			var in []byte
			var want string
			data := func(s string) {
				in = mustSeal(t, peer, in, []byte(s))
				want += s
			}
			data("first")
			in = append(in, raw(peer, typeApplicationData, "", 3)...)
			for _, part := range []string{"\x18", "\x00\x00\x01", "\x01"} {
				in = append(in, raw(peer, typeHandshake, part, 0)...)
			}
			if err := peer.out.next(); err != nil {
				t.Fatal(err)
			}
			data("second")
			if client {
				ticket := "\x04\x00\x00\x40" + strings.Repeat("t", 64)
				in = append(in, raw(peer, typeHandshake, ticket[:3], 0)...)
				in = append(in, raw(peer, typeHandshake, ticket[3:30], 0)...)
				in = append(in, raw(peer, typeHandshake, ticket[30:], 0)...)
			}
			data(strings.Repeat("long", 100))
			in = peer.CloseNotify(in)

			var pending, got, sent []byte
			var err error
			for i := range in {
				pending = append(pending, in[i])
				var p []byte
				p, pending, err = openAll(us, pending)
				got = append(got, p...)
				if err != nil && (err != io.EOF || i != len(in)-1) {
					t.Fatalf("byte %d: %v", i, err)
				}
				state := mustState(t, us)
				if len(state) > MaxState || len(state) > 185 {
					t.Fatalf("state of %d bytes", len(state))
				}
				us.Drop()
				if us, err = RestoreState(state); err != nil {
					t.Fatalf("byte %d: %v", i, err)
				}
				if again := mustState(t, us); !bytes.Equal(again, state) {
					t.Fatalf("byte %d: restored %x, want %x", i, again, state)
				}
				if i%7 == 0 {
					sent = mustSeal(t, us, sent, []byte{'0' + byte(i%10)})
				}
			}
			if string(got) != want || !us.PeerClosed() {
				t.Errorf("got %q, want %q; closed %v", got, want, us.PeerClosed())
			}
			if back, rest, err := openAll(peer, sent); len(back) != (len(in)+6)/7 || len(rest) != 0 || err != nil {
				t.Errorf("%d bytes came back, want %d, rest %d, %v", len(back), (len(in)+6)/7, len(rest), err)
			}
		}
	})
}

func TestStateOfAnotherMakingIsRefused(t *testing.T) {
	client, server := newPair(t, tls.TLS_AES_256_GCM_SHA384)
	good := mustState(t, server)
	change := func(at int, values ...byte) []byte {
		b := bytes.Clone(good)
		copy(b[at:], values)
		return b
	}
	for _, tt := range []struct {
		name  string
		state []byte
	}{
		{name: "nothing"},
		{name: "header alone", state: good[:stateHeader]},
		{name: "cut", state: good[:len(good)-1]},
		{name: "too long", state: append(bytes.Clone(good), 0)},
		{name: "version 0", state: change(0, 0)},
		{name: "version 2", state: change(0, 2)},
		{name: "unknown flag", state: change(1, 0x80)},
		{name: "alert that is owed", state: change(1, byte(flagAlertDue))},
		{name: "asks without an update", state: change(1, byte(flagAsk))},
		{name: "too many useless records", state: change(2, maxUseless+1)},
		{name: "longer head than a message has", state: change(2, 1, 6, 24, 0, 0, 1)},
		{name: "complete message", state: change(2, 1, 5, 24, 0, 0, 1, 0)},
		{name: "message without a record", state: change(2, 0, 1, 24)},
		{name: "message that is not kept", state: change(2, 1, 4, 1, 0, 0, 1)},
		{name: "bytes behind the head", state: change(2, 1, 1, 24, 7)},
		{name: "server that skips a ticket", state: change(2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9)},
		{name: "longer ticket than there is", state: change(1, byte(flagClient), 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0)},
		{name: "suite of TLS 1.2", state: change(13, 0xc0, 0x2f)},
		{name: "suite with another length", state: change(13, 0x13, 0x01)},
		{name: "key that should have been changed", state: change(23, 0, 0, 0, 0, 1, 0, 0, 1)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if c, err := RestoreState(tt.state); c != nil || !errors.Is(err, ErrState) {
				t.Errorf("got %v, %v, want ErrState", c, err)
			}
		})
	}
	if _, err := RestoreState(good); err != nil {
		t.Errorf("a good one: %v", err)
	}
	if n := len(mustState(t, client)); n != MaxState {
		t.Errorf("the longest state has %d bytes, want MaxState, %d", n, MaxState)
	}
}

func FuzzRestoreState(f *testing.F) {
	for _, s := range suites {
		client, server := newPair(f, s.id)
		f.Add(mustState(f, server))
		client.flags |= flagUpdateDue | flagAsk | flagAsked
		f.Add(mustState(f, client))
		if _, _, err := client.Open(raw(server, typeHandshake, "\x04\x00\x00\x40ttt", 0)); err != nil {
			f.Fatal(err)
		}
		f.Add(mustState(f, client))
		if _, _, err := server.Open(raw(client, typeHandshake, "\x18\x00", 0)); err != nil {
			f.Fatal(err)
		}
		f.Add(mustState(f, server))
	}
	f.Fuzz(func(t *testing.T, state []byte) {
		c, err := RestoreState(state)
		if err != nil {
			if !errors.Is(err, ErrState) {
				t.Fatalf("error %v, want ErrState", err)
			}
			return
		}
		if again := mustState(t, c); !bytes.Equal(again, state) {
			t.Fatalf("state %x comes back as %x", state, again)
		}
		out, err := c.Seal(nil, []byte("x"))
		if err != nil && !errors.Is(err, ErrClosed) {
			t.Fatal(err)
		}
		if err == nil && len(out) < 1+Overhead {
			t.Fatalf("sealed to %d bytes", len(out))
		}
	})
}

// TestConnectionGoesOnFromItsKeysAndNumbers loses a connection whenever it
// rests, and goes on from what was noted of it.
func TestConnectionGoesOnFromItsKeysAndNumbers(t *testing.T) {
	forEachSuite(t, func(t *testing.T, id uint16) {
		for _, client := range []bool{false, true} {
			peer, us := newPair(t, id)
			if client {
				peer, us = us, peer
			}
			var keys []byte
			noted, updates := false, uint32(0)
			check := func(step string) {
				t.Helper()
				if !us.Rests() {
					return
				}
				if !noted || updates != us.Updates() {
					keys, noted, updates = us.AppendKeys(nil), true, us.Updates()
				}
				in, out := us.Numbers()
				us.Drop()
				var err error
				if us, err = RestoreKeys(keys, in, out); err != nil {
					t.Fatalf("%s: %v", step, err)
				}
				updates = us.Updates()
			}
			talk := func(step string) {
				t.Helper()
				for _, ends := range [][2]*Conn{{peer, us}, {us, peer}} {
					wire := mustSeal(t, ends[0], nil, []byte(step))
					got, rest, err := openAll(ends[1], wire)
					if string(got) != step || len(rest) > 0 || err != nil {
						t.Fatalf("%s: got %q, rest %d, %v", step, got, len(rest), err)
					}
				}
				check(step)
			}
			check("begin")
			talk("one")
			peer.flags |= flagUpdateDue | flagAsk | flagAsked
			wire := peer.AppendPending(nil)
			if _, _, err := openAll(us, wire[:len(wire)-1]); err != nil {
				t.Fatal(err)
			}
			if _, _, err := openAll(us, wire); err != nil {
				t.Fatal(err)
			}
			if us.Rests() {
				t.Error("it rests with a KeyUpdate that is owed")
			}
			talk("two")
			us.flags |= flagUpdateDue
			talk("three")
			if _, _, err := openAll(us, raw(peer, typeHandshake, "\x18", 0)); err != nil {
				t.Fatal(err)
			}
			if us.Rests() {
				t.Error("it rests in a handshake message")
			}
			if _, _, err := openAll(us, raw(peer, typeHandshake, "\x00\x00\x01\x00", 0)); err != nil {
				t.Fatal(err)
			}
			if err := peer.out.next(); err != nil {
				t.Fatal(err)
			}
			check("update in parts")
			talk("four")
			us.CloseNotify(nil)
			if us.Rests() {
				t.Error("it rests after its end")
			}
			for _, bad := range [][]byte{nil, keys[:len(keys)-1], append(bytes.Clone(keys), 0), make([]byte, MaxState+1)} {
				if _, err := RestoreKeys(bad, 0, 0); !errors.Is(err, ErrState) {
					t.Errorf("%d bytes of keys: %v, want ErrState", len(bad), err)
				}
			}
			if _, err := RestoreKeys(keys, 0, rekeyAt+2); !errors.Is(err, ErrState) {
				t.Errorf("too many records: %v, want ErrState", err)
			}
		}
	})
}
