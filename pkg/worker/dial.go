package worker

import (
	"fmt"
	"strings"

	"github.com/mainstay-go/mainstay/pkg/conn"
)

// dialPrefix stands before a name of outgoing connections where listeners have
// theirs: in connections, in logs, in what is handed over. No listener is
// called so.
const dialPrefix = "dial:"

// Dial declares outgoing connections of one kind. Every worker knows what is
// declared, so such a connection moves to another one as an accepted one does.
type Dial struct {
	Name string
	// Dial configures them; the worker sets its Listener, Pool, Handshakes,
	// Seat, Event, Move and Bound.
	Dial conn.DialConfig
}

// makeDials makes what Config.Dials declares.
func (w *Worker) makeDials() error {
	w.dials = make(map[string]*conn.Dialer, len(w.conf.Dials))
	for _, d := range w.conf.Dials {
		if w.dials[d.Name] != nil {
			return fmt.Errorf("worker: dial %q is declared twice", d.Name)
		}
		dialer, err := w.set.NewDialer(w.configureDial(d.Name, d.Dial))
		if err != nil {
			return fmt.Errorf("worker: dial %q: %w", d.Name, err)
		}
		w.dials[d.Name] = dialer
	}
	return nil
}

func (w *Worker) configureDial(name string, c conn.DialConfig) conn.DialConfig {
	c.Listener, c.Pool, c.Seat, c.Event, c.Move = dialPrefix+name, w.pool, w.seat, w.connEvent, w.moveTo
	c.Handshakes, c.Bound, c.Released = w.handshakes, nil, nil
	return c
}

// Dial begins to connect to address, as the connections that were declared by
// that name; an empty address is the declared one. value is for
// conn.Client.Value. It returns at once; it fails if nothing of that name is
// declared, if the address is not usable, or when the worker has ended. Any
// goroutine may call it.
func (w *Worker) Dial(name, address string, value any) (*conn.Client, error) {
	d := w.dials[name]
	if d == nil {
		return nil, fmt.Errorf("worker: dial %q is not declared", name)
	}
	return d.Dial(address, value)
}

// DialBy begins to connect as c says. What it connects stays in this worker:
// the others do not know it. name is for people, and may not be declared. The
// rest is as with Dial.
func (w *Worker) DialBy(name string, c conn.DialConfig, value any) (*conn.Client, error) {
	if w.dials[name] != nil {
		return nil, fmt.Errorf("worker: dial %q is declared: use Dial", name)
	}
	c = w.configureDial(name, c)
	c.Pinned = true
	d, err := w.set.NewDialer(c)
	if err != nil {
		return nil, fmt.Errorf("worker: dial %q: %w", name, err)
	}
	return d.Dial("", value)
}

// dialOf returns how the connections are served that were declared by a name
// with its prefix, nil if there is no such name here.
func (w *Worker) dialOf(listener string) *conn.Config {
	name, ok := strings.CutPrefix(listener, dialPrefix)
	if !ok || w.dials[name] == nil {
		return nil
	}
	return w.dials[name].Config()
}

// endDials ends the outgoing connections, of which nobody is in need any more,
// and calls progress when they are gone.
func (d *drain) endDials() {
	d.dials = dialsEnding
	left := max(0, d.end-d.w.loop.Clock())
	d.w.set.DrainOutgoing(conn.DrainPrompt, left, func() { d.dials = dialsEnded; d.progress() })
}

// dialsState is how far the end of the outgoing connections is.
type dialsState uint8

const (
	dialsServe dialsState = iota
	dialsEnding
	dialsEnded
)
