package tlsrec

import "slices"

// Handshake messages, RFC 8446 4:
//
//	type    1 byte
//	length  3 bytes
//	body    KeyUpdate: 1 byte, update_requested; NewSessionTicket: as its length says
const (
	messageServerHello      = 2
	messageNewSessionTicket = 4
	messageKeyUpdate        = 24

	messageHeader = 4
	keyUpdateSize = messageHeader + 1

	// The least and the most that RFC 8446 4.6.1 lets a ticket have:
	// lifetime 4, age_add 4, nonce 1+0..255, ticket 2+1..65535, extensions 2+0..65534.
	minTicket = 4 + 4 + 1 + 2 + 1 + 2
	maxTicket = 4 + 4 + 1 + 255 + 2 + 65535 + 2 + 65534
)

// midMessage reports whether a handshake message is incomplete: nothing else
// may come before its rest, RFC 8446 5.1.
func (c *Conn) midMessage() bool { return c.headLen > 0 || c.skip > 0 }

// postHandshake takes a part of the stream of handshake messages, of which a
// message may be anywhere, also spread over records.
func (c *Conn) postHandshake(p []byte) error {
	if len(p) == 0 {
		return c.failf(AlertUnexpectedMessage, "handshake record without content")
	}
	for len(p) > 0 {
		if c.skip > 0 {
			n := min(uint32(len(p)), c.skip)
			c.skip -= n
			p = p[n:]
			continue
		}
		c.head[c.headLen] = p[0]
		c.headLen++
		p = p[1:]
		var err error
		switch c.headLen {
		case messageHeader:
			err = c.message()
		case keyUpdateSize:
			c.headLen = 0
			err = c.keyUpdate(c.head[messageHeader], len(p))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// message looks at a message's type and length.
func (c *Conn) message() error {
	typ := c.head[0]
	n := uint32(c.head[1])<<16 | uint32(c.head[2])<<8 | uint32(c.head[3])
	switch {
	case typ == messageKeyUpdate && n == 1:
		return nil // its byte is wanted
	case typ == messageNewSessionTicket && c.flags&flagClient != 0 && n >= minTicket && n <= maxTicket:
		c.headLen, c.skip = 0, n // we do not resume
		return nil
	case typ == messageKeyUpdate, typ == messageNewSessionTicket && c.flags&flagClient != 0:
		return c.failf(AlertDecodeError, "handshake message of type %d with %d bytes", typ, n)
	}
	// A request for a certificate, too: we never offer post_handshake_auth.
	return c.failf(AlertUnexpectedMessage, "handshake message of type %d after the handshake", typ)
}

// keyUpdate goes on to the peer's next key, RFC 8446 4.6.3. rest is how much
// of the record is left behind the message.
func (c *Conn) keyUpdate(request byte, rest int) error {
	switch {
	case request > 1:
		return c.failf(AlertIllegalParameter, "KeyUpdate with request_update %d", request)
	case rest > 0:
		// Under the old key, but after it: RFC 8446 5.1.
		return c.failf(AlertUnexpectedMessage, "%d bytes behind a KeyUpdate in its record", rest)
	}
	if err := c.in.next(); err != nil {
		return c.failf(AlertInternalError, "%w", err)
	}
	c.updates++
	c.flags &^= flagAsked | flagAsk
	if request == 1 {
		c.flags |= flagUpdateDue
	}
	return nil
}

// appendUpdate appends a KeyUpdate, and goes on to our next key, if that is
// owed or our key has protected enough records.
func (c *Conn) appendUpdate(dst []byte) ([]byte, error) {
	if c.flags&flagUpdateDue == 0 && c.out.seq < rekeyAt {
		return dst, nil
	}
	message := [keyUpdateSize]byte{messageKeyUpdate, 0, 0, 1, 0}
	if c.flags&flagAsk != 0 {
		message[messageHeader] = 1
	}
	c.flags &^= flagUpdateDue | flagAsk
	at := len(dst)
	dst = c.out.seal(slices.Grow(dst, len(message)+Overhead), typeHandshake, message[:])
	if err := c.out.next(); err != nil {
		c.flags |= flagClosed
		c.err = err
		return dst[:at], err
	}
	c.updates++
	return dst, nil
}
