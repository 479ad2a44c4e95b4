package worker

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/link"
)

// ask asks a worker for its connections.
func (p *proc) connections(id uint64, r control.ConnectionsRequest) control.Connections {
	p.t.Helper()
	arg, err := json.Marshal(r)
	if err != nil {
		p.t.Fatal(err)
	}
	p.tell(link.Gather{ID: id, What: "connections", Arg: arg})
	g := p.answer()
	if g.Error != "" || g.ID != id {
		p.t.Fatalf("answer %+v", g.Gathered)
	}
	var all control.Connections
	if err := json.Unmarshal(g.text, &all); err != nil {
		p.t.Fatal(err)
	}
	return all
}

func TestWorkerListsItsConnections(t *testing.T) {
	s := listen(t)
	p := serving(t, "", 4, s)
	first, second := dial(t, s), dial(t, s)
	ask(t, first, "hello")
	ask(t, second, "hello again")
	all := p.connections(1, control.ConnectionsRequest{Sort: control.SortBytes})
	if all.Matching != 2 || len(all.Connections) != 2 {
		t.Fatalf("got %+v, want two", all)
	}
	got := all.Connections[0]
	if got.AgeMS < 0 || got.AgeMS > patience.Milliseconds() || got.IdleMS < 0 || got.IdleMS > got.AgeMS+10 {
		t.Errorf("age %d ms, idle %d ms", got.AgeMS, got.IdleMS)
	}
	got.AgeMS, got.IdleMS = 0, 0
	want := control.Connection{
		Pool: "worker", Slot: 4, PID: p.cmd.Process.Pid, Generation: 7, ID: got.ID, Listener: "main",
		Peer: second.LocalAddr().String(), Local: second.RemoteAddr().String(), State: "open", BytesIn: 11, BytesOut: 11,
	}
	if got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	all = p.connections(2, control.ConnectionsRequest{Limit: 1, Peer: "127.0.0.1"})
	if all.Matching != 2 || len(all.Connections) != 1 {
		t.Errorf("limited to one: %+v", all)
	}
	all = p.connections(3, control.ConnectionsRequest{Peer: first.LocalAddr().String()})
	if all.Matching != 1 || all.Connections[0].BytesIn != 5 {
		t.Errorf("of one peer: %+v", all)
	}
	if all = p.connections(4, control.ConnectionsRequest{Listener: "other"}); all.Matching != 0 || all.Connections == nil {
		t.Errorf("of another listener: %+v", all)
	}
}

func TestWorkerListsTheConnectionsOfHTTP(t *testing.T) {
	s := listen(t)
	p := serving(t, "http", 0, s)
	c := dial(t, s)
	if _, err := io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	id := uint64(0)
	idle := func() (all control.Connections) {
		id++
		return p.connections(id, control.ConnectionsRequest{})
	}
	await(t, "an idle connection", func() bool {
		all := idle()
		return len(all.Connections) == 1 && all.Connections[0].State == "idle"
	})
	got := idle().Connections[0]
	if got.Peer != c.LocalAddr().String() || got.Local != c.RemoteAddr().String() || got.BytesIn == 0 || got.BytesOut == 0 {
		t.Errorf("got %+v", got)
	}
	if in, out := p.seat.BytesIn.Load(), p.seat.BytesOut.Load(); in != got.BytesIn || out != got.BytesOut {
		t.Errorf("the worker counts %d bytes in and %d out, want %d and %d", in, out, got.BytesIn, got.BytesOut)
	}
	c.Close()
	await(t, "no connection", func() bool { return idle().Matching == 0 })
}

func TestPeerFilterMeansWhatItSays(t *testing.T) {
	peers := []string{"192.0.2.1:80", "192.0.2.77:8080", "[2001:db8::1]:80", "[fe80::1%3]:9", "/run/x.sock", "unix"}
	for _, tt := range []struct {
		want string
		got  []string
	}{
		{"", peers},
		{"192.0.2.1", peers[:1]},
		{"192.0.2.1:80", peers[:1]},
		{"192.0.2.0/24", peers[:2]},
		{"192.0.2.9/24", peers[:2]}, // the bits behind the prefix do not matter
		{"::ffff:192.0.2.1", peers[:1]},
		{"2001:db8::/32", peers[2:3]},
		{"2001:db8:0::1", peers[2:3]},
		{"fe80::1", peers[3:4]},
		{"fe80::/10", peers[3:4]},
		{"/run/", peers[4:5]},
		{"unix", peers[5:]},
		{"192.0.2.2", nil},
	} {
		var got []string
		for _, p := range peers {
			if peerFilter(tt.want)(p) {
				got = append(got, p)
			}
		}
		if !slices.Equal(got, tt.got) {
			t.Errorf("%q: %q, want %q", tt.want, got, tt.got)
		}
	}
}

func TestWorkerWarnsOfALimitThatIsTooLowForItsConnections(t *testing.T) {
	p := serving(t, "many connections", 0, listen(t))
	p.wrote("limit of open files is lower than the connections that are allowed")
	if p := serving(t, "", 0, listen(t)); strings.Contains(p.stderr.String(), "limit of open files") {
		t.Errorf("a worker without such a number warns: %s", p.stderr)
	}
}
