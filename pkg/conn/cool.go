package conn

import "time"

// coolAfter is how long a connection with TLS is idle before it gives up what
// can be made of its keys again (tlsrec.Conn.Cool): up to twice that.
const coolAfter = 5 * time.Second

// warm takes note that the keys of c are used. Loop only.
func (c *Conn) warm(l *layer) {
	if l.warm > 0 || l.tls == nil || c.state == Closed {
		return
	}
	s := c.set
	s.warm = append(s.warm, c)
	l.warm = int32(len(s.warm))
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
		case c.has(flagFrozen) || c.lastIn.later(c.lastOut).until(now) < coolAfter:
			kept = append(kept, c)
			l.warm = int32(len(kept))
		default:
			l.tls.Cool()
			l.warm = 0
			n++
			if c.cfg.Handshakes != nil {
				told = c.cfg.Handshakes.cooled
			}
		}
	}
	clear(s.warm[len(kept):])
	s.warm = kept
	s.coolNone()
	if told != nil {
		told(n)
	}
}

// coolNone ends the timer if there is nobody for it.
func (s *Set) coolNone() {
	if len(s.warm) == 0 && s.cooling != nil {
		s.warm = nil
		s.cooling.Stop()
		s.cooling = nil
	}
}

// unwarm forgets a connection that is over: where they come and go fast, those
// of the last seconds would be most of what the garbage collector has to look at.
func (c *Conn) unwarm(l *layer) {
	if l.warm == 0 {
		return
	}
	s := c.set
	last := len(s.warm) - 1
	moved := s.warm[last]
	s.warm[l.warm-1] = moved
	moved.layered().warm = l.warm
	s.warm[last] = nil
	s.warm = s.warm[:last]
	l.warm = 0
}
