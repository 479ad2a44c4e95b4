package service

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/mainstay-go/mainstay/pkg/activation"
)

// metricsListener is the name of the listener on which the supervisor answers
// what monitoring asks. No worker gets it.
const metricsListener = "metrics"

// planned is a listener that will be served.
type planned struct {
	name    string
	serve   string             // kind, for status; empty: the code's own protocol
	address string             // to be bound; empty: socket is there
	socket  *activation.Socket // inherited; nil: to be bound
	network string             // of the socket, as activation.ParseURL has it
}

// plan pairs sockets and protocols. inherited are systemd's; nil means that
// the program was started by hand. The error says which listener lacks what.
func (s *Service) plan(c config, inherited []activation.Socket) ([]planned, error) {
	activated := len(inherited) > 0
	sockets := map[string]*activation.Socket{}
	var names []string
	for i := range inherited {
		name := inherited[i].Name
		if err := checkListenerName(name); err != nil {
			return nil, fmt.Errorf("activation: fd %d: %w", inherited[i].FD, err)
		}
		sockets[name] = &inherited[i]
		names = append(names, name)
	}
	for _, l := range s.listeners {
		names = append(names, l.name)
	}
	names = append(names, sortedKeys(c.Listeners)...)

	var all []planned
	seen := map[string]bool{}
	for _, name := range names {
		if seen[name] {
			continue
		}
		seen[name] = true
		p, err := s.planOne(c, name, sockets[name], activated)
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	taken := map[string]string{}
	for _, p := range all {
		if p.address == "" || strings.HasSuffix(p.address, ":0") {
			continue
		}
		if other, ok := taken[p.address]; ok {
			return nil, c.refuse(fmt.Errorf("listeners %q and %q have the same address, %s", other, p.name, p.address), listenerKey(p.name)+".address")
		}
		taken[p.address] = p.name
	}
	served := slices.ContainsFunc(all, func(p planned) bool { return p.name != metricsListener })
	if !served && len(s.onStart) == 0 {
		return nil, fmt.Errorf("no listener: start the service by a socket unit, or give --listen NAME=URL, with a NAME of %s or with --serve NAME=KIND", s.known())
	}
	return all, nil
}

func (s *Service) planOne(c config, name string, socket *activation.Socket, activated bool) (planned, error) {
	set := c.Listeners[name]
	p := planned{name: name, serve: set.Serve, address: set.Address, socket: socket}
	if p.serve == "" && s.declared(name) == nil && name != metricsListener {
		p.serve = name
	}
	if err := s.check(c, name); err != nil {
		if socket != nil && s.declared(name) == nil && set.Serve == "" {
			return p, fmt.Errorf("activation: fd %d: %w", socket.FD, err)
		}
		return p, err
	}
	if socket != nil && p.address != "" {
		return p, c.refuse(fmt.Errorf("listener %q has a socket from systemd (fd %d, %s) and an address to bind, %s: want one of them",
			name, socket.FD, socket.Address, p.address), listenerKey(name)+".address")
	}
	if socket != nil || p.address != "" {
		return p.fitting(s, c)
	}
	if d := s.declared(name); d != nil && !activated {
		p.address = d.address
	}
	if p.address == "" {
		err := fmt.Errorf("listener %q has no socket: want a socket unit with FileDescriptorName=%s, or an address, by --listen %s=URL or address in [listener.%s]", name, name, name, name)
		return p, c.refuse(err, listenerKey(name))
	}
	return p.fitting(s, c)
}

// fitting is p with its network, if what is to be served fits that.
func (p planned) fitting(s *Service, c config) (planned, error) {
	if p.socket != nil {
		p.network = p.socket.Network
	} else {
		var err error
		if p.network, _, _, err = activation.ParseURL(p.address); err != nil {
			return p, c.refuse(fmt.Errorf("listener %q: %w", p.name, err), listenerKey(p.name)+".address")
		}
	}
	return p, p.fits(s, c)
}

// fits says whether what c has served on p is for sockets of its kind.
func (p planned) fits(s *Service, c config) error {
	serve := c.Listeners[p.name].Serve
	protocol, err := s.protocol(p.name, serve)
	if err != nil {
		return err
	}
	if serve == "" && s.declared(p.name) == nil {
		serve = p.name
	}
	what := fmt.Sprintf("kind %q", serve)
	if serve == "" {
		what = "what the code serves on it"
	}
	_, datagrams := protocol.(Packet)
	where := p.address
	if p.socket != nil {
		where = fmt.Sprintf("fd %d, %s", p.socket.FD, p.socket.Address)
	}
	switch {
	case datagrams && !activation.Datagrams(p.network):
		err = fmt.Errorf("listener %q is a stream socket (%s), and %s wants datagrams: want udp://HOST:PORT or unixgram:///PATH, or ListenDatagram= in the socket unit", p.name, where, what)
	case !datagrams && activation.Datagrams(p.network):
		err = fmt.Errorf("listener %q is a datagram socket (%s), and %s wants connections: want tcp://HOST:PORT or unix:///PATH, or ListenStream= in the socket unit", p.name, where, what)
	case p.network == "unixpacket":
		l, bad := protocol.listener(p.name, c.Listeners[p.name])
		if bad == nil {
			bad = l.Packetable()
		}
		if bad == nil {
			return nil
		}
		err = fmt.Errorf("listener %q is a seqpacket socket (%s), and %s is not for one: %w", p.name, where, what, bad)
	default:
		return nil
	}
	return c.refuse(err, listenerKey(p.name)+".serve", listenerKey(p.name)+".address")
}

// check says what is wrong with what is to be served on a listener.
func (s *Service) check(c config, name string) error {
	set := c.Listeners[name]
	if name == metricsListener {
		if !reflect.DeepEqual(set, listenerConfig{Address: set.Address}) {
			return c.refuseListener(name, "is the supervisor's own: its only setting is address")
		}
		return nil
	}
	protocol, err := s.protocol(name, set.Serve)
	if err != nil {
		return c.refuse(err, listenerKey(name)+".serve", listenerKey(name))
	}
	if _, err = protocol.listener(name, set); err != nil {
		if bad, ok := errors.AsType[*settingError](err); ok {
			return c.refuse(err, listenerKey(name)+"."+bad.key)
		}
		return c.refuse(err, listenerKey(name))
	}
	return nil
}

// refuseListener is an error about the first of a listener's settings that was
// set.
func (c *config) refuseListener(name, what string) error {
	var keys []string
	for _, s := range listenerSettings {
		if s.key != "address" {
			keys = append(keys, listenerKey(name)+"."+s.key)
		}
	}
	return c.refuse(fmt.Errorf("listener %q %s", name, what), append(keys, listenerKey(name))...)
}

// protocol is what is served on a listener: the operator's word, else the
// code's, else the kind of that name.
func (s *Service) protocol(name, serve string) (Protocol, error) {
	if name == metricsListener {
		return HTTP{}, nil // by the supervisor, but on connections too
	}
	if serve != "" {
		if p := s.kinds[serve]; p != nil {
			return p, nil
		}
		return nil, fmt.Errorf("listener %q: no kind %q, want one of %s", name, serve, list(sortedKeys(s.kinds)))
	}
	if d := s.declared(name); d != nil {
		return d.protocol, nil
	}
	if p := s.kinds[name]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("listener %q is not known: want one of %s, or say what to serve on it, by --serve %s=KIND or serve in [listener.%s]", name, s.known(), name, name)
}

// known lists the names that a listener may have without further words: the
// kinds' and those of the code's listeners.
func (s *Service) known() string {
	names := sortedKeys(s.kinds)
	for _, l := range s.listeners {
		names = append(names, l.name)
	}
	slices.Sort(names)
	return list(slices.Compact(names))
}

func list(names []string) string {
	if len(names) == 0 {
		return "(the program has none)"
	}
	return strings.Join(names, ", ")
}

// settingError is a setting that a protocol cannot use.
type settingError struct {
	key  string // without the listener
	what string
}

func (e *settingError) Error() string { return e.what }
