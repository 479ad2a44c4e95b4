// Package talk has clients for tests of what happens to open connections:
// each sends numbered lines on its own clock and wants each of them answered,
// once, whole and in order, on the one connection it has. Between two of them
// it listens, so that the end of a connection on which nothing was under way
// is told from that of one that waited for an answer.
//
// The server answers a line with that line, behind a name of itself and a
// space if it likes: so it is seen who serves a connection, and that it moves.
// Behind its name it may tell the client's port, which is checked. Numbers
// count from 0 on each connection, so that a server that keeps count of them
// sees what it has missed.
//
// Start reading at Start, then client.talk; tongue.go has the protocols.
package talk

import (
	"bufio"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
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
	Tongue  Tongue        // zero: Lines

	// Secure does what comes before the tongue's first word, such as the
	// handshake of TLS, within Limit; nil: nothing does. An error is the end of
	// the connection, which stays the group's.
	Secure func(net.Conn) (net.Conn, error)

	// Again has a client that has lost its connection make another and begin
	// anew; otherwise it ends.
	Again bool
}

// Group is a number of clients that talk.
type Group struct {
	options  Options
	stopping chan struct{}
	once     sync.Once
	awake    chan struct{}
	waking   sync.Once
	dial     func() (net.Conn, error)
	talking  []*client
	clients  sync.WaitGroup

	mu     sync.Mutex
	report Report
	waits  []time.Duration // the longest of each client that has ended
}

// Report is what the clients have seen.
type Report struct {
	Clients  int
	Answered int            // lines
	Lost     int            // connections that ended
	Wrong    int            // answers that were not the one to come
	Refused  int            // connections that could not be made
	First    error          // the first thing that went wrong
	Losses   []Loss         // the first of them, maxLosses at most
	Servers  map[string]int // answers, by the name of who gave them
	Changes  int            // how often a connection was answered by another than before
	Longest  time.Duration  // from a line to its answer
	P50, P99 time.Duration  // of the longest wait of each client
}

// maxLosses bounds Report.Losses.
const maxLosses = 10000

// Loss is the end of a connection.
type Loss struct {
	At     time.Time
	Client int
	Port   int    // the client's
	Line   int    // the one that was not answered, or would have been the next
	Server string // who has answered last
	Busy   bool   // a line had been sent and its answer was not complete
	Err    error
}

// String tells it in one line.
func (l Loss) String() string {
	state := "at rest"
	if l.Busy {
		state = "in the middle of an answer"
	}
	return fmt.Sprintf("%s client %d, port %d, line %d, last served by %s, %s: %v", l.At.UTC().Format("15:04:05.000000"), l.Client, l.Port, l.Line, l.Server, state, l.Err)
}

// String tells all of it in one line.
func (r Report) String() string {
	return fmt.Sprintf("%d clients, %d lines answered by %d servers, %d changes of server, %d lost, %d wrong, %d refused; longest wait %v, of each client p50 %v, p99 %v; first: %v",
		r.Clients, r.Answered, len(r.Servers), r.Changes, r.Lost, r.Wrong, r.Refused, r.Longest, r.P50, r.P99, r.First)
}

// Err says what went wrong, nil if nothing did.
func (r Report) Err() error {
	if r.Lost+r.Wrong+r.Refused == 0 {
		return nil
	}
	return fmt.Errorf("%d connections lost, %d wrong answers, %d connections refused, first: %w", r.Lost, r.Wrong, r.Refused, r.First)
}

