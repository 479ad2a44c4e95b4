package conn

import "golang.org/x/sys/unix"

// Begun is what has been said on a connection before a Set takes it over.
type Begun struct {
	Input   []byte // read and not handled; it is copied
	In, Out uint64 // bytes that were read from the descriptor, and that the kernel has taken
}

// Continued is Accepted for a connection on which something else has talked
// until now: the Input is what cfg's protocol gets first. Nothing else has the
// connection any more, nor another descriptor of it that it reads or writes. The counts have
// to be right, or it does not outlive this process. Loop only, and not in a callback.
func (s *Set) Continued(fd int, peer unix.Sockaddr, cfg *Config, begun Begun) (*Conn, error) {
	c, err := s.open(fd, peer, cfg)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	c.rx.Store(begun.In)
	c.tx.Store(begun.Out)
	if begun.In > 0 {
		c.partial = 0 // the deadline of the first byte does not hold
	}
	if len(begun.Input) > 0 {
		c.in = getBuffer(len(begun.Input)).add(begun.Input)
		c.held = true
	}
	c.greet()
	c.note()
	c.mark(0, 0) // to go on with the input
	return c, nil
}
