package conn

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mainstay-go/mainstay/pkg/rows"
	"github.com/mainstay-go/mainstay/pkg/wire"
	"github.com/mainstay-go/mainstay/pkg/wire/text"
	"golang.org/x/sys/unix"
)

var captured = state{
	flags:  statePaused | stateHeld | stateHasValue,
	opened: time.Hour, lastIn: time.Minute, lastOut: time.Second, partial: time.Millisecond, progress: 1,
	rx: 10, tx: 1 << 40, partner: 77,
	listener: "test", protocol: "text", session: []byte("session"), peer: "192.0.2.1:80", value: []byte(`{"name":"me"}`),
	timers: []stateTimer{{"", 0}, {"ping", time.Minute}},
	in:     []byte("half a mess"), out: []byte("unsent"),
	header: []byte("PROXY UNKNOWN\r\n"),
}

func (s *state) encoded() []byte {
	var q queue
	q.add(s.out)
	defer q.free()
	return s.append(nil, &q)
}

func TestCapturedStateIsReadAsItWasWritten(t *testing.T) {
	for _, s := range []state{{}, captured} {
		got := &state{listener: "test", out: []byte("of another"), timers: []stateTimer{{name: "another"}}} // parsed before
		if err := got.parse(append([]byte(nil), s.encoded()...)); err != nil {
			t.Fatal(err)
		}
		for _, empty := range []*[]byte{&got.session, &got.value, &got.in, &got.out} {
			if len(*empty) == 0 {
				*empty = nil
			}
		}
		if diff := cmp.Diff(s, *got, cmp.AllowUnexported(state{}, stateTimer{})); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	}
}

// resealed is b with a checksum that fits.
func resealed(b []byte) []byte { return seal(append([]byte(nil), b[:len(b)-4]...), 0) }

func TestStateThatIsNotUnderstoodIsRefused(t *testing.T) {
	good := captured.encoded()
	change := func(f func(*state)) []byte {
		s := captured
		f(&s)
		return s.encoded()
	}
	type refusal struct {
		name string
		body []byte
		want error
	}
	tests := []refusal{
		{"nothing", nil, ErrState},
		{"newer", resealed(append([]byte{stateVersion + 1, 0}, good[2:]...)), ErrStateVersion},
		{"older than any", resealed(append([]byte{0, 0}, good[2:]...)), ErrStateVersion},
		{"unknown flags", change(func(s *state) { s.flags |= stateKnown + 1 }), ErrState},
		{"a timer twice", change(func(s *state) { s.timers = []stateTimer{{"a", 1}, {"a", 2}} }), ErrState},
		{"a value that is none", change(func(s *state) { s.flags &^= stateHasValue }), ErrState},
		{"a time without end", resealed(append(append([]byte{1, 0, 0}, binary.AppendUvarint(nil, 1<<63)...), good[4:]...)), ErrState},
		{"a number without end", resealed(append([]byte{1, 0}, strings.Repeat("\xff", 20)...)), ErrState},
		{"more than all", resealed(append(append([]byte(nil), good[:len(good)-4]...), "xxxxx"...)), ErrState},
		{"another listener", change(func(s *state) { s.listener = "other" }), ErrListener},
		{"another protocol", change(func(s *state) { s.protocol = "frame" }), ErrProtocol},
		{"a protocol with a state", good, ErrProtocol},
		{"half a PROXY header", change(func(s *state) { s.header = []byte("PROXY") }), ErrState},
		{"more than a PROXY header", change(func(s *state) { s.header = []byte("PROXY UNKNOWN\r\nx") }), ErrState},
		{"a layer that is open without keys", change(func(s *state) { s.layer = &layerState{flags: layerQuiet} }), ErrState},
		{"a layer that has records without keys", change(func(s *state) { s.layer = &layerState{in: []byte("x")} }), ErrState},
		{"an unknown flag of the layer", change(func(s *state) { s.layer = &layerState{flags: layerKnown + 1} }), ErrState},
		{"a layer with keys that are none", change(func(s *state) { s.layer = &layerState{tls: []byte("x")} }), ErrState},
		{"a handshake to come that is told already", change(func(s *state) { s.layer = new(layerState) }), ErrState},
		{"a handshake to come where there is none", change(func(s *state) { s.layer = new(layerState); s.flags |= stateNew }), ErrProtocol},
		{"a PROXY header to come where there is none", change(func(s *state) {
			s.layer = &layerState{flags: layerProxy}
			s.flags |= stateNew
		}), ErrProtocol},
		{"an application's error", change(func(s *state) { s.session = nil; s.value = []byte("error") }), errNotMine},
		{"an application's panic", change(func(s *state) { s.session = nil; s.value = []byte("panic") }), errNotMine},
	}
	for n := range len(good) {
		tests = append(tests, refusal{fmt.Sprint("cut at ", n), good[:n], ErrState})
		if n > 4 {
			tests = append(tests, refusal{fmt.Sprint("cut and sealed at ", n), resealed(good[:n]), nil})
		}
		flipped := append([]byte(nil), good...)
		flipped[n] ^= 1 << (n % 8)
		tests = append(tests, refusal{fmt.Sprint("a bit of byte ", n), flipped, nil})
	}
	r := newRig(t)
	cfg := r.config(funcs{}, true)
	cfg.ProtocolName = "text"
	cfg.DecodeValue = func(_ *Conn, b []byte) error {
		switch string(b) {
		case "error":
			return errNotMine
		case "panic":
			panic(errNotMine)
		}
		return nil
	}
	null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(null)
	r.do(func() {
		for _, tt := range tests {
			ad, err := r.set.Adopt(null, 1, nil, only(cfg), tt.body)
			switch {
			case err == nil:
				t.Errorf("%s: it was adopted", tt.name)
				ad.Drop()
			case tt.want != nil && !errors.Is(err, tt.want):
				t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
			}
		}
		if r.set.Len() != 0 || r.loop.Watched() != 0 || r.loop.Timers() != 0 {
			t.Errorf("%d connections are left", r.set.Len())
		}
		if _, err := unix.FcntlInt(uintptr(null), unix.F_GETFD, 0); err != nil {
			t.Errorf("the descriptor is not the caller's any more: %v", err)
		}
		if _, err := r.set.Adopt(null, 1, nil, func(string) *Config { return new(Config) }, good); err == nil {
			t.Error("adopted with an unusable Config")
		}
	})
}

