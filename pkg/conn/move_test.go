package conn

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mainstay-go/mainstay/pkg/rows"
	"golang.org/x/sys/unix"
)

// BenchmarkHandOver moves connections from one set to another of the same
// loop, as two processes do, but for the messages between them.
func BenchmarkHandOver(b *testing.B) {
	table, err := rows.Create(1 << 12)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { table.Close() })
	r := newRigOn(b, table.Allocator(1))
	sets := [2]*Set{r.set, NewSet(r.loop, table.Allocator(2))}
	cfg := r.config(echoHandler{}, true)
	cfg.Limits = Limits{FirstByte: -1}
	const batch = 64
	for range batch {
		r.rawPair(cfg)
	}
	config := func(string) *Config { return cfg }
	var body []byte
	over := make(chan struct{})
	// round moves all of them, the last one ends it.
	round := func(from, to int) {
		left := batch
		var come []*Adopted
		frozen := func(f *Frozen, err error) {
			if err != nil {
				b.Error(err)
			}
			if body, err = f.Capture(body[:0]); err != nil {
				b.Error(err)
			}
			fd, err := unix.FcntlInt(uintptr(f.FD()), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				b.Error(err)
			}
			f.Row().Offer(f.ID(), uint64(from+1), uint64(to+1))
			a, err := sets[to].Adopt(fd, f.ID(), f.Row(), config, body)
			if err != nil {
				b.Error(err)
			}
			f.Row().Commit(f.ID(), uint64(from+1), uint64(to+1))
			a.Serve(Move, true)
			if tail := f.Left(0); tail != nil {
				b.Error("a tail")
			}
			come = append(come, a)
			if left--; left > 0 {
				return
			}
			for _, a := range come {
				if err := a.Tail(nil); err != nil {
					b.Error(err)
				}
			}
			over <- struct{}{}
		}
		sets[from].Each(func(c *Conn) { sets[from].Freeze(c, frozen) })
	}
	b.ReportAllocs()
	b.ResetTimer()
	from := 0
	for range b.N {
		r.do(func() { round(from, 1-from) })
		<-over
		from = 1 - from
	}
	b.StopTimer()
	b.ReportMetric(float64(b.Elapsed())/float64(b.N)/batch, "ns/conn")
	if from == 1 {
		r.do(func() { round(1, 0) })
		<-over
	}
}

func TestWishToMoveTravelsToo(t *testing.T) {
	bothWays(t, func(t *testing.T, inline bool) {
		w := newTwo(t)
		a, b := w.configs(funcs{}, inline, nil)
		moves, binds := make(chan int, 10), make(chan uint64, 10)
		for _, cfg := range []*Config{a, b} {
			cfg.Move = func(_ *Conn, slot int) { moves <- slot }
			cfg.Bound = func(_ *Conn, id uint64) { binds <- id }
		}
		_, c := w.a.tcp(a)
		f := w.freeze(c)
		ad := w.adopt(f, b)
		if err := c.MoveTo(3); err != nil {
			t.Fatal(err)
		}
		c.Bind(1<<64 - 1)
		for range 5 {
			w.a.do(func() {})
		}
		if len(moves)+len(binds) > 0 {
			t.Error("told while it is frozen")
		}
		there := w.finish(f, ad)
		if got := receive(t, moves); got != 3 {
			t.Errorf("to move to %d there, want 3", got)
		}
		if got := receive(t, binds); got != 1<<64-1 {
			t.Errorf("bound to %d there, want %d", got, uint64(1<<64-1))
		}
		if err := c.MoveTo(4); !errors.Is(err, ErrMoved) {
			t.Errorf("MoveTo here: %v, want a MovedError", err)
		}
		there.CloseNow(nil)
	})
}

func TestWishToMoveWaitsWhileItIsAboutToLeave(t *testing.T) {
	r := newRig(t)
	cfg := r.config(funcs{}, true)
	cfg.FinishFirst = true
	moves := make(chan int, 10)
	cfg.Move = func(_ *Conn, slot int) { moves <- slot }
	_, c := r.tcp(cfg)
	if err := c.Hold(); err != nil {
		t.Fatal(err)
	}
	r.do(func() { r.set.Freeze(c, func(*Frozen, error) { t.Error("frozen") }) })
	if err := c.MoveTo(3); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		r.do(func() {})
	}
	if len(moves) > 0 {
		t.Error("told while it is about to leave")
	}
	r.do(func() { r.set.Unfreeze(c) })
	if got := receive(t, moves); got != 3 {
		t.Errorf("to move to %d, want 3", got)
	}
	c.Release()
}

