package keeper

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// BenchmarkHarvest takes connections of a killed worker out of its keeper,
// one an iteration: bare only takes, harvest verifies and counts as well.
func BenchmarkHarvest(b *testing.B) {
	const n = 2000
	p := startWorker(b)
	p.dial(n)
	p.kill()
	fds := make([]int, n)
	for i := range fds {
		fds[i] = int(p.page.rows[i].fd.Load())
	}
	for _, bench := range []struct {
		name string
		do   func(fd int) error
	}{
		{name: "bare", do: func(int) error { return nil }},
		{name: "cookie", do: func(fd int) error { _, err := Cookie(fd); return err }},
		{name: "harvest", do: func(fd int) error {
			if _, err := Cookie(fd); err != nil {
				return err
			}
			k, err := Counts(fd)
			if err == nil && k.State != Established {
				return fmt.Errorf("%+v", k)
			}
			return err
		}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			i := 0
			for b.Loop() {
				fd, err := Reach(p.keeperFD, fds[i%n])
				if err != nil {
					b.Fatal(err)
				}
				if err := bench.do(fd); err != nil {
					b.Fatal(err)
				}
				unix.Close(fd)
				i++
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "conns/s")
		})
	}
}