var errNotMine = errors.New("not mine")

func only(cfg *Config) func(string) *Config {
	return func(name string) *Config {
		if name != cfg.Listener {
			return nil
		}
		return cfg
	}
}

func TestStateThatCannotBeEncodedKeepsTheConnection(t *testing.T) {
	for _, tt := range []struct {
		name   string
		encode func(*Conn) ([]byte, error)
	}{
		{"error", func(*Conn) ([]byte, error) { return nil, errNotMine }},
		{"panic", func(*Conn) ([]byte, error) { panic(errNotMine) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			cfg := r.config(funcs{message: echo(t)}, true)
			cfg.EncodeValue = tt.encode
			client, c := r.tcp(cfg)
			f, err := freeze(r, c)
			if err != nil {
				t.Fatal(err)
			}
			r.do(func() {
				got, err := f.Capture([]byte("before"))
				if !errors.Is(err, errNotMine) || string(got) != "before" {
					t.Errorf("Capture: %q, %v", got, err)
				}
				f.Thaw()
			})
			write(t, client, "x")
			expect(t, client, "x")
		})
	}
}

// Whatever comes, nothing panics, and what is adopted can be served.
func FuzzAdopt(f *testing.F) {
	f.Add(captured.encoded(), []byte{})
	plain := captured
	plain.session = nil
	f.Add(plain.encoded(), (&tail{flags: tailClose | tailPaused, why: "x", timers: []tailTimer{{"a", true, -1}, {"b", false, 1}}, sent: []byte("late\n")}).encoded())
	opening := plain
	opening.flags |= stateNew
	opening.layer = &layerState{}
	opening.in = []byte("\x16\x03\x01\x00\x01x")
	f.Add(opening.encoded(), []byte{})
	opening.header, opening.layer = nil, &layerState{flags: layerProxy}
	opening.in = []byte("PROXY UNKNOWN\r\n")
	f.Add(opening.encoded(), []byte{})
	f.Fuzz(func(t *testing.T, body, tailBytes []byte) {
		if len(body) < 4 {
			return
		}
		body = resealed(body)
		r := newRig(t)
		cfg := proxied(secured(t, r.config(funcs{}, true)))
		cfg.Protocol = text.Protocol{}
		cfg.ProtocolName = "text"
		ours, theirs := socketpair(t, unix.SOCK_STREAM)
		defer unix.Close(theirs)
		r.do(func() {
			alloc, err := r.set.allocator()
			if err != nil {
				t.Error(err)
				return
			}
			id, row, err := alloc.Take()
			if err != nil {
				t.Error(err)
				return
			}
			ad, err := r.set.Adopt(ours, id, row, only(cfg), body)
			if err != nil {
				unix.Close(ours)
				return
			}
			ad.Serve(Crash, true)
			if len(tailBytes) > 4 {
				tailBytes = resealed(tailBytes)
			}
			_ = ad.Tail(tailBytes)
		})
	})
}

