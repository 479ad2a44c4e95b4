package conn

import (
	"testing"

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
