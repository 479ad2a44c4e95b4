package worker

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/activation"
	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/link"
	"github.com/mainstay-go/mainstay/pkg/rows"
)

// traveller is an application whose connections are in every state there is
// while they are moved.
type traveller struct {
	conn.NopHandler
	name string

	mu      *sync.Mutex
	waiting **conn.Conn // for the other end of its pipe
}

func (h traveller) OnMessage(c *conn.Conn, m []byte) {
	line := string(m)
	var n int
	switch {
	case line == "pause":
		c.Pause()
		c.Send([]byte("paused"))
		c.SetTimer("resume", 30*time.Millisecond)
	case line == "pipe":
		h.mu.Lock()
		defer h.mu.Unlock()
		if *h.waiting == nil {
			*h.waiting = c
			return
		}
		other := *h.waiting
		*h.waiting = nil
		for _, end := range []*conn.Conn{c, other} {
			end.Send([]byte("piped"))
		}
		if err := conn.Pipe(c, other); err != nil {
			c.Close(err)
		}
	case isMuch(line, &n):
		for i := range n {
			if err := c.Send(much(i)); err != nil {
				c.Close(err)
			}
		}
	default:
		c.Send([]byte(h.name + " " + line))
	}
}

func (h traveller) OnTimer(c *conn.Conn, name string) {
	c.Send([]byte(name))
	c.Resume()
}

func isMuch(line string, n *int) bool {
	_, err := fmt.Sscanf(line, "much %d", n)
	return err == nil
}

// much is line i of an answer that is longer than what the kernel takes.
func much(i int) []byte { return fmt.Appendf(nil, "%d %s", i, strings.Repeat("m", 1000)) }

// journey is clients of travellers.
type journey struct {
	t      *testing.T
	socket activation.Socket
	over   <-chan struct{} // no more rounds
	end    func()          // waits for the clients; also before the workers of a test that has failed go
	done   sync.WaitGroup
}

func newJourney(t *testing.T, s activation.Socket) *journey {
	over := make(chan struct{})
	j := &journey{t: t, socket: s, over: over}
	j.end = sync.OnceFunc(func() {
		close(over)
		j.done.Wait()
	})
	return j
}

// passenger is a client's connection.
type passenger struct {
	net.Conn
	lines *bufio.Scanner
}

func (j *journey) connect() (*passenger, error) {
	network, address, _ := strings.Cut(j.socket.Address, "://")
	c, err := net.Dial(network, address)
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(5 * patience))
	return &passenger{c, bufio.NewScanner(c)}, nil
}

func (p *passenger) say(format string, args ...any) error {
	_, err := fmt.Fprintf(p, format, args...)
	return err
}

// hear reads a line.
func (p *passenger) hear() (string, error) {
	if !p.lines.Scan() {
		return "", errors.Join(p.lines.Err(), io.ErrUnexpectedEOF)
	}
	return p.lines.Text(), nil
}

// hears reads a line and compares its end.
func (p *passenger) hears(want string) error {
	got, err := p.hear()
	if err == nil && !strings.HasSuffix(got, want) {
		err = fmt.Errorf("heard %.100q, want %.100q", got, want)
	}
	return err
}

func (p *passenger) hearsMuch(n int, pause func()) error {
	for i := range n {
		got, err := p.hear()
		if err != nil || got != string(much(i)) {
			return fmt.Errorf("line %d of %d: %.100q, %w", i, n, got, err)
		}
		if i%16 == 0 {
			pause()
		}
	}
	return nil
}

// travels has clients do something again and again until the rounds are over,
// and returns how often they have.
func (j *journey) travels(clients int, what string, do func(n int) error) *atomic.Int64 {
	count := new(atomic.Int64)
	for range clients {
		j.done.Go(func() {
			for n := 0; ; n++ {
				if err := do(n); err != nil {
					j.t.Errorf("%s, time %d: %v", what, n, err)
					return
				}
				count.Add(1)
				select {
				case <-j.over:
					return
				default:
				}
			}
		})
	}
	return count
}

// on is travels of clients who have one connection each.
func (j *journey) on(clients int, what string, do func(p *passenger, n int) error) *atomic.Int64 {
	var all atomic.Int64
	for range clients {
		p, err := j.connect()
		if err != nil {
			j.t.Fatal(err)
		}
		j.t.Cleanup(func() { p.Close() })
		j.travels(1, what, func(n int) error {
			all.Add(1)
			return do(p, n)
		})
	}
	return &all
}

func someTime() { <-time.After(time.Duration(rand.IntN(10)) * time.Millisecond) }