func (t *tail) encoded() []byte {
	var q queue
	q.add(t.sent)
	defer q.free()
	return t.append(nil, &q)
}

func TestDamagedTailClosesTheConnection(t *testing.T) {
	whole := (&tail{sent: []byte("late\n")}).encoded()
	for _, tt := range []struct {
		name string
		tail []byte
		want error
	}{
		{"cut", whole[:len(whole)-1], ErrState},
		{"newer", resealed(append([]byte{9, 0}, whole[2:]...)), ErrStateVersion},
		{"of a protocol with a state", (&tail{flags: tailMessages, sent: []byte("\x04late")}).encoded(), ErrState},
		{"unknown flags", (&tail{flags: tailKnown + 1}).encoded(), ErrState},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newTwo(t)
			over := make(chan error, 1)
			a, b := w.configs(funcs{close: func(_ *Conn, why error) { over <- why }}, true, nil)
			_, c := w.a.tcp(a)
			f := w.freeze(c)
			ad := w.adopt(f, b)
			w.commit(f)
			w.b.do(func() { ad.Serve(Move, true) })
			w.a.do(func() { f.Left(0) })
			w.b.do(func() {
				if err := ad.Tail(tt.tail); !errors.Is(err, tt.want) {
					t.Errorf("Tail: %v, want %v", err, tt.want)
				}
			})
			if why := receive(t, over); !errors.Is(why, tt.want) {
				t.Errorf("OnClose with %v, want %v", why, tt.want)
			}
		})
	}
}

// counting is a protocol that numbers the messages it sends, and keeps what
// is incomplete itself.
type counting struct {
	text.Protocol
	sent, got int
	part      []byte
	broken    bool
}

func (p *counting) Append(dst, m []byte) ([]byte, error) {
	if string(m) == "panic" {
		panic("counting")
	}
	p.sent++
	return fmt.Appendf(dst, "%d:%s\n", p.sent, m), nil
}

func (p *counting) Split(in []byte, atEOF bool) (int, []byte, bool, error) {
	if len(in) == 0 {
		return 0, nil, false, nil
	}
	if in[0] != '\n' {
		p.part = append(p.part, in[0])
		return 1, nil, false, nil
	}
	m := p.part
	p.part = nil
	p.got++
	return 1, m, true, nil
}

func (p *counting) Buffered() int { return len(p.part) }

func (p *counting) AppendState(dst []byte) ([]byte, error) {
	if p.broken {
		return nil, errNotMine
	}
	return fmt.Appendf(dst, "%d %d %s", p.sent, p.got, p.part), nil
}

func (p *counting) RestoreState(b []byte) error {
	n, err := fmt.Sscanf(string(b), "%d %d %s", &p.sent, &p.got, &p.part)
	if n < 2 {
		return err
	}
	return nil
}

