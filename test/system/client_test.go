package system

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// echoed sends a text to an echo socket on a new connection and wants it back.
func (s *service) echoed(unit, text string) error {
	conn, err := s.dial(s.address(unit))
	if err != nil {
		return err
	}
	defer conn.Close()
	return echo(conn, text)
}

// echo sends a text on a connection and wants it back within a while.
func echo(conn net.Conn, text string) error {
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, text); err != nil {
		return err
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(conn, got); err != nil {
		return err
	}
	if string(got) != text {
		return fmt.Errorf("%w: echo of %q is %q", errWrong, text, got)
	}
	return nil
}

// line sends a line on a new connection and returns the line that comes back,
// without its end.
func (s *service) line(unit, text string) (string, error) {
	conn, err := s.dial(s.address(unit))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return ask(conn, text)
}

func ask(conn net.Conn, text string) (string, error) {
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(conn, text+"\n"); err != nil {
		return "", err
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSuffix(answer, "\n"), err
}

// tally is what clients got.
type tally struct {
	answered, refused, reset, unanswered, wrong, other int

	longest time.Duration // from connect to the last byte of an answer
	first   error         // the first that was not answered
}

func (c tally) String() string {
	return fmt.Sprintf("%d answered (the longest took %v), %d refused, %d reset, %d unanswered, %d wrong, %d other; first: %v",
		c.answered, c.longest, c.refused, c.reset, c.unanswered, c.wrong, c.other, c.first)
}

// lost tells whether any request was not answered as it should be.
func (c tally) lost() bool {
	return c.refused+c.reset+c.unanswered+c.wrong+c.other > 0
}

var errWrong = errors.New("not what was sent")

func (c *tally) count(err error, took time.Duration) {
	switch timeout := net.Error(nil); {
	case err == nil:
		c.answered++
		c.longest = max(c.longest, took)
	case errors.Is(err, syscall.ECONNREFUSED):
		c.refused++
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		c.reset++
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.As(err, &timeout) && timeout.Timeout():
		c.unanswered++
	case errors.Is(err, errWrong):
		c.wrong++
	default:
		c.other++
	}
	if c.first == nil {
		c.first = err
	}
}

// Bounds of a hammer: it knocks at most this often, however long a test takes.
const (
	hammerClients = 4
	hammerPause   = 2 * time.Millisecond // of each client, between two connections
	hammerTime    = time.Minute
)

// hammer makes new connections to an echo socket, one request each, until the
// returned function is called; that returns what became of them.
func (s *service) hammer(unit string) (stop func() tally) {
	s.t.Helper()
	network, address := s.address(unit)
	var (
		mu       sync.Mutex
		total    tally
		stopping = make(chan struct{})
		clients  sync.WaitGroup
		once     sync.Once
	)
	for client := range hammerClients {
		clients.Go(func() {
			_ = s.inside(func() error { // what goes wrong is counted
				deadline := time.After(hammerTime)
				pause := time.NewTicker(hammerPause)
				defer pause.Stop()
				for n := 0; ; n++ {
					begin := time.Now()
					err := s.knock(network, address, fmt.Sprintf("client %d, request %d", client, n))
					mu.Lock()
					total.count(err, time.Since(begin))
					mu.Unlock()
					select {
					case <-stopping:
						return nil
					case <-deadline:
						return nil
					case <-pause.C:
					}
				}
			})
		})
	}
	stop = func() tally {
		once.Do(func() { close(stopping) })
		clients.Wait()
		return total
	}
	s.t.Cleanup(func() { stop() })
	// A hammer that does not hit would show nothing.
	eventually(s.t, 10*time.Second, func() error {
		mu.Lock()
		defer mu.Unlock()
		if total.answered < 10*hammerClients {
			return fmt.Errorf("the hammer does not get going: %v", total)
		}
		return nil
	})
	return stop
}

// knock makes one connection and one request, and reads until the end, so that
// a reset behind the answer is seen as well.
func (m *machine) knock(network, address, text string) error {
	conn, err := m.dialHere(network, address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := echo(conn, text); err != nil {
		return err
	}
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		if err := half.CloseWrite(); err != nil {
			return err
		}
	}
	switch more, err := io.ReadAll(conn); {
	case err != nil:
		return err
	case len(more) > 0:
		return fmt.Errorf("%w: %q behind the answer", errWrong, more)
	}
	return nil
}

// expectNoneLost ends the test if a hammer lost a request.
func expectNoneLost(t testing.TB, got tally) {
	t.Helper()
	t.Log(got)
	if got.lost() {
		t.Fatalf("clients lost requests: %v", got)
	}
}