func TestConnectionsInEveryStateGoRoundAndRound(t *testing.T) {
	for _, tt := range []struct {
		name   string
		inline bool
		url    string
	}{
		{"TCP, on the pool", false, "tcp://127.0.0.1:0"},
		{"TCP, inline", true, "tcp://127.0.0.1:0"},
		{"unix", false, "unix://" + filepath.Join(t.TempDir(), "s")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			helper := "traveller"
			if !tt.inline {
				helper += " on the pool"
			}
			s := listenOn(t, tt.url)
			cl := newCluster(t)
			workers := []*proc{cl.spawn(helper, 0, 1, s).serve()}
			j := newJourney(t, s)
			defer j.end()
			// While there is one worker, the two ends of a pipe meet.
			counts := map[string]*atomic.Int64{"pipes": j.pipes(5)}
			for slot := 1; slot < 3; slot++ {
				workers = append(workers, cl.spawn(helper, slot, 1, s).serve())
			}
			counts["half frames"] = j.on(10, "half a frame", func(p *passenger, n int) error {
				if err := p.say("half of"); err != nil {
					return err
				}
				someTime()
				return errors.Join(p.say(" %d\n", n), p.hears(fmt.Sprintf(" half of %d", n)))
			})
			counts["slow readers"] = j.on(5, "megabytes to a slow reader", func(p *passenger, n int) error {
				return errors.Join(p.say("much %d\n", 2500), p.hearsMuch(2500, func() { <-time.After(100 * time.Microsecond) }))
			})
			counts["pauses"] = j.on(10, "pause and resume", func(p *passenger, n int) error {
				err := errors.Join(p.say("pause\n"), p.hears("paused"))
				return errors.Join(err, p.say("%d\n", n), p.hears("resume"), p.hears(fmt.Sprintf(" %d", n)))
			})
			counts["half closed"] = j.travels(5, "half closed", func(int) error {
				p, err := j.connect()
				if err != nil {
					return err
				}
				defer p.Close()
				if err := p.say("much %d\nlast", 1000); err != nil {
					return err
				}
				if err := p.Conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
					return err
				}
				if err := p.hearsMuch(1000, someTimes(8)); err != nil {
					return err
				}
				if p.lines.Scan() || p.lines.Err() != nil {
					return fmt.Errorf("%.100q after all, %w", p.lines.Text(), p.lines.Err())
				}
				return nil
			})
			counts["closed on the way"] = j.travels(5, "closed on the way", func(n int) error {
				p, err := j.connect()
				if err != nil {
					return err
				}
				defer p.Close()
				if tcp, ok := p.Conn.(*net.TCPConn); ok && n%2 == 0 {
					tcp.SetLinger(0) // a reset
				}
				err = errors.Join(p.say("who %d\n", n), p.hears(fmt.Sprintf(" who %d", n)), p.say("much 100\nhal"))
				someTime()
				return err
			})

			rounds := 45
			if testing.Short() {
				rounds = 9
			}
			for round := range rounds {
				from, to := workers[round%3], workers[(round+1)%3]
				from.ask(uint64(round)+1, "give", link.GiveRequest{Count: 1000, To: []uint64{to.incarnation}})
				var r link.GiveResult
				if a := from.answer(); json.Unmarshal(a.text, &r) != nil {
					t.Errorf("round %d: %q", round, a.text)
				}
			}
			for what, n := range counts {
				await(t, "some of: "+what, func() bool { return n.Load() > 10 || t.Failed() })
			}
			j.end()
			var given, taken, open uint64
			for _, w := range workers {
				given += w.seat.HandoffsGiven.Load()
				taken += w.seat.HandoffsTaken.Load()
			}
			if given != taken || given == 0 {
				t.Errorf("%d given, %d taken, want as many", given, taken)
			}
			var list []string
			for what, n := range counts {
				list = append(list, fmt.Sprintf("%s %d", what, n.Load()))
			}
			t.Logf("%d hand-offs; %s", given, strings.Join(list, ", "))
			if t.Failed() {
				return
			}
			// Whoever is gone is gone everywhere, and whoever is there is
			// served by one: 5 pipes have two ends, and 25 have one.
			await(t, "nobody to be served twice, or by nobody", func() bool {
				open = 0
				owned := uint64(0)
				for _, w := range workers {
					open += uint64(w.seat.Connections.Load())
					cl.table.Owned(w.incarnation, func(rows.ID, *rows.Row) { owned++ })
				}
				return open == 35 && owned == 35
			})
		})
	}
}

// someTimes pauses each nth time.
func someTimes(n int) func() {
	return func() {
		if rand.IntN(n) == 0 {
			someTime()
		}
	}
}

// pipes makes pipes through which numbers are sent in both directions.
func (j *journey) pipes(n int) *atomic.Int64 {
	count := new(atomic.Int64)
	for range n {
		var ends [2]*passenger
		for i := range ends {
			var err error
			if ends[i], err = j.connect(); err != nil {
				j.t.Fatal(err)
			}
			j.t.Cleanup(func() { ends[i].Close() })
		}
		if err := errors.Join(ends[0].say("pipe\n"), ends[1].say("pipe\n"), ends[0].hears("piped"), ends[1].hears("piped")); err != nil {
			j.t.Fatal(err)
		}
		for i := range ends {
			from, to := ends[i], ends[1-i]
			sent := make(chan int, 64)
			j.done.Go(func() {
				defer close(sent)
				for n := 0; ; n++ {
					if err := from.say("through %d\n", n); err != nil {
						j.t.Errorf("into the pipe: %v", err)
						return
					}
					sent <- n
					select {
					case <-j.over:
						return
					default:
					}
				}
			})
			j.done.Go(func() {
				for n := range sent {
					if err := to.hears(fmt.Sprintf("through %d", n)); err != nil {
						j.t.Errorf("out of the pipe: %v", err)
						for range sent {
						}
						return
					}
					count.Add(1)
				}
			})
		}
	}
	return count
}
