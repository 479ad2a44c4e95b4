package handoff

import (
	"bytes"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// messages are one of each kind, well-formed and not; want is in the error,
// empty: there is none.
var messages = []struct {
	name string
	m    []byte
	want string
}{
	{name: "nothing", want: "want at least 32"},
	{name: "an offer of nothing", m: message(kindOffer, 0, 0, nil)},
	{name: "an offer of a pair and one in the memfd", m: message(kindOffer, flagBulk, 3, offered())},
	{name: "an offer that is cut off", m: message(kindOffer, flagBulk, 4, offered()), want: "connection 3 of 4: 0 bytes"},
	{name: "an offer with something left over", m: message(kindOffer, flagBulk, 2, offered()), want: "bytes too many"},
	{name: "an offer of too many", m: message(kindOffer, 0, 65, nil), want: "65 connections, want at most 64"},
	{name: "an offer whose memfd is missing", m: message(kindOffer, 0, 3, offered()), want: "there is none"},
	{name: "an answer", m: message(kindAnswer, 0, 2, []byte{0, 1})},
	{name: "an answer for all", m: message(kindAnswer, flagForAll, 1, []byte{1})},
	{name: "an answer for three", m: message(kindAnswer, 0, 3, []byte{0, 1, 2}), want: "3 of 3 codes, want 2"},
	{name: "an answer that says it is for more", m: message(kindAnswer, 0, 9, []byte{0, 1}), want: "2 of 9 codes, want 2"},
	{name: "the end of tails", m: message(kindTails, flagEnd, 0, nil)},
	{name: "tails", m: message(kindTails, flagEnd, 2, appendPiece(appendPiece(nil, 3, []byte("late"), false), 1, nil, true))},
	{name: "tails that are cut off", m: message(kindTails, 0, 2, appendPiece(nil, 3, []byte("late"), false)), want: "piece 1 of 2: 0 bytes"},
	{name: "tails with something left over", m: message(kindTails, 0, 0, []byte{1}), want: "1 bytes too many"},
	{name: "tails that are longer than they are", m: message(kindTails, 0, 1, []byte{0, 0, 0, 0, 9, 0, 0, 0}), want: "9 bytes with flags 0x0, 0 are there"},
	{name: "another magic", m: change(message(kindOffer, 0, 0, nil), 0), want: "begins with"},
	{name: "another length", m: change(message(kindOffer, 0, 0, nil), 28), want: "header says 33"},
	{name: "from nobody", m: change(message(kindOffer, 0, 0, nil), 15), want: "incarnation"},
}

func message(k kind, flags uint8, count int, rest []byte) []byte {
	m := append(begin(nil, header{version: version, kind: k, from: 7, batch: 9}), rest...)
	seal(m, flags, count)
	return m
}

func change(m []byte, at int) []byte {
	m[at]++
	return m
}

func offered() []byte {
	m := append(beginRecord(nil, record{id: 1<<32 | 5, since: 1e9, why: 3}), "state"...)
	endRecord(m, 0)
	start := len(m)
	m = beginRecord(m, record{id: 1<<32 | 6, second: true})
	endRecord(m, start)
	start = len(m)
	m = append(beginRecord(m, record{id: 1<<32 | 7}), strings.Repeat("x", 1000)...)
	return endRecordInBulk(m, start, 77)
}

// understand parses a message as an Endpoint does, an answer as one to a batch
// of two.
func understand(m []byte) error {
	h, rest, err := parse(m)
	if err != nil {
		return err
	}
	switch h.kind {
	case kindOffer:
		_, err = parseOffer(nil, h, rest)
	case kindAnswer:
		_, err = parseAnswer(h, rest, 2)
	case kindTails:
		err = parseTails(h, rest, func(int, []byte, bool) {})
	}
	return err
}

func TestMessagesAreUnderstoodOrRefused(t *testing.T) {
	for _, tt := range messages {
		t.Run(tt.name, func(t *testing.T) {
			err := understand(tt.m)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

func TestOfferIsReadAsItWasWritten(t *testing.T) {
	h, rest, err := parse(message(kindOffer, flagBulk, 3, offered()))
	if err != nil {
		t.Fatal(err)
	}
	if want := (header{version: version, kind: kindOffer, flags: flagBulk, from: 7, batch: 9, count: 3}); h != want {
		t.Errorf("header %+v, want %+v", h, want)
	}
	got, err := parseOffer(nil, h, rest)
	want := []record{
		{id: 1<<32 | 5, since: 1e9, why: 3, body: []byte("state"), size: 5},
		{id: 1<<32 | 6, second: true, body: []byte{}},
		{id: 1<<32 | 7, inBulk: true, size: 1000, offset: 77},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
}

// FuzzMessage has whatever arrives parsed, and what was understood written
// again: it must be the same.
func FuzzMessage(f *testing.F) {
	for _, tt := range messages {
		f.Add(tt.m)
	}
	f.Fuzz(func(t *testing.T, m []byte) {
		h, rest, err := parse(m)
		if err != nil {
			return
		}
		again := begin(nil, h)
		switch h.kind {
		case kindOffer:
			records, err := parseOffer(nil, h, rest)
			if err != nil {
				return
			}
			for _, r := range records {
				start := len(again)
				again = beginRecord(again, r)
				if r.inBulk {
					again = endRecordInBulk(again, start, r.offset)
					copy(again[start+16:], m[start+16:start+20]) // the size of a body that is not here
				} else {
					again = append(again, r.body...)
					endRecord(again, start)
				}
			}
		case kindAnswer:
			codes, err := parseAnswer(h, rest, 2)
			if err != nil {
				return
			}
			again = append(again, codes...)
		case kindTails:
			if err := parseTails(h, rest, func(place int, piece []byte, more bool) {
				again = appendPiece(again, place, piece, more)
			}); err != nil {
				return
			}
		default:
			again = append(again, rest...)
		}
		seal(again, h.flags, h.count)
		if !bytes.Equal(again, m) {
			t.Errorf("% x\nwritten again is\n% x", m, again)
		}
	})
}

// FuzzOffer and the two below have an Endpoint act on what arrives, in a state
// in which every kind means something. It must keep its descriptors, and what
// it serves must be its own.
func FuzzOffer(f *testing.F)  { fuzzKind(f, kindOffer) }
func FuzzAnswer(f *testing.F) { fuzzKind(f, kindAnswer) }
func FuzzTails(f *testing.F)  { fuzzKind(f, kindTails) }

func fuzzKind(f *testing.F, k kind) {
	for _, tt := range messages {
		if len(tt.m) >= headerSize && kind(tt.m[6]) == k {
			f.Add(tt.m[headerSize:], tt.m[7], uint8(tt.m[24]), uint16(version), uint8(1))
		}
	}
	f.Fuzz(func(t *testing.T, rest []byte, flags, count uint8, v uint16, batch uint8) {
		giver, taker := two(t)
		// A batch that waits for its answer, and one that waits for its tails.
		offered, taken := giver.open("offered"), giver.open("taken")
		done := 0
		giver.Give(2, 0, freeze(taken), nil)
		converse(t, taker)
		giver.Give(2, 0, freeze(offered), func(Outcome) { done++ })
		m := append(begin(nil, header{version: v, kind: k, from: 2, batch: uint64(batch)}), rest...)
		to := giver
		if k != kindAnswer {
			m[8] = 1
			to = taker
		}
		seal(m, flags, int(count))
		if len(m) > maxMessage {
			return
		}
		fd, err := unix.FcntlInt(uintptr(offered.fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		fds := []int{fd}
		_ = to.handle(m, fds, false)
		if fds[0] >= 0 {
			unix.Close(fd)
		}
		giver.clock.pass(DefaultDeadline)
		converse(t, giver, taker)
		giver.clock.pass(DefaultTailWait)
		if done != 1 || giver.conns[offered.id] == nil == (taker.conns[offered.id] == nil) {
			t.Errorf("done %d times, giver %v, taker %v", done, giver.conns[offered.id], taker.conns[offered.id])
		}
		if taker.conns[taken.id] == nil || taker.conns[taken.id].tails != 1 {
			t.Errorf("what was taken is %+v", taker.conns[taken.id])
		}
		if slices.Contains(taker.log, "drop taken") {
			t.Errorf("the taker's: %q", taker.log)
		}
	})
}
