package main

import (
	"bufio"
	"bytes"
	"compress/flate"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

const upgrade = "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n" +
	"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"

// masked is a frame of a client, with a mask of zeros, of less than 64 KiB.
func masked(first byte, payload []byte) []byte {
	b := []byte{first, 0x80 | 126, byte(len(payload) >> 8), byte(len(payload)), 0, 0, 0, 0}
	if len(payload) < 126 {
		b = []byte{first, 0x80 | byte(len(payload)), 0, 0, 0, 0}
	}
	return append(b, payload...)
}

// openWebSocket does the handshake; what comes then is read from the reader.
func (v *visit) openWebSocket() (*bufio.Reader, error) {
	if _, err := io.WriteString(v, upgrade); err != nil {
		return nil, err
	}
	in := bufio.NewReader(v)
	r, err := http.ReadResponse(in, nil)
	if err != nil {
		return nil, err
	}
	if r.StatusCode != http.StatusSwitchingProtocols {
		return nil, fmt.Errorf("status %s", r.Status)
	}
	return in, nil
}

// expectClose reads a close with that code, and then the end.
func expectClose(in *bufio.Reader, code uint16) error {
	head := make([]byte, 4)
	if _, err := io.ReadFull(in, head); err != nil {
		return err
	}
	if got := binary.BigEndian.Uint16(head[2:]); head[0] != 0x88 || got != code {
		return fmt.Errorf("got %x, want a close with code %d", head, code)
	}
	rest, err := io.ReadAll(in)
	if err != nil || len(rest) != int(head[1])-2 {
		return fmt.Errorf("got %q, %w, want a reason of %d bytes and the end", rest, err, head[1]-2)
	}
	return nil
}

// breakWebSocket is told what is wrong with the bytes it sends.
func (v *visit) breakWebSocket(bytes string, code uint16) error {
	in, err := v.openWebSocket()
	if err != nil {
		return err
	}
	if _, err := io.WriteString(v, bytes); err != nil {
		return err
	}
	return expectClose(in, code)
}

// sendBomb sends little that would become 4 MiB.
func sendBomb(v *visit) error {
	var packed bytes.Buffer
	w, err := flate.NewWriter(&packed, flate.BestCompression)
	if err != nil {
		return err
	}
	w.Write(make([]byte, 4<<20))
	w.Flush()
	return v.breakWebSocket(string(masked(0xc2, packed.Bytes()[:packed.Len()-4])), 1009)
}

// dribbleFragments sends parts of a message, and pings, that never come to an
// end.
func dribbleFragments(v *visit) error {
	in, err := v.openWebSocket()
	if err != nil {
		return err
	}
	from := time.Now()
	if _, err := v.Write(masked(0x01, []byte("never"))); err != nil {
		return err
	}
	to := time.Now()
	end := make(chan error, 1)
	go func() {
		for {
			// A pong is what the pings get.
			head, err := in.Peek(2)
			if err != nil || head[0] != 0x8a {
				end <- expectClose(in, 1008)
				return
			}
			in.Discard(2)
		}
	}()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-end:
			if err != nil {
				return err
			}
			return v.in(from, to)
		case <-tick.C:
			v.Write(append(masked(0x00, []byte("x")), masked(0x89, nil)...)) // it is the reader that is told the end
		}
	}
}

// goOnAfterTheClose is answered, told the end, and cut off when it does not
// stop.
func goOnAfterTheClose(v *visit) error {
	from := time.Now()
	if err := v.breakWebSocket(string(masked(0x88, []byte("\x03\xe8"))), 1000); err != nil {
		return err
	}
	to := time.Now()
	frame := masked(0x82, []byte(strings.Repeat("x", 1000)))
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := v.Write(frame); isGone(err) {
			return v.in(from, to)
		} else if err != nil {
			return err
		}
		<-tick.C
	}
}

// pingAndNeverRead sends pings for as long as it can, as neverRead does.
func pingAndNeverRead(v *visit) error {
	if _, err := v.openWebSocket(); err != nil {
		return err
	}
	pings := bytes.Repeat(masked(0x89, []byte(strings.Repeat("p", 125))), 32)
	return v.sendAndNeverRead(func(int) []byte { return pings })
}
