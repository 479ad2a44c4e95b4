package talk

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
)

// Tongue is how a line and its answer go over a connection.
type Tongue int

const (
	Lines     Tongue = iota // each ends with a newline
	Bytes                   // as they are; the answer is the line and nothing else
	WebSocket               // a text message each
	HTTP                    // the body of a POST and that of its answer, on one connection
)

// String names it.
func (t Tongue) String() string {
	return [...]string{"lines", "bytes", "websocket", "http"}[t]
}

// greet does what comes before the first line.
func (t Tongue) greet(conn net.Conn, in *bufio.Reader) error {
	if t != WebSocket {
		return nil
	}
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: talk\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"); err != nil {
		return err
	}
	r, err := http.ReadResponse(in, nil)
	if err != nil {
		return err
	}
	if r.StatusCode != http.StatusSwitchingProtocols {
		return fmt.Errorf("%w: %s", errWrong, r.Status)
	}
	return nil
}

// ask sends a line and returns the answer to it.
func (t Tongue) ask(conn net.Conn, in *bufio.Reader, line string) (answer string, err error) {
	if _, err := io.WriteString(conn, t.message(line)); err != nil {
		return "", err
	}
	switch t {
	case Bytes:
		b := make([]byte, len(line))
		_, err = io.ReadFull(in, b)
		return string(b), err
	case WebSocket:
		return readFrame(in)
	case HTTP:
		r, err := http.ReadResponse(in, nil)
		if err != nil {
			return "", err
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		if err == nil && r.StatusCode != http.StatusOK {
			err = fmt.Errorf("%w: %s: %.60q", errWrong, r.Status, b)
		}
		return string(b), err
	}
	answer, err = in.ReadString('\n')
	return strings.TrimSuffix(answer, "\n"), err
}

// message is what is sent for a line.
func (t Tongue) message(line string) string {
	switch t {
	case Bytes:
		return line
	case WebSocket: // one frame of at most 125 bytes, masked by a key of zeros (RFC 6455, 5.2)
		return string([]byte{0x81, 0x80 | byte(len(line)), 0, 0, 0, 0}) + line
	case HTTP:
		return fmt.Sprintf("POST / HTTP/1.1\r\nHost: talk\r\nContent-Length: %d\r\n\r\n%s", len(line), line)
	}
	return line + "\n"
}

// closeFrame is the first byte of a WebSocket's last frame.
const closeFrame = 0x88

var errGoodbye = errors.New("closed by the server's goodbye")

// readFrame reads a text message of one frame.
func readFrame(in *bufio.Reader) (string, error) {
	var head [2]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return "", err
	}
	if head[0] == closeFrame {
		return "", errGoodbye
	}
	if head[0] != 0x81 || head[1] > 125 {
		rest, _ := in.Peek(in.Buffered()) // for the message only
		return "", fmt.Errorf("%w: frame %x, %.60q", errWrong, head, rest)
	}
	payload := make([]byte, head[1])
	_, err := io.ReadFull(in, payload)
	return string(payload), err
}