// Start connects the clients, one after the other, by dial, and has them
// talk. It returns when each has got one answer, or the first error. The
// caller calls Stop. With Options.Again, dial is called by the clients, too.
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
	g := &Group{options: o, dial: dial, stopping: make(chan struct{}), awake: make(chan struct{})}
	g.report.Servers = make(map[string]int)
	for i := range o.Clients {
		c := &client{group: g, number: i}
		if err := c.connect(); err != nil {
			g.Stop()
			return nil, fmt.Errorf("talk: client %d: %w", i, err)
		}
		g.talking = append(g.talking, c)
		g.mu.Lock()
		g.report.Clients++
		g.mu.Unlock()
		if err := c.begin(); err != nil {
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
	g.rouse()
	g.clients.Wait()
}

// Stop ends the talk, once each client has the answer it waits for, closes the
// connections and returns what was seen. It may be called again.
func (g *Group) Stop() Report {
	g.once.Do(func() { close(g.stopping) })
	g.rouse()
	g.clients.Wait()
	for _, c := range g.talking {
		c.conn.Close()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if waits := g.waits; len(waits) > 0 {
		slices.Sort(waits)
		g.report.P50, g.report.P99 = waits[len(waits)/2], waits[len(waits)*99/100]
	}
	return g.report
}

// rouse ends the pause of every client.
func (g *Group) rouse() {
	for _, c := range g.talking {
		c.mu.Lock()
		if c.pausing {
			c.conn.SetReadDeadline(time.Now())
		}
		c.mu.Unlock()
	}
}

// Report returns what was seen so far.
func (g *Group) Report() Report {
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.report
	r.Servers = maps.Clone(g.report.Servers)
	r.Losses = slices.Clone(g.report.Losses)
	return r
}

type client struct {
	group   *Group
	conn    net.Conn
	in      *bufio.Reader
	port    int // ours; 0: it has none
	number  int
	server  string
	longest time.Duration

	mu      sync.Mutex // guards pausing, and conn while it is true
	pausing bool
}

// connect makes a connection.
func (c *client) connect() error {
	conn, err := c.group.dial()
	if err != nil {
		return err
	}
	c.conn, c.port = conn, 0
	if a, ok := conn.LocalAddr().(*net.TCPAddr); ok {
		c.port = a.Port
	}
	return nil
}

// begin says the first line on a connection, and what comes before it.
func (c *client) begin() error {
	g := c.group
	c.conn.SetDeadline(time.Now().Add(g.options.Limit))
	if g.options.Secure != nil {
		secured, err := g.options.Secure(c.conn)
		if err != nil {
			return err
		}
		c.conn = secured
	}
	c.in = bufio.NewReader(c.conn)
	if err := g.options.Tongue.greet(c.conn, c.in); err != nil {
		return err
	}
	return c.say(0)
}

// talk goes on until the group stops.
func (c *client) talk() {
	g := c.group
	defer func() {
		g.mu.Lock()
		g.waits = append(g.waits, c.longest)
		g.mu.Unlock()
	}()
	for n := 1; ; n++ {
		last, stop, err := c.pause()
		if stop {
			return
		}
		busy := err == nil
		if busy {
			err = c.say(n)
		}
		if err != nil {
			c.lost(n, busy, err)
			if !g.options.Again || !c.again() {
				return
			}
			n = 0
			continue
		}
		if last {
			return
		}
	}
}

// over says whether the group stops.
func (g *Group) over() bool {
	select {
	case <-g.stopping:
		return true
	default:
		return false
	}
}

// pause listens until it is time for the next line. The error is the end of
// the connection.
func (c *client) pause() (last, stop bool, err error) {
	g := c.group
	d := time.Duration(0)
	if g.options.Pause > 0 {
		d = g.options.Pause/2 + rand.N(g.options.Pause)
	}
	c.mu.Lock()
	c.pausing = true
	c.conn.SetReadDeadline(time.Now().Add(d))
	c.mu.Unlock()
	woken := func() bool {
		select {
		case <-g.stopping:
			stop = true
		case <-g.awake:
			last = true
		default:
			return false
		}
		return true
	}
	if !woken() { // otherwise it may have been before there was a deadline to change
		var b []byte
		switch b, err = c.in.Peek(1); {
		case err == nil && g.options.Tongue == WebSocket && b[0] == closeFrame:
			err = errGoodbye
		case err == nil:
			err = fmt.Errorf("%w: %q, and nothing was asked", errWrong, b)
		case errors.Is(err, os.ErrDeadlineExceeded):
			err = nil
		}
		woken()
	}
	c.mu.Lock()
	c.pausing = false
	c.mu.Unlock()
	return last, stop, err
}

// lost takes note of the end of a connection, or of a wrong answer on it.
func (c *client) lost(n int, busy bool, err error) {
	g := c.group
	l := Loss{time.Now(), c.number, c.port, n, c.server, busy, err}
	g.mu.Lock()
	defer g.mu.Unlock()
	if errors.Is(err, errWrong) {
		g.report.Wrong++
	} else {
		g.report.Lost++
	}
	if g.report.First == nil {
		g.report.First = fmt.Errorf("%s: %w", l, err)
	}
	if len(g.report.Losses) < maxLosses {
		g.report.Losses = append(g.report.Losses, l)
	}
}

// again makes another connection and says the first line on it. It returns
// false if the group stops.
func (c *client) again() bool {
	g := c.group
	for {
		c.conn.Close()
		if g.over() {
			return false
		}
		if err := c.connect(); err != nil {
			g.mu.Lock()
			g.report.Refused++
			if g.report.First == nil {
				g.report.First = fmt.Errorf("client %d: %w", c.number, err)
			}
			g.mu.Unlock()
			select {
			case <-g.stopping:
				return false
			case <-time.After(redialPause):
			}
			continue
		}
		c.server = ""
		err := c.begin()
		if err == nil {
			return true
		}
		c.lost(0, true, err)
	}
}

// redialPause is between two attempts to make a connection.
const redialPause = 100 * time.Millisecond

var errWrong = errors.New("wrong answer")

// say sends line n and waits for its answer.
func (c *client) say(n int) error {
	g := c.group
	line := fmt.Sprintf("%s%d %d ", Prefix, c.number, n)
	line += strings.Repeat("x", max(0, g.options.Size-len(line)))
	begun := time.Now()
	c.conn.SetDeadline(begun.Add(g.options.Limit))
	answer, err := g.options.Tongue.ask(c.conn, c.in, line)
	if err != nil {
		return err
	}
	took := time.Since(begun)
	name, ok := strings.CutSuffix(answer, line)
	if !ok {
		return fmt.Errorf("%w: to %.60q: %.60q", errWrong, line, answer)
	}
	server, port, told := strings.Cut(strings.TrimSuffix(name, " "), " ")
	if told && port != strconv.Itoa(c.port) {
		return fmt.Errorf("%w: to %.60q: port %q, want %d", errWrong, line, port, c.port)
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
