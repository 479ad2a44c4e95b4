package tlsrec

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"time"
)

// wantInput is what tls.Conn gets when there is no input and nobody waits for
// it. crypto/tls takes a net.Error that is Temporary for one that passes.
type wantInput struct{}

func (wantInput) Error() string   { return "tlsrec: more input is wanted" }
func (wantInput) Timeout() bool   { return true }
func (wantInput) Temporary() bool { return true }

// transport is the net.Conn of crypto/tls, and the io.Writer of its secrets.
// Memory is all there is behind it, unless a Legacy is attached to something.
//
// It gives out no byte beyond the record that is asked for. So crypto/tls has
// taken, when the handshake is over, what belongs to the handshake, and the
// first byte that is left is the first under the new keys.
type transport struct {
	in  []byte
	out []byte

	// Where in a record the input stands: header bytes seen, body bytes left.
	header    [headerSize]byte
	headerLen int
	bodyLeft  int

	taken int              // bytes given out
	limit int              // of taken; 0: none
	wait  func() (ok bool) // comes back when there is input, false: never will; nil: nobody waits
	err   error            // why Read fails from now on
	below net.Conn         // of Legacy.Attach; nil: memory

	client  bool
	secrets *secrets  // as logged
	log     io.Writer // of the application's own key log; nil: none
	suite   *suite    // the server's choice, if it is one of ours
	sent    *half     // the server's direction, as soon as its key is in use
	fault   error     // what went wrong with the secrets
}

// secrets are the traffic secrets of the application data. As keys, they are
// two pointers away from a Handshake, so that fmt does not get at them.
type secrets struct{ client, server []byte }

// Read gives crypto/tls at most the rest of the present record.
func (t *transport) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if t.below != nil && len(t.in) == 0 {
		return t.below.Read(p)
	}
	for t.err == nil && len(t.in) == 0 {
		if t.wait == nil {
			return 0, wantInput{}
		}
		if !t.wait() && t.err == nil {
			t.err = net.ErrClosed
		}
	}
	if t.err != nil {
		return 0, t.err
	}
	var n int
	if t.bodyLeft > 0 {
		n = copy(p, t.in[:min(len(t.in), t.bodyLeft)])
		t.bodyLeft -= n
	} else {
		n = copy(p, t.in[:min(len(t.in), headerSize-t.headerLen)])
		copy(t.header[t.headerLen:], p[:n])
		if t.headerLen += n; t.headerLen == headerSize {
			t.headerLen, t.bodyLeft = 0, int(t.header[3])<<8|int(t.header[4])
		}
	}
	if t.in = t.in[n:]; len(t.in) == 0 {
		t.in = nil // nothing is kept for nothing
	}
	t.taken += n
	if t.limit > 0 && t.taken > t.limit {
		t.err = fmt.Errorf("%w: over %d bytes", ErrFlood, t.limit)
		return 0, t.err
	}
	return n, nil
}

// Write keeps what crypto/tls sends, which is always whole records.
func (t *transport) Write(p []byte) (int, error) {
	if t.below != nil {
		return t.below.Write(p)
	}
	if !t.client {
		t.count(p)
	}
	t.out = append(t.out, p...)
	return len(p), nil
}

// count finds out which of the server's records are under its final key:
// session tickets, in the flight of its Finished or after. Each that opens
// with that key is the next of them, and sent counts it.
func (t *transport) count(p []byte) {
	if t.suite == nil {
		t.suite = suiteOfServerHello(p)
	}
	if t.sent == nil {
		if t.suite == nil || t.secrets.server == nil {
			return // that key is not yet in use
		}
		if t.sent, t.fault = newHalf(t.suite, t.secrets.server, 0); t.fault != nil {
			return
		}
	}
	var scratch []byte
	for len(p) >= headerSize {
		n := min(headerSize+(int(p[3])<<8|int(p[4])), len(p))
		if p[0] == byte(typeApplicationData) && n >= headerSize+1+tagSize {
			scratch = append(scratch[:0], p[:n]...)
			// One of before the Finished is under another key.
			_, _ = t.sent.open(scratch)
		}
		p = p[n:]
	}
}

// suiteOfServerHello returns what the ServerHello, or HelloRetryRequest, at the
// start of p has chosen, RFC 8446 4.1.3; nil if there is none, or none for us.
func suiteOfServerHello(p []byte) *suite {
	const sessionID = headerSize + messageHeader + 2 + 32
	if len(p) <= sessionID || p[0] != byte(typeHandshake) || p[headerSize] != messageServerHello {
		return nil
	}
	at := sessionID + 1 + int(p[sessionID])
	if len(p) < at+2 {
		return nil
	}
	return suiteOf(uint16(p[at])<<8 | uint16(p[at+1]))
}

// logSecret is Config.KeyLogWriter.Write: "LABEL client_random secret\n".
func (t *transport) logSecret(line []byte) (int, error) {
	if t.log != nil {
		if n, err := t.log.Write(line); err != nil {
			return n, err
		}
	}
	label, rest, _ := bytes.Cut(line, []byte(" "))
	var keep *[]byte
	switch string(label) {
	case "CLIENT_TRAFFIC_SECRET_0":
		keep = &t.secrets.client
	case "SERVER_TRAFFIC_SECRET_0":
		keep = &t.secrets.server
	default:
		return len(line), nil
	}
	_, text, _ := bytes.Cut(bytes.TrimSpace(rest), []byte(" "))
	secret := make([]byte, hex.DecodedLen(len(text)))
	if _, err := hex.Decode(secret, text); err != nil {
		t.fault = fmt.Errorf("tlsrec: key log: %s is not hexadecimal", label)
		return len(line), nil
	}
	*keep = secret
	return len(line), nil
}

// forget overwrites the secrets.
func (t *transport) forget() {
	clear(t.secrets.client)
	clear(t.secrets.server)
	if t.sent != nil {
		t.sent.drop()
	}
}

// NetConn returns what Legacy.Attach was given.
func (t *transport) NetConn() net.Conn { return t.below }

// The rest of net.Conn. A deadline is the business of whoever calls Step.

func (t *transport) Close() error {
	if t.below != nil {
		return t.below.Close()
	}
	return nil
}

func (t *transport) LocalAddr() net.Addr {
	if t.below != nil {
		return t.below.LocalAddr()
	}
	return memoryAddr{}
}

func (t *transport) RemoteAddr() net.Addr {
	if t.below != nil {
		return t.below.RemoteAddr()
	}
	return memoryAddr{}
}

func (t *transport) SetDeadline(at time.Time) error {
	if t.below != nil {
		return t.below.SetDeadline(at)
	}
	return nil
}

func (t *transport) SetReadDeadline(at time.Time) error {
	if t.below != nil {
		return t.below.SetReadDeadline(at)
	}
	return nil
}

func (t *transport) SetWriteDeadline(at time.Time) error {
	if t.below != nil {
		return t.below.SetWriteDeadline(at)
	}
	return nil
}

type memoryAddr struct{}

func (memoryAddr) Network() string { return "memory" }
func (memoryAddr) String() string  { return "memory" }

// keyLog is a transport as the io.Writer that gets the secrets.
type keyLog struct{ t *transport }

func (k keyLog) Write(line []byte) (int, error) { return k.t.logSecret(line) }