func TestSessionTravelsAndLateMessagesAreEncodedThere(t *testing.T) {
	w := newTwo(t)
	a, b := w.configs(funcs{message: echo(t)}, true, func(c *Config) {
		c.NewSession = func() wire.Session { return new(counting) }
	})
	client, c := w.a.tcp(a)
	write(t, client, "one\ntwo\nthr")
	expect(t, client, "1:one\n2:two\n")
	w.a.until("it is read", func() bool { return c.BytesIn() == 11 && c.buffered() == 3 })
	send := func(c *Conn, m string) {
		if err := c.Send([]byte(m)); err != nil {
			t.Errorf("%s: %v", m, err)
		}
	}
	f := w.freeze(c)
	send(c, "late")
	w.a.do(f.Thaw)
	expect(t, client, "3:late\n")

	f = w.freeze(c)
	if err := c.Send(make([]byte, DefaultSendHard+1)); !errors.Is(err, ErrTooLong) {
		t.Errorf("Send: %v, want ErrTooLong", err)
	}
	if err := c.Send(make([]byte, DefaultSendHard)); !errors.Is(err, ErrFull) {
		t.Errorf("Send: %v, want ErrFull", err)
	}
	send(c, "late again")
	ad := w.adopt(f, b)
	send(c, "last")
	w.commit(f)
	w.b.do(func() { ad.Serve(Move, true) })
	there := ad.Conn()
	send(there, "own")
	if n := there.Queued(); n != len("own")+1 {
		t.Errorf("%d bytes queued", n)
	}
	var tail []byte
	w.a.do(func() { tail = f.Left(0) })
	w.b.do(func() {
		if err := ad.Tail(tail); err != nil {
			t.Error(err)
		}
	})
	expect(t, client, "4:late again\n5:last\n6:own\n")
	write(t, client, "ee\n")
	expect(t, client, "7:three\n")

	// The protocol cannot go now, and then it cannot encode what it took.
	w.b.do(func() { there.protocol().(*counting).broken = true })
	back := &two{t, w.b, w.a}
	f = back.freeze(there)
	w.b.do(func() {
		if _, err := f.Capture(nil); !errors.Is(err, errNotMine) {
			t.Errorf("Capture: %v", err)
		}
	})
	send(there, "panic")
	w.b.do(f.Thaw)
	if got := expectEndOrReset(t, client); got != "" {
		t.Errorf("got %q", got)
	}
}

func TestMessageThatASessionKeepsIsBounded(t *testing.T) {
	r := newRig(t)
	over := make(chan error, 1)
	cfg := r.config(funcs{close: func(_ *Conn, why error) { over <- why }}, true)
	cfg.NewSession = func() wire.Session { return new(counting) }
	cfg.Limits.MaxMessage = 100
	client, _ := r.tcp(cfg)
	write(t, client, strings.Repeat("x", 100+overhead+1))
	if why := receive(t, over); !errors.Is(why, ErrTooLong) {
		t.Errorf("OnClose with %v, want ErrTooLong", why)
	}
}

func TestStateOfAProtocolGoesToNoOther(t *testing.T) {
	w := newTwo(t)
	a, b := w.configs(funcs{}, true, nil)
	a.NewSession = func() wire.Session { return new(counting) }
	_, c := w.a.tcp(a)
	f := w.freeze(c)
	if ad, err := w.tryAdopt(f, b, w.capture(f)); !errors.Is(err, ErrProtocol) {
		t.Errorf("Adopt: %v, %v, want ErrProtocol", ad, err)
	}
	w.a.do(f.Thaw)
}

func TestFullTableRefusesTheConnection(t *testing.T) {
	table, err := rows.Create(512)
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	other := table.Allocator(9)
	for range 512 {
		if _, _, err := other.Take(); err != nil {
			t.Fatal(err)
		}
	}
	r := newRigOn(t, table.Allocator(1))
	cfg := r.config(funcs{}, true)
	ours, theirs := socketpair(t, unix.SOCK_STREAM)
	defer unix.Close(theirs)
	r.do(func() {
		if _, err := r.set.Accepted(ours, nil, cfg); !errors.Is(err, rows.ErrFull) || r.set.Len() != 0 || r.loop.Watched() != 0 {
			t.Errorf("Accepted: %v with %d connections, want ErrFull and none", err, r.set.Len())
		}
	})
	if n, err := unix.Read(theirs, make([]byte, 1)); n != 0 || err != nil {
		t.Errorf("read %d, %v, want the end", n, err)
	}
}

func TestReasonsHaveNames(t *testing.T) {
	for want, r := range map[string]Reason{"reload": Reload, "move": Move, "crash": Crash, "restart": Restart, "conn.Reason(0)": 0} {
		if r.String() != want {
			t.Errorf("%q, want %q", r, want)
		}
	}
}
