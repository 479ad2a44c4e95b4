package tlsrec

import (
	"bytes"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"runtime"
	"strings"
	"testing"
)

// unhex reads hexadecimal with blanks between.
func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// newPair returns the two ends of a connection.
func newPair(t testing.TB, id uint16) (client, server *Conn) {
	t.Helper()
	s := suiteOf(id)
	half := func(fill byte) *half {
		h, err := newHalf(s, bytes.Repeat([]byte{fill}, s.secret), 0)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	return newConn(true, half('s'), half('c')), newConn(false, half('c'), half('s'))
}

// raw makes a record of any content, padding included.
func raw(c *Conn, typ contentType, content string, padding int) []byte {
	if padding == 0 {
		return c.out.seal(nil, typ, []byte(content))
	}
	inner := content + string(rune(typ)) + strings.Repeat("\x00", padding-1)
	return c.out.seal(nil, 0, []byte(inner))
}

// openAll opens what is in in, one record at a time.
func openAll(c *Conn, in []byte) (plain []byte, rest []byte, err error) {
	for {
		advance, p, err := c.Open(in)
		plain = append(plain, p...)
		in = in[advance:]
		if err != nil || advance == 0 {
			return plain, in, err
		}
	}
}

func mustSeal(t testing.TB, c *Conn, dst, p []byte) []byte {
	t.Helper()
	out, err := c.Seal(dst, p)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func forEachSuite(t *testing.T, f func(t *testing.T, id uint16)) {
	for _, s := range suites {
		t.Run(tls.CipherSuiteName(s.id), func(t *testing.T) { f(t, s.id) })
	}
}

func TestRecordIsAsInTheRFC(t *testing.T) {
	// RFC 8448 3, the client's application data.
	secret := unhex(t, "9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5")
	want := unhex(t, `17 03 03 00 43 a2 3f 70 54 b6 2c 94 d0 af fa fe 82 28 ba 55 cb ef ac ea 42 f9 14 aa 66 bc ab 3f 2b
		98 19 a8 a5 b4 6b 39 5b d5 4a 9a 20 44 1e 2b 62 97 4e 1f 5a 62 92 a2 97 70 14 bd 1e 3d ea e6 3a ee bb 21 69 49 15 e4`)
	h, err := newHalf(suiteOf(tls.TLS_AES_128_GCM_SHA256), secret, 0)
	if err != nil {
		t.Fatal(err)
	}
	plain := make([]byte, 50)
	for i := range plain {
		plain[i] = byte(i)
	}
	got := h.seal(nil, typeApplicationData, plain)
	if !bytes.Equal(got, want) {
		t.Errorf("record %x, want %x", got, want)
	}
	if iv := unhex(t, "5b78923dee08579033e523d9"); !bytes.Equal(h.keys.iv[:], iv) {
		t.Errorf("iv %x, want %x", h.keys.iv, iv)
	}
}

func TestMessagesOfAnySizeGoThrough(t *testing.T) {
	forEachSuite(t, func(t *testing.T, id uint16) {
		client, server := newPair(t, id)
		for _, size := range []int{0, 1, 15, 16, 17, 1000, MaxPlaintext - 1, MaxPlaintext, MaxPlaintext + 1, 3 * MaxPlaintext, 100000} {
			for _, dir := range []struct{ from, to *Conn }{{client, server}, {server, client}} {
				msg := bytes.Repeat([]byte{byte(size), 7}, size)[:size]
				sealed := mustSeal(t, dir.from, []byte("kept"), msg)
				records := (size + MaxPlaintext - 1) / MaxPlaintext
				if len(sealed) != 4+size+records*Overhead || string(sealed[:4]) != "kept" {
					t.Fatalf("%d bytes are sealed to %d in %d records", size, len(sealed), records)
				}
				got, rest, err := openAll(dir.to, sealed[4:])
				if err != nil || len(rest) != 0 || !bytes.Equal(got, msg) {
					t.Fatalf("%d bytes: got %d bytes, rest %d, %v", size, len(got), len(rest), err)
				}
			}
		}
	})
}

func TestRecordIsOpenedWhenItsLastByteIsThere(t *testing.T) {
	client, server := newPair(t, tls.TLS_AES_128_GCM_SHA256)
	record := mustSeal(t, client, nil, []byte("hello"))
	for n := range record {
		before := bytes.Clone(record[:n])
		advance, p, err := server.Open(record[:n])
		if advance != 0 || p != nil || err != nil || !bytes.Equal(before, record[:n]) {
			t.Fatalf("%d of %d bytes: %d, %q, %v", n, len(record), advance, p, err)
		}
	}
	if advance, p, err := server.Open(record); advance != len(record) || string(p) != "hello" || err != nil {
		t.Errorf("got %d, %q, %v", advance, p, err)
	}
}

func TestOpenAllGivesOnePiece(t *testing.T) {
	client, server := newPair(t, tls.TLS_AES_128_GCM_SHA256)
	msg := bytes.Repeat([]byte("0123456789"), 5000)
	in := mustSeal(t, client, nil, msg)
	in = append(in, raw(client, typeHandshake, "\x18\x00\x00\x01\x01", 0)...)
	if err := client.out.next(); err != nil {
		t.Fatal(err)
	}
	in = mustSeal(t, client, in, []byte("end"))
	whole := len(in)
	in = append(in, 23, 3, 3)
	advance, p, err := server.OpenAll(in)
	if advance != whole || err != nil || !bytes.Equal(p, append(bytes.Clone(msg), "end"...)) {
		t.Errorf("advance %d, want %d; %d bytes, want %d; %v", advance, whole, len(p), len(msg)+3, err)
	}
	if !server.Pending() {
		t.Error("nothing is pending after a KeyUpdate that asks")
	}
	tail := client.CloseNotify(mustSeal(t, client, nil, []byte("last")))
	if advance, p, err := server.OpenAll(tail); advance != len(tail) || string(p) != "last" || err != io.EOF {
		t.Errorf("got %d, %q, %v, want the data and the end", advance, p, err)
	}
}

// badRecords is what a peer that has the keys may not send.
var badRecords = []struct {
	name   string
	client bool // we are the client
	make   func(peer *Conn) []byte
	alert  Alert
}{
	{name: "change_cipher_spec after the handshake", alert: AlertUnexpectedMessage,
		make: func(*Conn) []byte { return []byte{20, 3, 3, 0, 1, 1} }},
	{name: "handshake record without protection", alert: AlertUnexpectedMessage,
		make: func(*Conn) []byte { return []byte{22, 3, 3, 0, 5, 24, 0, 0, 1, 0} }},
	{name: "alert without protection", alert: AlertUnexpectedMessage,
		make: func(*Conn) []byte { return []byte{21, 3, 3, 0, 2, 1, 0} }},
	{name: "text", alert: AlertUnexpectedMessage,
		make: func(*Conn) []byte { return []byte("GET / HTTP/1.1\r\n") }},
	{name: "another version", alert: AlertProtocolVersion,
		make: func(*Conn) []byte { return []byte{23, 3, 1, 0, 40} }},
	{name: "too long a record is told by its header", alert: AlertRecordOverflow,
		make: func(*Conn) []byte { return []byte{23, 3, 3, 0x41, 1} }},
	{name: "too short a record is told by its header", alert: AlertBadRecordMAC,
		make: func(*Conn) []byte { return []byte{23, 3, 3, 0, 16} }},
	{name: "empty record", alert: AlertBadRecordMAC,
		make: func(*Conn) []byte { return []byte{23, 3, 3, 0, 0} }},
	{name: "longest record, of junk", alert: AlertBadRecordMAC,
		make: func(*Conn) []byte { return append([]byte{23, 3, 3, 0x41, 0}, make([]byte, 0x4100)...) }},
	{name: "more plaintext than allowed", alert: AlertRecordOverflow,
		make: func(p *Conn) []byte { return raw(p, typeApplicationData, strings.Repeat("x", MaxPlaintext+1), 0) }},
	{name: "more padding than allowed", alert: AlertRecordOverflow,
		make: func(p *Conn) []byte { return raw(p, typeApplicationData, "x", MaxPlaintext+1) }},
	{name: "padding alone", alert: AlertUnexpectedMessage,
		make: func(p *Conn) []byte { return raw(p, 0, "\x00\x00\x00", 0) }},
	{name: "no content at all", alert: AlertUnexpectedMessage,
		make: func(p *Conn) []byte { return raw(p, 0, "", 0) }},
	{name: "unknown type", alert: AlertUnexpectedMessage,
		make: func(p *Conn) []byte { return raw(p, 99, "x", 0) }},
	{name: "change_cipher_spec inside", alert: AlertUnexpectedMessage,
		make: func(p *Conn) []byte { return raw(p, 20, "\x01", 0) }},
	{name: "heartbeat", alert: AlertUnexpectedMessage,
		make: func(p *Conn) []byte { return raw(p, 24, "\x01\x00\x00", 0) }},
	{name: "half an alert", alert: AlertDecodeError,
		make: func(p *Conn) []byte { return raw(p, typeAlert, "\x01", 0) }},
	{name: "two alerts in a record", alert: AlertDecodeError,
		make: func(p *Conn) []byte { return raw(p, typeAlert, "\x01\x5a\x01\x00", 0) }},
	{name: "empty handshake record", alert: AlertUnexpectedMessage,
		make: func(p *Conn) []byte { return raw(p, typeHandshake, "", 0) }},
	{name: "ClientHello again", alert: AlertUnexpectedMessage,
		make: func(p *Conn) []byte { return raw(p, typeHandshake, "\x01\x00\x00\x26", 0) }},
	{name: "Finished again", alert: AlertUnexpectedMessage,
		make: func(p *Conn) []byte {
			return raw(p, typeHandshake, "\x14\x00\x00\x20"+strings.Repeat("x", 32), 0)
		}},
	{name: "CertificateRequest", client: true, alert: AlertUnexpectedMessage,
		make: func(p *Conn) []byte { return raw(p, typeHandshake, "\x0d\x00\x00\x03\x00\x00\x00", 0) }},
	{name: "ticket from a client", alert: AlertUnexpectedMessage,
		make: func(p *Conn) []byte { return raw(p, typeHandshake, "\x04\x00\x00\x20"+strings.Repeat("t", 32), 0) }},
	{name: "ticket that is too short", client: true, alert: AlertDecodeError,
		make: func(p *Conn) []byte { return raw(p, typeHandshake, "\x04\x00\x00\x0dtttttttttttttt", 0) }},
	{name: "ticket that is too long", client: true, alert: AlertDecodeError,
		make: func(p *Conn) []byte { return raw(p, typeHandshake, "\x04\xff\xff\xff", 0) }},
	{name: "KeyUpdate of two bytes", alert: AlertDecodeError,
		make: func(p *Conn) []byte { return raw(p, typeHandshake, "\x18\x00\x00\x02\x00\x00", 0) }},
	{name: "KeyUpdate of no byte", alert: AlertDecodeError,
		make: func(p *Conn) []byte { return raw(p, typeHandshake, "\x18\x00\x00\x00", 0) }},
	{name: "KeyUpdate that asks for 2", alert: AlertIllegalParameter,
		make: func(p *Conn) []byte { return raw(p, typeHandshake, "\x18\x00\x00\x01\x02", 0) }},
	{name: "something behind a KeyUpdate", alert: AlertUnexpectedMessage,
		make: func(p *Conn) []byte { return raw(p, typeHandshake, "\x18\x00\x00\x01\x00\x18\x00\x00\x01\x00", 0) }},
	{name: "data inside a handshake message", alert: AlertUnexpectedMessage,
		make: func(p *Conn) []byte {
			return append(raw(p, typeHandshake, "\x18\x00", 0), raw(p, typeApplicationData, "x", 0)...)
		}},
	{name: "close_notify inside a handshake message", alert: AlertUnexpectedMessage,
		make: func(p *Conn) []byte {
			return append(raw(p, typeHandshake, "\x18\x00\x00\x01", 0), raw(p, typeAlert, "\x01\x00", 0)...)
		}},
	{name: "data inside a ticket", client: true, alert: AlertUnexpectedMessage,
		make: func(p *Conn) []byte {
			return append(raw(p, typeHandshake, "\x04\x00\x01\x00tt", 0), raw(p, typeApplicationData, "x", 0)...)
		}},
	{name: "the old key after a KeyUpdate", alert: AlertBadRecordMAC,
		make: func(p *Conn) []byte {
			return append(raw(p, typeHandshake, "\x18\x00\x00\x01\x00", 0), raw(p, typeApplicationData, "x", 0)...)
		}},
	{name: "a record twice", alert: AlertBadRecordMAC,
		make: func(p *Conn) []byte { return bytes.Repeat(raw(p, typeApplicationData, "x", 0), 2) }},
	{name: "a record left out", alert: AlertBadRecordMAC,
		make: func(p *Conn) []byte {
			raw(p, typeApplicationData, "x", 0)
			return raw(p, typeApplicationData, "x", 0)
		}},
	{name: "empty records without end", alert: AlertUnexpectedMessage,
		make: func(p *Conn) (out []byte) {
			for range maxUseless + 1 {
				out = append(out, raw(p, typeApplicationData, "", 0)...)
			}
			return out
		}},
	{name: "user_canceled without end", alert: AlertUnexpectedMessage,
		make: func(p *Conn) (out []byte) {
			for range maxUseless + 1 {
				out = append(out, raw(p, typeAlert, "\x01\x5a", 0)...)
			}
			return out
		}},
	{name: "KeyUpdates without end", alert: AlertUnexpectedMessage,
		make: func(p *Conn) (out []byte) {
			for range maxUseless + 1 {
				out = append(out, raw(p, typeHandshake, "\x18\x00\x00\x01\x01", 0)...)
				if err := p.out.next(); err != nil {
					panic(err)
				}
			}
			return out
		}},
}

func TestBadRecordEndsTheConnectionWithItsAlert(t *testing.T) {
	for _, tt := range badRecords {
		t.Run(tt.name, func(t *testing.T) {
			peer, us := newPair(t, tls.TLS_CHACHA20_POLY1305_SHA256)
			if tt.client {
				peer, us = us, peer
			}
			in := tt.make(peer)
			_, _, err := openAll(us, in)
			fault, ok := errors.AsType[*AlertError](err)
			if !ok || fault.Alert != tt.alert || fault.Remote {
				t.Fatalf("error %v, want a fault with %v", err, tt.alert)
			}
			if _, _, again := us.Open(in); again != err {
				t.Errorf("then %v, want the same", again)
			}
			if _, err := us.Seal(nil, []byte("x")); err != fault {
				t.Errorf("Seal fails with %v, want %v", err, fault)
			}
			if _, err := us.AppendState(nil); !errors.Is(err, fault) {
				t.Errorf("AppendState fails with %v, want %v", err, fault)
			}
			if !us.Pending() {
				t.Fatal("no alert is pending")
			}
			_, _, err = openAll(peer, us.AppendPending(nil))
			got, ok := errors.AsType[*AlertError](err)
			if !ok || !got.Remote || got.Alert != tt.alert {
				t.Errorf("the peer sees %v, want %v", err, tt.alert)
			}
			if us.Pending() || len(us.AppendPending(nil)) > 0 || len(us.CloseNotify(nil)) > 0 {
				t.Error("more is sent after the alert")
			}
			if err := us.End(0); err != fault {
				t.Errorf("End returns %v, want %v", err, fault)
			}
		})
	}
}

func TestEveryTamperedBitIsSeen(t *testing.T) {
	forEachSuite(t, func(t *testing.T, id uint16) {
		for at := range Overhead + 3 {
			for bit := range 8 {
				client, server := newPair(t, id)
				in := mustSeal(t, client, nil, []byte("abc"))
				in[at] ^= 1 << bit
				_, p, err := server.Open(in)
				if at == 3 || at == 4 { // another length: may want more
					if len(p) > 0 {
						t.Errorf("byte %d bit %d: got %q", at, bit, p)
					}
					continue
				}
				if err == nil || len(p) > 0 {
					t.Errorf("byte %d bit %d: got %q, %v", at, bit, p, err)
				}
			}
		}
	})
}

func TestGoodOdditiesAreTaken(t *testing.T) {
	update := "\x18\x00\x00\x01\x00"
	ticket := "\x04\x00\x00\x20" + strings.Repeat("t", 32)
	for _, tt := range []struct {
		name   string
		client bool
		send   func(p *Conn) []byte
		want   string
	}{
		{name: "padding", want: "abc", send: func(p *Conn) []byte { return raw(p, typeApplicationData, "abc", 100) }},
		{name: "zeros are data before the type", want: "a\x00\x00", send: func(p *Conn) []byte { return raw(p, typeApplicationData, "a\x00\x00", 1) }},
		{name: "as much padding as allowed", want: "", send: func(p *Conn) []byte { return raw(p, typeApplicationData, "", MaxPlaintext) }},
		{name: "user_canceled is ignored", want: "x", send: func(p *Conn) []byte {
			return append(raw(p, typeAlert, "\x01\x5a", 0), raw(p, typeApplicationData, "x", 0)...)
		}},
		{name: "some empty records, again and again", want: "xx", send: func(p *Conn) (out []byte) {
			for range 2 {
				for range maxUseless {
					out = append(out, raw(p, typeApplicationData, "", 0)...)
				}
				out = append(out, raw(p, typeApplicationData, "x", 0)...)
			}
			return out
		}},
		{name: "KeyUpdate a byte a record", want: "x", send: func(p *Conn) (out []byte) {
			for _, b := range []byte(update) {
				out = append(out, raw(p, typeHandshake, string(b), 0)...)
			}
			if err := p.out.next(); err != nil {
				panic(err)
			}
			return append(out, raw(p, typeApplicationData, "x", 0)...)
		}},
		{name: "tickets, in one record and over many", client: true, want: "x", send: func(p *Conn) []byte {
			out := raw(p, typeHandshake, ticket+ticket+ticket[:2], 0)
			out = append(out, raw(p, typeHandshake, ticket[2:10], 0)...)
			out = append(out, raw(p, typeHandshake, ticket[10:]+ticket, 7)...)
			return append(out, raw(p, typeApplicationData, "x", 0)...)
		}},
		{name: "the longest ticket", client: true, want: "x", send: func(p *Conn) []byte {
			n := maxTicket
			rest := string([]byte{4, byte(n >> 16), byte(n >> 8), byte(n & 0xff)}) + strings.Repeat("t", n)
			var out []byte
			for len(rest) > 0 {
				m := min(len(rest), MaxPlaintext)
				out = append(out, raw(p, typeHandshake, rest[:m], 0)...)
				rest = rest[m:]
			}
			return append(out, raw(p, typeApplicationData, "x", 0)...)
		}},
		{name: "ticket and KeyUpdate in one record", client: true, want: "x", send: func(p *Conn) []byte {
			out := raw(p, typeHandshake, ticket+update, 0)
			if err := p.out.next(); err != nil {
				panic(err)
			}
			return append(out, raw(p, typeApplicationData, "x", 0)...)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			peer, us := newPair(t, tls.TLS_AES_128_GCM_SHA256)
			if tt.client {
				peer, us = us, peer
			}
			got, rest, err := openAll(us, tt.send(peer))
			if string(got) != tt.want || len(rest) > 0 || err != nil {
				t.Errorf("got %q, rest %d, %v, want %q", got, len(rest), err, tt.want)
			}
		})
	}
}

func TestListenerMayChangeKeysForEver(t *testing.T) {
	client, server := newPair(t, tls.TLS_AES_128_GCM_SHA256)
	for range 3 * maxUseless {
		client.flags |= flagUpdateDue | flagAsk
		if _, _, err := openAll(server, client.AppendPending(nil)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := openAll(client, mustSeal(t, server, nil, []byte("news"))); err != nil {
			t.Fatal(err)
		}
	}
}

func TestKeyUpdateIsAnsweredBeforeTheNextData(t *testing.T) {
	forEachSuite(t, func(t *testing.T, id uint16) {
		client, server := newPair(t, id)
		for range 3 {
			client.flags |= flagUpdateDue | flagAsk
			if _, _, err := openAll(server, mustSeal(t, client, nil, nil)); err != nil {
				t.Fatal(err)
			}
			if !server.Pending() {
				t.Fatal("no answer is pending")
			}
			old := server.out.keys.secret
			answer := mustSeal(t, server, nil, []byte("data"))
			if server.out.keys.secret == old || server.Pending() || server.out.seq != 1 {
				t.Error("the server has not gone on to its next key")
			}
			if got, _, err := openAll(client, answer); string(got) != "data" || err != nil {
				t.Fatalf("got %q, %v", got, err)
			}
			if client.Pending() {
				t.Error("the answer asks for another")
			}
			if len(server.AppendPending(nil)) > 0 {
				t.Error("the answer is given twice")
			}
		}
	})
}

func TestManyRequestsHaveOneAnswer(t *testing.T) {
	client, server := newPair(t, tls.TLS_AES_128_GCM_SHA256)
	var in []byte
	for range 5 {
		client.flags |= flagUpdateDue | flagAsk
		in = client.AppendPending(in)
	}
	if _, _, err := openAll(server, in); err != nil {
		t.Fatal(err)
	}
	answer := server.AppendPending(nil)
	if len(answer) != keyUpdateSize+Overhead {
		t.Errorf("answer of %d bytes, want one record of %d", len(answer), keyUpdateSize+Overhead)
	}
	if got, _, err := openAll(client, mustSeal(t, server, answer, []byte("x"))); string(got) != "x" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestWriterRekeysByItself(t *testing.T) {
	forEachSuite(t, func(t *testing.T, id uint16) {
		client, server := newPair(t, id)
		client.out.seq, server.in.seq = rekeyAt-2, rekeyAt-2
		server.flags |= flagAsked // the reader's part has its own test
		msg := bytes.Repeat([]byte("m"), 5*MaxPlaintext)
		in := mustSeal(t, client, nil, msg)
		if client.out.seq != 3 {
			t.Errorf("%d records under the new key, want 3", client.out.seq)
		}
		got, rest, err := openAll(server, in)
		if !bytes.Equal(got, msg) || len(rest) > 0 || err != nil {
			t.Errorf("got %d bytes, rest %d, %v", len(got), len(rest), err)
		}
		if server.in.seq != 3 || server.flags&flagAsked != 0 {
			t.Errorf("the reader counts %d records, asked %v", server.in.seq, server.flags&flagAsked != 0)
		}
	})
}

func TestReaderAsksForANewKeyOnce(t *testing.T) {
	client, server := newPair(t, tls.TLS_AES_256_GCM_SHA384)
	client.out.seq, server.in.seq = rekeyAt-1, rekeyAt-1
	// A writer that does not rekey by itself, as crypto/tls.
	in := append(raw(client, typeApplicationData, "a", 0), raw(client, typeApplicationData, "b", 0)...)
	if got, _, err := openAll(server, in); string(got) != "ab" || err != nil {
		t.Fatalf("got %q, %v", got, err)
	}
	request := mustSeal(t, server, nil, []byte("data"))
	if got, _, err := openAll(client, request); string(got) != "data" || err != nil {
		t.Fatalf("got %q, %v", got, err)
	}
	more := raw(client, typeApplicationData, "c", 0)
	if got, _, err := openAll(server, more); string(got) != "c" || err != nil || server.Pending() {
		t.Fatalf("got %q, %v, asks again %v", got, err, server.Pending())
	}
	answer := mustSeal(t, client, nil, []byte("d"))
	if got, _, err := openAll(server, answer); string(got) != "d" || err != nil || server.in.seq != 1 {
		t.Errorf("got %q, %v, %d records under the new key", got, err, server.in.seq)
	}
}

func TestSequenceNumbersDoNotWrap(t *testing.T) {
	client, server := newPair(t, tls.TLS_AES_128_GCM_SHA256)
	client.out.seq, server.in.seq = math.MaxUint64-1, math.MaxUint64-1
	server.flags |= flagAsked
	in := append(raw(client, typeApplicationData, "a", 0), raw(client, typeApplicationData, "b", 0)...)
	got, _, err := openAll(server, in)
	fault, ok := errors.AsType[*AlertError](err)
	if string(got) != "a" || !ok || fault.Alert != AlertInternalError {
		t.Errorf("got %q, %v, want the last record and a fault", got, err)
	}
}

func TestCloseNotifyEndsOneDirection(t *testing.T) {
	client, server := newPair(t, tls.TLS_AES_128_GCM_SHA256)
	in := client.CloseNotify(mustSeal(t, client, nil, []byte("bye")))
	if len(client.CloseNotify(nil)) != 0 {
		t.Error("close_notify is sent twice")
	}
	if out, err := client.Seal([]byte(">"), []byte("x")); err != ErrClosed || string(out) != ">" {
		t.Errorf("Seal after CloseNotify: %q, %v", out, err)
	}
	got, rest, err := openAll(server, append(in, "whatever comes"...))
	if string(got) != "bye" || err != io.EOF || !server.PeerClosed() {
		t.Errorf("got %q, %v, closed %v", got, err, server.PeerClosed())
	}
	if n, p, err := server.Open(rest); n != len(rest) || p != nil || err != io.EOF {
		t.Errorf("behind the end: %d, %q, %v", n, p, err)
	}
	if err := server.End(0); err != nil {
		t.Errorf("End: %v", err)
	}
	answer := server.CloseNotify(mustSeal(t, server, nil, []byte("reply")))
	if got, _, err := openAll(client, answer); string(got) != "reply" || err != io.EOF {
		t.Errorf("the other direction: %q, %v", got, err)
	}
}

func TestPeerThatHasClosedIsAskedForNothing(t *testing.T) {
	client, server := newPair(t, tls.TLS_AES_128_GCM_SHA256)
	client.out.seq, server.in.seq = rekeyAt-1, rekeyAt-1
	in := append(raw(client, typeApplicationData, "a", 0), raw(client, typeAlert, "\x01\x00", 0)...)
	if got, _, err := openAll(server, in); string(got) != "a" || err != io.EOF {
		t.Fatalf("got %q, %v", got, err)
	}
	if got, _, err := openAll(client, mustSeal(t, server, nil, []byte("b"))); string(got) != "b" || err != nil || client.Pending() {
		t.Errorf("got %q, %v, asked %v", got, err, client.Pending())
	}
}

func TestStreamThatEndsWithoutCloseNotifyIsTruncated(t *testing.T) {
	_, server := newPair(t, tls.TLS_AES_128_GCM_SHA256)
	if err := server.End(3); !errors.Is(err, ErrTruncated) {
		t.Errorf("got %v, want ErrTruncated", err)
	}
}

func TestPeersAlertIsReported(t *testing.T) {
	for _, alert := range []Alert{AlertBadRecordMAC, AlertInternalError, 40, 200} {
		t.Run(alert.String(), func(t *testing.T) {
			client, server := newPair(t, tls.TLS_AES_128_GCM_SHA256)
			// The level says nothing in TLS 1.3.
			in := raw(client, typeAlert, string([]byte{1, byte(alert)}), 0)
			_, _, err := openAll(server, in)
			got, ok := errors.AsType[*AlertError](err)
			if !ok || !got.Remote || got.Alert != alert || server.Pending() {
				t.Errorf("got %v, pending %v", err, server.Pending())
			}
			if len(server.CloseNotify(nil)) > 0 {
				t.Error("a fatal alert is answered")
			}
		})
	}
}

func TestNothingPrintsSecrets(t *testing.T) {
	client, server := newPair(t, tls.TLS_AES_128_GCM_SHA256)
	type wraps struct {
		pointer *Conn
		value   Conn
		h       *Handshake
		hv      Handshake
	}
	h := Server(t.Context(), &tls.Config{})
	defer h.Abort()
	h.tr.secrets.client = bytes.Repeat([]byte{'c'}, 32)
	secrets := [][]byte{server.in.keys.secret[:32], server.out.keys.secret[:32], server.in.keys.iv[:], server.out.keys.iv[:]}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%X", "%q", "%d", "%o", "%b"} {
		for _, arg := range []any{client, server, *server, &server, []*Conn{server}, h, *h,
			wraps{server, *server, h, *h}, &wraps{server, *server, h, *h}, map[string]Conn{"c": *server}, Result{Conn: server}} {
			text := fmt.Sprintf(verb, arg)
			for _, secret := range secrets {
				for _, form := range []string{"%s", "%x", "%X", "%d", "%#v", "%o", "%b"} {
					inner := strings.Trim(fmt.Sprintf(form, secret[:8]), "[]{}")
					if _, list, ok := strings.Cut(inner, "{"); ok {
						inner = list
					}
					if strings.Contains(text, inner) {
						t.Fatalf("%s of %T has a secret: %s", verb, arg, text)
					}
				}
			}
		}
	}
	if got := fmt.Sprint(server); got != "tlsrec.Conn{server 0x1301 in:0 out:0}" {
		t.Errorf("printed as %s", got)
	}
	if got := fmt.Sprint(Conn{}); got != "tlsrec.Conn{}" {
		t.Errorf("printed as %s", got)
	}
}

func TestDropLeavesNoSecret(t *testing.T) {
	client, server := newPair(t, tls.TLS_AES_128_GCM_SHA256)
	server.flags |= flagUpdateDue
	in := mustSeal(t, client, nil, []byte("x"))
	server.Drop()
	for _, h := range []*half{server.in, server.out} {
		if *h.keys != (keys{}) || h.aead != nil {
			t.Error("a secret is left")
		}
	}
	if n, _, err := server.Open(in); n != 0 || err == nil {
		t.Errorf("Open after Drop: %d, %v", n, err)
	}
	if _, err := server.Seal(nil, []byte("x")); err == nil {
		t.Error("Seal after Drop does not fail")
	}
	if _, err := server.AppendState(nil); err == nil {
		t.Error("AppendState after Drop does not fail")
	}
	if server.Pending() || len(server.AppendPending(nil)) > 0 || len(server.CloseNotify(nil)) > 0 {
		t.Error("something is sent after Drop")
	}
	server.Drop()
}

func TestOpenAndSealDoNotAllocate(t *testing.T) {
	forEachSuite(t, func(t *testing.T, id uint16) {
		if id == tls.TLS_CHACHA20_POLY1305_SHA256 && runtime.GOARCH != "amd64" {
			t.Skip("x/crypto has ChaCha20-Poly1305 as one piece for amd64 only; elsewhere it allocates")
		}
		client, server := newPair(t, id)
		buf := make([]byte, 0, 3*MaxRecord)
		for _, size := range []int{1, 64, 4096, 2 * MaxPlaintext} {
			msg := make([]byte, size)
			n := testing.AllocsPerRun(100, func() {
				out, err := client.Seal(buf[:0], msg)
				if err != nil {
					t.Fatal(err)
				}
				if _, p, err := server.OpenAll(out); len(p) != size || err != nil {
					t.Fatal(len(p), err)
				}
			})
			if n != 0 {
				t.Errorf("%d bytes: %v allocations", size, n)
			}
		}
		state := make([]byte, 0, MaxState)
		if n := testing.AllocsPerRun(100, func() {
			if _, err := server.AppendState(state); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("AppendState: %v allocations", n)
		}
	})
}

func TestIdleConnectionIsSmall(t *testing.T) {
	const n = 1000
	conns := make([]*Conn, n)
	var before, after runtime.MemStats
	client, _ := newPair(t, tls.TLS_AES_256_GCM_SHA384)
	state, err := client.AppendState(nil)
	if err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range conns {
		if conns[i], err = RestoreState(state); err != nil {
			t.Fatal(err)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	runtime.KeepAlive(conns)
	got := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / n
	t.Logf("%d bytes of heap a connection", got)
	if got > 2048 {
		t.Errorf("%d bytes of heap a connection, want at most 2048", got)
	}
}

// FuzzOpen gives the reader bytes of a peer that has the keys, and of one that
// has not: no input may do anything but advance, wait or fail.
func FuzzOpen(f *testing.F) {
	for _, tt := range badRecords {
		client, server := newPair(f, tls.TLS_AES_128_GCM_SHA256)
		peer := client
		if tt.client {
			peer = server
		}
		if in := tt.make(peer); len(in) < 4096 {
			f.Add(in, []byte("\x18\x00\x00\x01\x00\x16"), tt.client, 3)
		}
	}
	f.Add([]byte{}, []byte("hello\x17\x00\x00"), true, 1)
	f.Add([]byte{}, []byte("\x01\x00\x15"), false, 7)
	f.Fuzz(func(t *testing.T, foreign, inner []byte, client bool, step int) {
		if len(inner) > MaxPlaintext+1 {
			inner = inner[:MaxPlaintext+1]
		}
		if len(foreign) > 1<<16 {
			return
		}
		peer, us := newPair(t, tls.TLS_AES_128_GCM_SHA256)
		if client {
			peer, us = us, peer
		}
		// A record whose whole content is the fuzzer's, then the foreign bytes.
		var in []byte
		if n := len(inner); n > 0 {
			in = peer.out.seal(in, contentType(inner[n-1]), inner[:n-1])
		}
		in = append(in, foreign...)
		step = max(1, step%977)

		// The same, whole and in steps, moved to another process at each step.
		twin, err := RestoreState(mustState(t, us))
		if err != nil {
			t.Fatal(err)
		}
		whole, wholeRest, wholeErr := openAll(us, bytes.Clone(in))
		var parts, pending []byte
		var partsErr error
		for len(in) > 0 && partsErr == nil {
			n := min(step, len(in))
			pending = append(pending, in[:n]...)
			in = in[n:]
			var p []byte
			p, pending, partsErr = openAll(twin, pending)
			parts = append(parts, p...)
			if partsErr == nil {
				if twin, err = RestoreState(mustState(t, twin)); err != nil {
					t.Fatalf("own state is refused: %v", err)
				}
			}
		}
		if !bytes.Equal(whole, parts) || fmt.Sprint(wholeErr) != fmt.Sprint(partsErr) {
			t.Fatalf("whole %q %v, in parts %q %v", whole, wholeErr, parts, partsErr)
		}
		if wholeErr == nil && (!bytes.Equal(wholeRest, pending) || len(pending) >= MaxRecord) {
			t.Fatalf("rest %d bytes, in parts %d", len(wholeRest), len(pending))
		}
		us.AppendPending(nil)
		us.CloseNotify(nil)
	})
}

func mustState(t testing.TB, c *Conn) []byte {
	t.Helper()
	state, err := c.AppendState(nil)
	if err != nil {
		t.Fatal(err)
	}
	return state
}

func BenchmarkSeal(b *testing.B) {
	for _, size := range []int{64, 4096, MaxPlaintext} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			client, _ := newPair(b, tls.TLS_AES_128_GCM_SHA256)
			msg, buf := make([]byte, size), make([]byte, 0, MaxRecord)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := client.Seal(buf, msg); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	for _, size := range []int{64, 4096, MaxPlaintext} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			client, server := newPair(b, tls.TLS_AES_128_GCM_SHA256)
			record := mustSeal(b, client, nil, make([]byte, size))
			buf := make([]byte, len(record))
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				copy(buf, record)
				server.in.seq = 0
				if _, _, err := server.Open(buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkRestoreState(b *testing.B) {
	client, _ := newPair(b, tls.TLS_AES_128_GCM_SHA256)
	state := mustState(b, client)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := RestoreState(state); err != nil {
			b.Fatal(err)
		}
	}
}
