package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// operator is a backend that can do everything.
type operator struct {
	backend
	did        []string
	remembered []Event
	coming     chan Event
	asked      ConnectionsRequest
	handed     []Handover
	hold       chan struct{} // what is done waits for its end; nil: for nothing
}

func (o *operator) do(what string, r SlotRequest) error {
	if o.hold != nil {
		<-o.hold
	}
	if r.Slot > 3 {
		return fmt.Errorf("%w: no slot %d", ErrInvalid, r.Slot)
	}
	if r.Slot == 3 {
		return errors.New("a reload is under way")
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.did = append(o.did, fmt.Sprintf("%s %s/%d", what, r.Pool, r.Slot))
	return nil
}

func (o *operator) Recycle(_ context.Context, r SlotRequest) ([]Handover, error) {
	return o.handed, o.do("recycle", r)
}
func (o *operator) Drain(_ context.Context, r SlotRequest) ([]Handover, error) {
	return o.handed, o.do("drain", r)
}
func (o *operator) Resume(_ context.Context, r SlotRequest) error { return o.do("resume", r) }

func (o *operator) Move(_ context.Context, r MoveRequest) (Moved, error) {
	if err := o.do(fmt.Sprintf("move %d to", r.Conn), SlotRequest{Pool: r.Pool, Slot: r.Slot}); err != nil {
		return Moved{}, err
	}
	return Moved{Conn: r.Conn, From: 1, To: r.Slot, LongestStallUS: 1500}, nil
}

func (o *operator) Rebalance(_ context.Context, r RebalanceRequest) (Rebalanced, error) {
	if err := o.do("rebalance", SlotRequest{Pool: r.Pool}); err != nil {
		return Rebalanced{}, err
	}
	return Rebalanced{Moved: 7, Givers: []Giver{{Slot: 2, Excess: 8, Moved: 7, Error: "one is held"}}, Counts: []int{0, 0, 21}}, nil
}

func (o *operator) Events(ctx context.Context, follow bool, tell func(Event)) error {
	for _, e := range o.remembered {
		tell(e)
	}
	if !follow {
		return nil
	}
	for {
		select {
		case e := <-o.coming:
			tell(e)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (o *operator) Connections(_ context.Context, r ConnectionsRequest) (Connections, error) {
	o.asked = r
	return Connections{Matching: 7, Connections: []Connection{{ID: 1 << 60, Listener: "echo", Peer: "[2001:db8::1]:80", State: "open"}}}, nil
}

func TestSlotsAreOperated(t *testing.T) {
	o := &operator{}
	c, _ := start(t, o)
	for _, tt := range []struct {
		name string
		do   func(context.Context, SlotRequest) (Done, error)
		slot int
		want string // message or error
	}{
		{"recycle", c.Recycle, 0, "recycled worker 0"},
		{"drain", c.Drain, 1, "worker 1 is drained"},
		{"resume", c.Resume, 2, "worker 2 is resumed"},
		{"refused", c.Drain, 3, "a reload is under way"},
		{"unknown", c.Recycle, 4, "invalid request: no slot 4"},
	} {
		d, err := tt.do(t.Context(), SlotRequest{Pool: "worker", Slot: tt.slot})
		if err != nil {
			d.Message = err.Error()
		}
		if d.Message != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, d.Message, tt.want)
		}
	}
	if want := []string{"recycle worker/0", "drain worker/1", "resume worker/2"}; !slices.Equal(o.did, want) {
		t.Errorf("did %q, want %q", o.did, want)
	}
}

func TestConnectionsAreMoved(t *testing.T) {
	o := &operator{}
	c, _ := start(t, o)
	if m, err := c.Move(t.Context(), MoveRequest{Conn: 1 << 40, Slot: 2}); err != nil || m != (Moved{Conn: 1 << 40, From: 1, To: 2, LongestStallUS: 1500}) {
		t.Errorf("moved %+v, %v", m, err)
	}
	if _, err := c.Move(t.Context(), MoveRequest{Conn: 1 << 40, Slot: 3}); err == nil || err.Error() != "a reload is under way" {
		t.Errorf("refused: %v", err)
	}
	if _, err := c.Move(t.Context(), MoveRequest{Conn: 1 << 40, Slot: 4}); err == nil || err.Error() != "invalid request: no slot 4" {
		t.Errorf("no such slot: %v", err)
	}
	b, err := c.Rebalance(t.Context(), RebalanceRequest{Pool: "worker"})
	if err != nil || b.Moved != 7 || len(b.Givers) != 1 || b.Givers[0].Error != "one is held" || len(b.Counts) != 3 {
		t.Errorf("rebalanced %+v, %v", b, err)
	}
	if want := []string{fmt.Sprintf("move %d to /2", 1<<40), "rebalance worker/0"}; !slices.Equal(o.did, want) {
		t.Errorf("did %q, want %q", o.did, want)
	}
}

func TestHandoversAreToldInWords(t *testing.T) {
	for _, tt := range []struct {
		h    Handover
		want string
	}{
		{Handover{State: HandoverOver, Moved: 498, Left: 2, LongestStallUS: 12_345}, "498 connections moved, 2 left, longest stall 12ms"},
		{Handover{State: HandoverOver, Left: 2}, "0 connections moved, 2 left"},
		{Handover{State: HandoverGoesOn, Moved: 3, Left: 4}, "3 connections moved so far, 4 still there"},
		{Handover{State: HandoverCut, Moved: 3, Left: 4}, "3 connections moved, 4 lost with it"},
		{Handover{State: HandoverNone, Left: 4}, "4 connections drain"},
	} {
		if got := tt.h.String(); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}

func TestBackendThatCannotOperateSaysSo(t *testing.T) {
	c, _ := start(t, &backend{})
	_, recycle := c.Recycle(t.Context(), SlotRequest{})
	_, connections := c.Connections(t.Context(), ConnectionsRequest{})
	events := c.Events(t.Context(), true, func(Event) {})
	_, move := c.Move(t.Context(), MoveRequest{})
	_, rebalance := c.Rebalance(t.Context(), RebalanceRequest{})
	for name, err := range map[string]error{"move": move, "rebalance": rebalance, "recycle": recycle, "connections": connections, "events": events} {
		if err == nil || !strings.Contains(err.Error(), "does not know this request") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestConnectionsAreAskedForAsTheOperatorSays(t *testing.T) {
	o := &operator{}
	c, _ := start(t, o)
	for _, tt := range []struct{ ask, want ConnectionsRequest }{
		{ConnectionsRequest{}, ConnectionsRequest{Limit: DefaultLimit, Sort: SortAge}},
		{ConnectionsRequest{Listener: "a&b", Peer: "192.0.2.0/24", Limit: 3, Sort: SortIdle}, ConnectionsRequest{Listener: "a&b", Peer: "192.0.2.0/24", Limit: 3, Sort: SortIdle}},
	} {
		all, err := c.Connections(t.Context(), tt.ask)
		if err != nil || o.asked != tt.want {
			t.Errorf("%+v asks for %+v, %v, want %+v", tt.ask, o.asked, err, tt.want)
		}
		if len(all.Connections) != 1 || all.Connections[0].ID != 1<<60 || all.Matching != 7 {
			t.Errorf("got %+v", all)
		}
	}
}

// wrongQueries are refused, with these words.
var wrongQueries = []struct{ query, want string }{
	{"limit=many", `limit "many", want 1 to 10000`},
	{"limit=0", `limit "0", want 1 to 10000`},
	{"limit=10001", "limit 10001, want 1 to 10000"},
	{"limit=-1", "limit -1, want 1 to 10000"},
	{"sort=name", `order "name", want one of age, idle, queue, bytes`},
	{"colour=red", `no filter "colour"`},
	{"peer=a&peer=b", "peer is said 2 times"},
}

func TestWrongQueriesAreRefused(t *testing.T) {
	c, _ := start(t, &operator{})
	for _, tt := range wrongQueries {
		resp, err := c.http.Get("http://control/v1/connections?" + tt.query)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest || !strings.Contains(strings.ReplaceAll(string(body), `\"`, `"`), tt.want) {
			t.Errorf("%s: %d %s, want %q", tt.query, resp.StatusCode, body, tt.want)
		}
	}
}

func FuzzConnectionsQuery(f *testing.F) {
	for _, tt := range wrongQueries {
		f.Add(tt.query)
	}
	f.Add("listener=echo&peer=2001:db8::/32&limit=3&sort=idle")
	f.Fuzz(func(t *testing.T, query string) {
		q, err := url.ParseQuery(query)
		if err != nil {
			return
		}
		switch r, err := ParseConnections(q); {
		case err != nil && !errors.Is(err, ErrInvalid):
			t.Errorf("%v does not match ErrInvalid", err)
		case err == nil && (r.Limit < 1 || r.Limit > MaxLimit || !slices.Contains(Sorts, r.Sort)):
			t.Errorf("accepted %+v", r)
		}
	})
}

func TestConnectionsAreSortedTheMostFirst(t *testing.T) {
	all := []Connection{
		{ID: 1, AgeMS: 5, IdleMS: 1, Queued: 0, BytesIn: 1, BytesOut: 1},
		{ID: 2, AgeMS: 9, IdleMS: 0, Queued: 3, BytesIn: 0, BytesOut: 0},
		{ID: 3, AgeMS: 1, IdleMS: 1, Queued: 1, BytesIn: 9, BytesOut: 0},
	}
	for order, want := range map[string][]uint64{
		SortAge: {2, 1, 3}, SortIdle: {1, 3, 2}, SortQueue: {2, 3, 1}, SortBytes: {3, 1, 2},
	} {
		got := slices.Clone(all)
		SortConnections(got, order)
		if ids := []uint64{got[0].ID, got[1].ID, got[2].ID}; !slices.Equal(ids, want) {
			t.Errorf("%s: %v, want %v", order, ids, want)
		}
	}
}

func TestEventsAreRememberedAndFollowed(t *testing.T) {
	old := Event{At: time.Now().Add(-time.Hour).Format(time.RFC3339Nano), Kind: "worker_died", Pool: "worker", Slot: 2, PID: 42, Message: "worker died", Fields: map[string]string{"signal": "9"}}
	fresh := Event{At: time.Now().Add(time.Hour).Format(time.RFC3339Nano), Kind: "worker_ready", Slot: 2, Message: "worker ready"}
	o := &operator{remembered: []Event{old}, coming: make(chan Event, 1)}
	c, _ := start(t, o)

	var got []Event
	if err := c.Events(t.Context(), false, func(e Event) { got = append(got, e) }); err != nil || !reflect.DeepEqual(got, []Event{old}) {
		t.Errorf("remembered %+v, %v", got, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	got = nil
	err := c.Events(ctx, true, func(e Event) {
		if got = append(got, e); len(got) == 1 {
			o.coming <- fresh
			return
		}
		cancel()
	})
	if err != nil || !reflect.DeepEqual(got, []Event{old, fresh}) {
		t.Errorf("followed %+v, %v", got, err)
	}
}

func TestThoseWhoFollowEventsTakeNobodysPlace(t *testing.T) {
	o := &operator{coming: make(chan Event), remembered: []Event{{Kind: "service-ready"}}}
	c, _ := start(t, o)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	heard, ended := make(chan Event, maxStreams), make(chan error, maxStreams)
	for range maxStreams {
		go func() { ended <- c.Events(ctx, true, func(e Event) { heard <- e }) }()
	}
	for range maxStreams {
		<-heard
	}
	if err := c.Events(ctx, true, func(Event) {}); err == nil || err.Error() != "16 follow the events already" {
		t.Errorf("one more: %v", err)
	}
	if err := c.Events(ctx, false, func(Event) {}); err != nil {
		t.Errorf("one who does not follow: %v", err)
	}
	if _, err := c.Status(ctx); err != nil {
		t.Errorf("status: %v", err)
	}
	cancel()
	for range maxStreams {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

func TestWrongWayToFollowIsRefused(t *testing.T) {
	c, _ := start(t, &operator{})
	resp, err := c.http.Get("http://control/v1/events?follow=maybe")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest {
		t.Errorf("status %s, want 400", resp.Status)
	}
}

func TestWhatLastsIsNotCutOffByTheWriteDeadline(t *testing.T) {
	o := &operator{coming: make(chan Event), remembered: []Event{{Kind: "first"}}, hold: make(chan struct{})}
	s := NewServer(o)
	s.http.WriteTimeout = 20 * time.Millisecond
	c, _ := startWith(t, s)
	recycled := make(chan error, 1)
	go func() {
		_, err := c.Recycle(t.Context(), SlotRequest{})
		recycled <- err
	}()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	heard, ended := make(chan string, 2), make(chan error, 1)
	go func() { ended <- c.Events(ctx, true, func(e Event) { heard <- e.Kind }) }()
	<-heard
	late := time.NewTimer(5 * s.http.WriteTimeout) // the deadline has to be over
	defer late.Stop()
	<-late.C
	close(o.hold)
	if err := <-recycled; err != nil {
		t.Errorf("recycle: %v", err)
	}
	o.coming <- Event{Kind: "second"}
	if kind := <-heard; kind != "second" {
		t.Errorf("heard %q", kind)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
