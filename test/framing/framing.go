// Package framing holds what the tests of every framing share: a stream is
// given to a protocol as a connection would, cut into reads of any size, and
// what is found must not depend on the cuts. Only tests import it; start at
// Found.
package framing

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/mainstay-go/mainstay/pkg/wire"
)

// quadratic is from how many bytes on a stream is not fed in steps of a few:
// Split looks at an unfinished message anew each time, and the short streams
// show the same.
const quadratic = 1000

// Feed gives in to p.Split as it comes, step bytes at a time, the last of them
// with atEOF; step must be positive. It returns the messages, what is left
// over, and the error that ended it, with all behind the last message as rest.
func Feed(p wire.Protocol, in []byte, step int) (msgs []string, rest []byte, err error) {
	for len(in) > 0 {
		n := min(step, len(in))
		rest = append(rest, in[:n]...)
		in = in[n:]
		for {
			advance, msg, ok, err := p.Split(rest, len(in) == 0)
			if err != nil {
				return msgs, append(rest, in...), err
			}
			if !ok {
				break
			}
			msgs = append(msgs, string(msg))
			rest = rest[advance:]
		}
	}
	return msgs, rest, nil
}

// SameError says whether got is what want asks for: no error for nil,
// wire.ErrTooLong for that one, and any other error for any other.
func SameError(got, want error) bool {
	return (got != nil) == (want != nil) && errors.Is(got, wire.ErrTooLong) == errors.Is(want, wire.ErrTooLong)
}

// Found checks, in a subtest for each way to cut it, that p finds in the stream
// in the messages want, leaves rest, and ends with an error as SameError
// compares it.
func Found(t *testing.T, name string, p wire.Protocol, in string, want []string, rest string, wantErr error) {
	t.Helper()
	for _, step := range []int{1, 2, 3, 1 << 20} {
		if step < len(in) && len(in) > quadratic {
			continue
		}
		t.Run(fmt.Sprintf("%s/%d", name, step), func(t *testing.T) {
			got, left, err := Feed(p, []byte(in), step)
			if !slices.Equal(got, want) {
				t.Errorf("messages %.200q, want %.200q", got, want)
			}
			if string(left) != rest {
				t.Errorf("rest %.200q, want %.200q", left, rest)
			}
			if !SameError(err, wantErr) {
				t.Errorf("error %v, want %v", err, wantErr)
			}
		})
	}
}

// Same fails the test unless p finds in the stream in the same, whole and in
// steps of step bytes, and returns that. It is for fuzzing: step may be any
// number, and a stream too long for it is skipped.
func Same(t *testing.T, p wire.Protocol, in []byte, step int) (msgs []string, rest []byte, err error) {
	t.Helper()
	if len(in) > 4*quadratic {
		t.SkipNow()
	}
	step = max(1, step%64)
	msgs, rest, err = Feed(p, in, max(1, len(in)))
	parts, partsRest, partsErr := Feed(p, in, step)
	if !slices.Equal(msgs, parts) || !bytes.Equal(rest, partsRest) {
		t.Fatalf("whole %q rest %q, in steps of %d %q rest %q", msgs, rest, step, parts, partsRest)
	}
	if (err == nil) != (partsErr == nil) {
		t.Fatalf("whole %v, in steps of %d %v", err, step, partsErr)
	}
	return msgs, rest, err
}

// Encoded appends the encodings of msgs to each other, and fails the test if
// one has none.
func Encoded(t *testing.T, p wire.Protocol, msgs []string) []byte {
	t.Helper()
	var out []byte
	for _, m := range msgs {
		var err error
		if out, err = p.Append(out, []byte(m)); err != nil {
			t.Fatalf("Append(%q): %v", m, err)
		}
	}
	return out
}

// Scan is the loop of a benchmark: it takes message after message from in, over
// and over. All of in must be messages.
func Scan(b *testing.B, p wire.Protocol, in []byte) {
	b.ReportAllocs()
	rest := in
	for b.Loop() {
		advance, _, ok, _ := p.Split(rest, false)
		if !ok {
			b.Fatal("no message")
		}
		if rest = rest[advance:]; len(rest) == 0 {
			rest = in
		}
	}
}
