// Package talk has clients for tests of what happens to open connections:
// each sends numbered lines on its own clock and wants each of them answered,
// once, whole and in order, on the one connection it has.
//
// The server answers a line with that line, behind a name of itself and a
// space if it likes: so it is seen who serves a connection, and that it moves.
package talk

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

// Prefix is what every line begins with.
const Prefix = "talk "

// Options say how many clients talk, and how.
type Options struct {
	Clients int           // zero: 1
	Pause   time.Duration // on average, between an answer and the next line; zero: none
	Size    int           // of a line, about, in bytes; zero: 32
	Limit   time.Duration // within which an answer must come; zero: 30 s
}

// Group is a number of clients that talk.
type Group struct {
	options  Options
	stopping chan struct{}
	once     sync.Once
	awake    chan struct{}
	waking   sync.Once
	clients  sync.WaitGroup

	mu     sync.Mutex
	report Report
	waits  []time.Duration // the longest of each client that has ended
	open   map[net.Conn]bool
}

// Report is what the clients have seen.
type Report struct {
	Clients  int
	Answered int            // lines
	Lost     int            // clients whose connection ended
	Wrong    int            // answers that were not the one to come
	First    error          // the first thing that went wrong
	Servers  map[string]int // answers, by the name of who gave them
	Changes  int            // how often a connection was answered by another than before
	Longest  time.Duration  // from a line to its answer
	P50, P99 time.Duration  // of the longest wait of each client
}

// String tells all of it in one line.
func (r Report) String() string {
	return fmt.Sprintf("%d clients, %d lines answered by %d servers, %d changes of server, %d lost, %d wrong; longest wait %v, of each client p50 %v, p99 %v; first: %v",
		r.Clients, r.Answered, len(r.Servers), r.Changes, r.Lost, r.Wrong, r.Longest, r.P50, r.P99, r.First)
}

// Err says what went wrong, nil if nothing did.
func (r Report) Err() error {
	if r.Lost+r.Wrong == 0 {
		return nil
	}
	return fmt.Errorf("%d connections lost, %d wrong answers, first: %w", r.Lost, r.Wrong, r.First)
}

// Start connects the clients, one after the other, by dial, and has them
// talk. It returns when each has got one answer, or the first error. The
// caller calls Stop.
func Start(dial func() (net.Conn, error), o Options) (*Group, error) {
	if o.Clients == 0 {
		o.Clients = 1
	}
	if o.Size == 0 {
		o.Size = 32
	}
	if o.Limit == 0 {
		o.Limit = 30 * time.Second
	}
	g := &Group{options: o, stopping: make(chan struct{}), awake: make(chan struct{}), open: make(map[net.Conn]bool)}
	g.report.Servers = make(map[string]int)
	for i := range o.Clients {
		conn, err := dial()
		if err != nil {
			g.Stop()
			return nil, fmt.Errorf("talk: client %d: %w", i, err)
		}
		g.mu.Lock()
		g.open[conn] = true
		g.report.Clients++
		g.mu.Unlock()
		c := &client{group: g, conn: conn, in: bufio.NewReader(conn), number: i}
		if err := c.say(0); err != nil {
			g.Stop()
			return nil, fmt.Errorf("talk: client %d: first line: %w", i, err)
		}
		g.clients.Go(c.talk)
	}
	return g, nil
}

// Wake has each client that pauses say its next line at once, and end.
func (g *Group) Wake() {
	g.waking.Do(func() { close(g.awake) })
	g.clients.Wait()
}

// Stop ends the talk, once each client has the answer it waits for, closes the
// connections and returns what was seen. It may be called again.
func (g *Group) Stop() Report {
	g.once.Do(func() { close(g.stopping) })
	g.clients.Wait()
	g.mu.Lock()
	defer g.mu.Unlock()
	for c := range g.open {
		c.Close()
	}
	clear(g.open)
	if waits := g.waits; len(waits) > 0 {
		slices.Sort(waits)
		g.report.P50, g.report.P99 = waits[len(waits)/2], waits[len(waits)*99/100]
	}
	return g.report
}

// Report returns what was seen so far.
func (g *Group) Report() Report {
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.report
	r.Servers = make(map[string]int, len(g.report.Servers))
	for k, v := range g.report.Servers {
		r.Servers[k] = v
	}
	return r
}

type client struct {
	group   *Group
	conn    net.Conn
	in      *bufio.Reader
	number  int
	server  string
	longest time.Duration
}

// talk goes on until the group stops.
func (c *client) talk() {
	g := c.group
	defer func() {
		g.mu.Lock()
		g.waits = append(g.waits, c.longest)
		g.mu.Unlock()
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for n := 1; ; n++ {
		pause := time.Duration(0)
		if g.options.Pause > 0 {
			pause = g.options.Pause/2 + rand.N(g.options.Pause)
		}
		timer.Reset(pause)
		last := false
		select {
		case <-g.stopping:
			return
		case <-g.awake:
			last = true
		case <-timer.C:
		}
		if err := c.say(n); err != nil {
			g.mu.Lock()
			if errors.Is(err, errWrong) {
				g.report.Wrong++
			} else {
				g.report.Lost++
			}
			if g.report.First == nil {
				g.report.First = fmt.Errorf("client %d (%v), line %d: %w", c.number, c.conn.LocalAddr(), n, err)
			}
			g.mu.Unlock()
			return
		}
		if last {
			return
		}
	}
}

var errWrong = errors.New("wrong answer")

// say sends line n and waits for its answer.
func (c *client) say(n int) error {
	g := c.group
	line := fmt.Sprintf("%s%d %d ", Prefix, c.number, n)
	line += strings.Repeat("x", max(0, g.options.Size-len(line)))
	begun := time.Now()
	c.conn.SetDeadline(begun.Add(g.options.Limit))
	if _, err := io.WriteString(c.conn, line+"\n"); err != nil {
		return err
	}
	answer, err := c.in.ReadString('\n')
	if err != nil {
		return err
	}
	took := time.Since(begun)
	server, ok := strings.CutSuffix(strings.TrimSuffix(answer, "\n"), line)
	if !ok {
		return fmt.Errorf("%w: to %.60q: %.60q", errWrong, line, answer)
	}
	c.longest = max(c.longest, took)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.report.Answered++
	g.report.Longest = max(g.report.Longest, took)
	g.report.Servers[server]++
	if c.server != server && n > 0 {
		g.report.Changes++
	}
	c.server = server
	return nil
}
