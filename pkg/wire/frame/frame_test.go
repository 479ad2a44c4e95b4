package frame

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/mainstay-go/mainstay/pkg/wire"
)

// errAny stands for an error that is not one of wire's.
var errAny = errors.New("any")

// splits is the table of the tests and the seed of the fuzz target.
var splits = []struct {
	name string
	max  int
	in   string
	want []string
	rest string
	err  error
}{
	{name: "nothing"},
	{name: "one frame", in: "\x00\x00\x00\x09hello", want: []string{"hello"}},
	{name: "empty message", in: "\x00\x00\x00\x04", want: []string{""}},
	{name: "empty messages", in: "\x00\x00\x00\x04\x00\x00\x00\x04", want: []string{"", ""}},
	{name: "any bytes", in: "\x00\x00\x00\x07\x00\xff\n", want: []string{"\x00\xff\n"}},
	{name: "part of a length", in: "\x00\x00\x00", rest: "\x00\x00\x00"},
	{name: "length alone", in: "\x00\x00\x00\x05", rest: "\x00\x00\x00\x05"},
	{name: "unfinished", in: "\x00\x00\x00\x05a\x00\x00\x00\x06b", want: []string{"a"}, rest: "\x00\x00\x00\x06b"},
	{name: "length zero", in: "\x00\x00\x00\x00", rest: "\x00\x00\x00\x00", err: errAny},
	{name: "length three", in: "\x00\x00\x00\x03", rest: "\x00\x00\x00\x03", err: errAny},
	{name: "length three behind a frame", in: "\x00\x00\x00\x05a\x00\x00\x00\x03rest", want: []string{"a"}, rest: "\x00\x00\x00\x03rest", err: errAny},
	{name: "as long as allowed", max: 3, in: "\x00\x00\x00\x07abc", want: []string{"abc"}},
	{name: "too long is told by the length alone", max: 3, in: "\x00\x00\x00\x08", rest: "\x00\x00\x00\x08", err: wire.ErrTooLong},
	{name: "the longest that can be declared", in: "\xff\xff\xff\xff", rest: "\xff\xff\xff\xff", err: wire.ErrTooLong},
	{name: "no negative lengths", in: "\x80\x00\x00\x00", rest: "\x80\x00\x00\x00", err: wire.ErrTooLong},
	{name: "one over the default", in: "\x00\x10\x00\x05", rest: "\x00\x10\x00\x05", err: wire.ErrTooLong},
	{name: "the default", in: "\x00\x10\x00\x04", rest: "\x00\x10\x00\x04"},
	{name: "no limit", max: -1, in: "\xff\xff\xff\xff", rest: "\xff\xff\xff\xff"},
}

// feed gives in to Split as it comes, step bytes at a time.
func feed(p Protocol, in []byte, step int) (got []string, rest []byte, err error) {
	var pending []byte
	for len(in) > 0 {
		n := min(step, len(in))
		pending = append(pending, in[:n]...)
		in = in[n:]
		for {
			advance, msg, ok, err := p.Split(pending, len(in) == 0)
			if err != nil {
				return got, append(pending, in...), err
			}
			if !ok {
				break
			}
			got = append(got, string(msg))
			pending = pending[advance:]
		}
	}
	return got, pending, nil
}

func TestFramesAreFoundHoweverTheyArrive(t *testing.T) {
	for _, tt := range splits {
		for _, step := range []int{1, 2, 3, 1 << 20} {
			t.Run(fmt.Sprintf("%s/%d", tt.name, step), func(t *testing.T) {
				got, rest, err := feed(Protocol{MaxMessage: tt.max}, []byte(tt.in), step)
				if !slices.Equal(got, tt.want) {
					t.Errorf("messages %q, want %q", got, tt.want)
				}
				if string(rest) != tt.rest {
					t.Errorf("rest %q, want %q", rest, tt.rest)
				}
				if (err != nil) != (tt.err != nil) || errors.Is(err, wire.ErrTooLong) != errors.Is(tt.err, wire.ErrTooLong) {
					t.Errorf("error %v, want %v", err, tt.err)
				}
			})
		}
	}
}

func TestUnencodableMessageIsRefused(t *testing.T) {
	p := Protocol{MaxMessage: 3}
	for _, tt := range []struct {
		name, msg, want string
		err             error
	}{
		{name: "message", msg: "abc", want: ">\x00\x00\x00\x07abc"},
		{name: "empty", msg: "", want: ">\x00\x00\x00\x04"},
		{name: "too long", msg: "abcd", want: ">", err: wire.ErrTooLong},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := p.Append([]byte(">"), []byte(tt.msg))
			if string(got) != tt.want || !errors.Is(err, tt.err) {
				t.Errorf("got %q, %v, want %q, %v", got, err, tt.want, tt.err)
			}
		})
	}
}

func FuzzSplitFindsTheSameWholeAndByteByByte(f *testing.F) {
	for _, tt := range splits {
		f.Add([]byte(tt.in), tt.max, 1)
	}
	f.Fuzz(func(t *testing.T, in []byte, maxMessage, step int) {
		if len(in) > 4096 {
			return // quadratic
		}
		p := Protocol{MaxMessage: maxMessage}
		step = max(1, step%64)
		whole, wholeRest, wholeErr := feed(p, in, max(1, len(in)))
		parts, partsRest, partsErr := feed(p, in, step)
		if !slices.Equal(whole, parts) || !bytes.Equal(wholeRest, partsRest) {
			t.Fatalf("whole %q rest %q, in steps of %d %q rest %q", whole, wholeRest, step, parts, partsRest)
		}
		if (wholeErr == nil) != (partsErr == nil) {
			t.Fatalf("whole %v, in steps of %d %v", wholeErr, step, partsErr)
		}
		if wholeErr == nil && len(wholeRest) > p.limit()+headerSize {
			t.Fatalf("%d bytes are kept, limit %d", len(wholeRest), p.limit())
		}
		var again []byte
		for _, m := range whole {
			var err error
			if again, err = p.Append(again, []byte(m)); err != nil {
				t.Fatalf("Append(%q): %v", m, err)
			}
		}
		// There is one encoding of a message only.
		if want := in[:len(in)-len(wholeRest)]; !bytes.Equal(again, want) {
			t.Fatalf("encoded again %q, want %q", again, want)
		}
	})
}

func BenchmarkSplit(b *testing.B) {
	for _, size := range []int{16, 64, 1024} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			one, err := Protocol{}.Append(nil, bytes.Repeat([]byte{'x'}, size-headerSize))
			if err != nil {
				b.Fatal(err)
			}
			in := []byte(strings.Repeat(string(one), 64<<10/size))
			b.SetBytes(int64(size))
			b.ReportAllocs()
			var p wire.Protocol = Protocol{}
			rest := in
			for b.Loop() {
				advance, _, ok, _ := p.Split(rest, false)
				if !ok {
					b.Fatal("no frame")
				}
				if rest = rest[advance:]; len(rest) == 0 {
					rest = in
				}
			}
		})
	}
}

func ExampleProtocol() {
	var p Protocol
	out, _ := p.Append(nil, []byte("hello"))
	advance, msg, ok, _ := p.Split(append(out, 0, 0), false)
	fmt.Printf("%q %d %q %v\n", out, advance, msg, ok)
	// Output: "\x00\x00\x00\thello" 9 "hello" true
}
