// Command frames is a whole service with two protocols whose messages say how
// long they are, and which it sends back in capital letters. One has a length
// field, as most binary protocols: a byte of type, two bytes of length, little
// endian, and the body; that needs no code. The other is netstrings, and is
// written here: a length in digits, a colon, so many bytes, and a comma. Run it
// with "go run ./examples/frames run" and try
//
//	printf '\1\5\0hello' | nc -N 127.0.0.1 7002
//	printf '5:hello,0:,' | nc -N 127.0.0.1 7001
package main

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"

	"github.com/mainstay-go/mainstay/pkg/service"
	"github.com/mainstay-go/mainstay/pkg/wire/length"
)

// netstrings is the protocol. It keeps nothing, so one serves all connections.
type netstrings struct{ most int }

var errNetstring = errors.New("not a netstring")

// Split returns the first message of in, and by how much in is to be advanced;
// 0 means that its end has not come yet. It is called again with more then, so
// it looks at the length first: nobody waits for more than can be delivered.
func (p netstrings) Split(in []byte, _ bool) (advance int, msg []byte, ok bool, err error) {
	digits, _, found := bytes.Cut(in[:min(len(in), len(strconv.Itoa(p.most))+1)], []byte(":"))
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, nil, false, fmt.Errorf("%w: %q in its length", errNetstring, c)
		}
	}
	if !found {
		if len(digits) > len(strconv.Itoa(p.most)) {
			return 0, nil, false, fmt.Errorf("%w: length of %d digits and more", errNetstring, len(digits))
		}
		return 0, nil, false, nil
	}
	n, err := strconv.Atoi(string(digits))
	if err != nil || n > p.most {
		return 0, nil, false, fmt.Errorf("%w: length %q, want at most %d", errNetstring, digits, p.most)
	}
	end := len(digits) + 1 + n
	switch {
	case len(in) <= end:
		return 0, nil, false, nil
	case in[end] != ',':
		return 0, nil, false, fmt.Errorf("%w: %q at its end", errNetstring, in[end])
	}
	return end + 1, in[len(digits)+1 : end], true, nil
}

// Append appends the encoding of msg to dst.
func (p netstrings) Append(dst, msg []byte) ([]byte, error) {
	dst = strconv.AppendInt(dst, int64(len(msg)), 10)
	dst = append(append(dst, ':'), msg...)
	return append(dst, ','), nil
}

// packages says where the length stands, and from where on it counts. A
// message is the whole package.
var packages = length.Protocol{Offset: 1, Size: 2, LittleEndian: true, BodyOffset: 3}

func main() {
	s := service.New("frames")
	s.Listen("package", "tcp://127.0.0.1:7002", service.Length[struct{}]{
		Format: packages,
		OnMessage: func(c *service.Conn[struct{}], m []byte) {
			head, body := m[:3], m[3:]
			c.Send(append(bytes.Clone(head), bytes.ToUpper(body)...))
		},
		Inline: true, // nothing here blocks
	})
	s.Listen("netstring", "tcp://127.0.0.1:7001", service.Framed[struct{}]{
		Protocol:  netstrings{most: 64 << 10},
		OnMessage: func(c *service.Conn[struct{}], m []byte) { c.Send(bytes.ToUpper(m)) },
		Inline:    true, // nothing here blocks
	})
	s.Main()
}
