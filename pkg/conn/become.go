package conn

import "fmt"

// become is what a connection is about to be.
type become struct {
	settings *settings
	input    []byte
}

// speaking returns the Config, cfg or one of those that its connections may
// become, with that protocol's name; nil: there is none.
func (cfg *Config) speaking(protocol string) *Config {
	if cfg.ProtocolName == protocol {
		return cfg
	}
	for _, other := range cfg.Becomes {
		if other.ProtocolName == protocol {
			return other
		}
	}
	return nil
}

// Become has the connection served by the Config of Config.Becomes that has
// this ProtocolName, from the return of the running callback on: as if it had
// just been accepted by that listener, with input, which is copied, as the
// first that came from the peer. What was sent leaves before what will be. Its TLS
// and what its PROXY header has told stay as they are. Its timers
// are gone; its Value stays, and is the new Handler's. OnConnect of that is called
// next, and OnClose in the end is only its. It returns an error, and does nothing, if
// there is no such Config, or if that is not usable.
//
// It is to be called in a callback on the loop, and while nobody else uses the
// connection.
func (c *Conn) Become(protocol string, input []byte) error {
	cfg := c.cfg.speaking(protocol)
	if cfg == nil || cfg.ProtocolName == c.cfg.ProtocolName {
		return fmt.Errorf("%w: a connection of listener %q cannot become %q", ErrProtocol, c.Listener(), protocol)
	}
	settings, err := c.set.settingsOf(cfg)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.extraLocked().become = &become{settings, append([]byte(nil), input...)}
	c.mu.Unlock()
	c.mark(flagBecome, 0)
	return nil
}

// turnInto acts on Become. Loop only, and in no callback.
func (c *Conn) turnInto() {
	x := c.extra.Load()
	next := x.become
	c.stopTimers()
	c.mu.Lock()
	c.flags.And(^(flagBecome | flagPaused | flagAuthenticated))
	x.become, x.timers, x.session = nil, nil, nil
	c.cfg = next.settings
	if c.cfg.NewSession != nil {
		x.session = c.cfg.NewSession()
	}
	c.fitLocked()
	c.tidyLocked()
	c.mu.Unlock()
	in := c.in
	c.in = nil
	if len(next.input) > 0 {
		c.in = getBuffer(len(next.input)).add(next.input)
	}
	if in != nil {
		if c.in == nil {
			c.in = in
		} else {
			c.in = c.in.add(in.bytes())
			in.free()
		}
	}
	c.held = c.in != nil
	c.partial = 0
	now := c.set.loop.Now()
	c.opened = ticksAt(now)
	c.tellRow(c.set.alloc.Table().Row(c.id), false)
	c.armDeadlines(now)
	c.deliver(event{kind: connected})
}
