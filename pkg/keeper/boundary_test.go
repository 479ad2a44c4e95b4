package keeper_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/mainstay-go/mainstay/pkg/keeper"
)

func TestJudge(t *testing.T) {
	at := func(consumed, written uint64) keeper.Position {
		return keeper.Position{Consumed: consumed, Written: written}
	}
	tests := []struct {
		name   string
		noted  keeper.Position
		kernel keeper.Kernel
		want   keeper.Verdict
	}{
		{name: "fresh", kernel: keeper.Kernel{State: keeper.Established}, want: keeper.Boundary},
		{name: "between messages", noted: at(10, 20), kernel: keeper.Kernel{Position: at(10, 20), State: keeper.Established}, want: keeper.Boundary},
		{name: "a request that nobody has read", noted: at(10, 20), kernel: keeper.Kernel{Position: at(10, 20), Unread: 500, State: keeper.Established}, want: keeper.Boundary},
		{name: "a reply on its way", noted: at(10, 20), kernel: keeper.Kernel{Position: at(10, 20), Unacked: 20, State: keeper.Established}, want: keeper.Boundary},
		{name: "a reply for which the peer's window is closed", noted: at(10, 1<<20), kernel: keeper.Kernel{Position: at(10, 1<<20), Unacked: 1 << 20, State: keeper.Established}, want: keeper.Boundary},
		{name: "beyond 32 bits", noted: at(5<<32, 6<<32), kernel: keeper.Kernel{Position: at(5<<32, 6<<32), State: keeper.Established}, want: keeper.Boundary},
		{name: "peer has ended", noted: at(10, 20), kernel: keeper.Kernel{Position: at(10, 20), State: keeper.CloseWait}, want: keeper.Boundary},
		{name: "peer has ended, with unread input", noted: at(10, 20), kernel: keeper.Kernel{Position: at(10, 20), Unread: 5, State: keeper.CloseWait}, want: keeper.Boundary},
		{name: "opened with data", noted: at(10, 20), kernel: keeper.Kernel{Position: at(10, 20), State: keeper.Established, FastOpen: true}, want: keeper.Boundary},

		{name: "input taken and not noted", noted: at(10, 20), kernel: keeper.Kernel{Position: at(15, 20), State: keeper.Established}, want: keeper.Reading},
		{name: "input taken after the peer's end", noted: at(10, 20), kernel: keeper.Kernel{Position: at(15, 20), State: keeper.CloseWait}, want: keeper.Reading},
		{name: "input and output not noted", noted: at(10, 20), kernel: keeper.Kernel{Position: at(15, 25), State: keeper.Established}, want: keeper.Reading},
		{name: "more noted than was ever read: another connection's", noted: at(10, 20), kernel: keeper.Kernel{Position: at(9, 20), State: keeper.Established}, want: keeper.Reading},

		{name: "noted and not written", noted: at(10, 20), kernel: keeper.Kernel{Position: at(10, 0), State: keeper.Established}, want: keeper.Writing},
		{name: "written in part", noted: at(10, 1<<20), kernel: keeper.Kernel{Position: at(10, 1<<19), Unacked: 1 << 19, State: keeper.Established}, want: keeper.Writing},
		{name: "written and not noted", noted: at(10, 20), kernel: keeper.Kernel{Position: at(10, 21), State: keeper.Established}, want: keeper.Writing},
		{name: "written in part to a peer that has ended", noted: at(10, 20), kernel: keeper.Kernel{Position: at(10, 5), State: keeper.CloseWait}, want: keeper.Writing},

		{name: "shut down, not acknowledged", noted: at(10, 20), kernel: keeper.Kernel{Position: at(10, 21), Unacked: 1, State: keeper.FinWait1}, want: keeper.Ending},
		{name: "shut down by us alone", noted: at(10, 20), kernel: keeper.Kernel{Position: at(10, 20), State: keeper.FinWait2}, want: keeper.Ending},
		{name: "shut down by both at once", noted: at(10, 20), kernel: keeper.Kernel{Position: at(10, 20), State: keeper.Closing}, want: keeper.Ending},
		{name: "shut down by the peer, then by us", noted: at(10, 20), kernel: keeper.Kernel{Position: at(10, 20), State: keeper.LastAck}, want: keeper.Ending},
		{name: "shut down by both", noted: at(10, 20), kernel: keeper.Kernel{Position: at(10, 20), State: keeper.TimeWait}, want: keeper.Ending},

		{name: "reset", noted: at(10, 20), kernel: keeper.Kernel{Position: at(10, 20), State: keeper.Closed}, want: keeper.Broken},
		{name: "reset in the middle", noted: at(10, 20), kernel: keeper.Kernel{Position: at(15, 20), State: keeper.Closed}, want: keeper.Broken},

		{name: "data with the SYN before the handshake's end", kernel: keeper.Kernel{Position: at(0, 0), State: keeper.SynReceived, FastOpen: true}, want: keeper.Opening},
		{name: "connecting", kernel: keeper.Kernel{State: keeper.SynSent}, want: keeper.Opening},
		{name: "a listener", kernel: keeper.Kernel{State: keeper.Listening}, want: keeper.Opening},
		{name: "nothing that is known", kernel: keeper.Kernel{}, want: keeper.Opening},

		{name: "opened with data, ended", noted: at(10, 20), kernel: keeper.Kernel{Position: at(10, 20), State: keeper.CloseWait, FastOpen: true}, want: keeper.Uncertain},
	}
	found := map[keeper.Verdict]bool{}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := keeper.Judge(tt.noted, tt.kernel)
			if got != tt.want {
				t.Errorf("Judge %v, want %v", got, tt.want)
			}
			if at := keeper.AtBoundary(tt.noted, tt.kernel); at != (tt.want == keeper.Boundary) {
				t.Errorf("AtBoundary %v, verdict %v", at, got)
			}
			found[got] = true
		})
	}
	for v := keeper.Boundary; !strings.HasPrefix(v.String(), "verdict"); v++ {
		if !found[v] {
			t.Errorf("no case for %v", v)
		}
	}
}

func ExampleJudge() {
	noted := keeper.Position{Consumed: 120, Written: 4096} // by the worker, before it wrote

	// The kernel, asked by Counts after the worker's death, has them all.
	kernel := keeper.Kernel{Position: noted, Unacked: 4096, State: keeper.Established}
	fmt.Println(keeper.Judge(noted, kernel))

	// The worker died before its write.
	kernel.Written, kernel.Unacked = 0, 0
	fmt.Println(keeper.Judge(noted, kernel))
	// Output:
	// boundary
	// writing
}
