package conn

import "time"

// coolAfter is how long a connection with TLS is idle before it gives up what
// can be made of its keys again (tlsrec.Conn.Cool): up to twice that.
const coolAfter = 5 * time.Second

// warm takes note that the keys of c are used. Loop only.
func (c *Conn) warm(l *layer) {
	if l.warm || l.tls == nil {
		return
	}
	l.warm = true
	s := c.set
	s.warm = append(s.warm, c)
	if s.cooling == nil {
		s.cooling = s.loop.Every(coolAfter, s.cool)
	}
}

// cool looks through the connections whose keys were used, and forgets those
// that are idle. While all are, there is no timer.
func (s *Set) cool() {
	now := s.loop.Now()
	kept, n := s.warm[:0], 0
	var told func(int)
	for _, c := range s.warm {
		l := c.layered()
		switch {
		case c.state == Closed || l == nil || l.tls == nil:
		case c.has(flagFrozen) || c.lastIn.later(c.lastOut).until(now) < coolAfter:
			kept = append(kept, c)
		default:
			l.tls.Cool()
			l.warm = false
			n++
			if c.cfg.Handshakes != nil {
				told = c.cfg.Handshakes.cooled
			}
		}
	}
	clear(s.warm[len(kept):])
	if s.warm = kept; len(kept) == 0 {
		s.warm = nil
		s.cooling.Stop()
		s.cooling = nil
	}
	if told != nil {
		told(n)
	}
}
