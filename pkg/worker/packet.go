package worker

import (
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/conn"
)

// packets serves one inherited datagram socket. The loop owns it.
//
// All workers wait for the same socket. One that leaves ends reading before
// it says Draining; what the kernel has then is read by the others, of which
// there is one at least that reads already when a worker is replaced.
type packets struct {
	*conn.Packets
	worker *Worker
	name   string
}

func isDatagram(fd int) bool {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	return err == nil && kind == unix.SOCK_DGRAM
}

func socketKind(datagram bool) string {
	if datagram {
		return "datagram"
	}
	return "stream"
}

func (w *Worker) addPackets(fd int, l *Listener) error {
	c := *l.Packet
	c.Listener, c.Seat, c.Event = l.Name, w.seat, w.connEvent
	c.OnPacket = func(d *conn.Datagram) { l.OnPacket(w, d) }
	served, err := w.set.Packets(fd, c)
	if err != nil {
		return err
	}
	w.packets = append(w.packets, &packets{served, w, l.Name})
	return nil
}

func (p *packets) watch() {
	if err := p.Watch(); err != nil {
		p.worker.listenerBroken(p.name, err)
	}
}

func (p *packets) rearm() {
	if err := p.Rearm(); err != nil {
		p.worker.listenerBroken(p.name, err)
	}
}

// stepOut leaves the datagrams to the other workers; watch undoes it.
func (p *packets) stepOut() {
	if err := p.Unwatch(); err != nil {
		p.worker.log.Warn("listener not taken out of epoll", zap.String("listener", p.name), zap.Error(err))
	}
}