func TestTailsOfBothVersionsAreRead(t *testing.T) {
	for _, tt := range []struct {
		name    string
		tail    tail
		version byte
	}{
		{"messages only", tail{sent: []byte("late")}, tailVersionOld},
		{"a move", tail{flags: tailMove, sent: []byte("late"), slot: 7}, tailVersion},
		{"a bind", tail{flags: tailBind | tailClose, why: "bye", bound: 1 << 63}, tailVersion},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := tt.tail.encoded()
			if b[0] != tt.version {
				t.Errorf("version %d, want %d", b[0], tt.version)
			}
			var got tail
			if err := got.parse(b); err != nil {
				t.Fatal(err)
			}
			if len(got.sent) == 0 {
				got.sent = nil
			}
			if diff := cmp.Diff(tt.tail, got, cmp.AllowUnexported(tail{})); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
	moves := (&tail{flags: tailMove, slot: 1 << 40}).encoded()
	var got tail
	if err := got.parse(moves); !errors.Is(err, ErrState) {
		t.Errorf("a slot beyond all bounds: %v, want ErrState", err)
	}
}

func TestConnectionWhoseTailComesTooLateIsClosed(t *testing.T) {
	w := newTwo(t)
	over := make(chan error, 1)
	a, b := w.configs(funcs{message: echo(t), close: func(_ *Conn, why error) { over <- why }}, true, nil)
	client, c := w.a.tcp(a)
	f := w.freeze(c)
	ad := w.adopt(f, b)
	if err := c.Send([]byte("late")); err != nil {
		t.Fatal(err)
	}
	w.commit(f)
	w.b.do(func() {
		ad.Serve(Move, true)
		if err := ad.Tail(nil); err != nil {
			t.Error(err)
		}
	})
	write(t, client, "x\n")
	expect(t, client, "x\n")
	w.a.do(func() {
		if f.Left(0) == nil {
			t.Error("there is no tail")
		}
	})
	w.b.do(func() { ad.Lost() })
	if why := receive(t, over); why != ErrTailLost {
		t.Errorf("OnClose with %v, want ErrTailLost", why)
	}
	if got := expectEndOrReset(t, client); got != "" {
		t.Errorf("%q came after what is lost", got)
	}
	w.b.do(func() { ad.Lost() }) // it is over: nothing more happens
}

func TestLeavingIsTheLastCallback(t *testing.T) {
	bothWays(t, func(t *testing.T, inline bool) {
		w := newTwo(t)
		var told journal
		left := make(chan *Conn, 10)
		a, b := w.configs(funcs{
			connect: func(*Conn) { told.add("connect") },
			message: func(_ *Conn, m []byte) { told.add("message " + string(m)) },
			close:   func(*Conn, error) { told.add("close") },
		}, inline, nil)
		b.Handler = funcs{}
		a.OnLeave = func(c *Conn, slot int) {
			told.add(fmt.Sprint("leave ", slot))
			if err := c.Send(nil); !errors.Is(err, ErrMoved) || c.Value() != "mine" {
				t.Errorf("Send: %v, value %v", err, c.Value())
			}
			left <- c
		}
		client, c := w.a.tcp(a)
		c.SetValue("mine")
		write(t, client, "x\n")
		w.a.until("the message", func() bool { return len(told.all()) == 2 })
		f := w.freeze(c)
		ad := w.adopt(f, b)
		c.Close(nil) // which is the other's to do
		w.finish(f, ad)
		if receive(t, left) != c {
			t.Error("another one has left")
		}
		w.a.do(func() {})
		if got, want := told.all(), []string{"connect", "message x", "leave 7"}; !slices.Equal(got, want) {
			t.Errorf("callbacks %q, want %q", got, want)
		}
		expectEnd(t, client)

		// One that nobody here was told of just goes.
		_, fd, peer := tcpPair(t, "tcp4", "127.0.0.1:0")
		frozen := make(chan *Frozen, 1)
		w.a.do(func() {
			if err := w.a.set.Arrived(fd, peer, a, func(f *Frozen, err error) { frozen <- f }); err != nil {
				t.Error(err)
			}
		})
		f = receive(t, frozen)
		w.finish(f, w.adopt(f, b))
		w.a.do(func() {})
		if got := told.all(); len(got) != 3 {
			t.Errorf("callbacks %q", got)
		}
	})
}
