package frame

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/mainstay-go/mainstay/pkg/wire"
	"github.com/mainstay-go/mainstay/test/framing"
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

func TestFramesAreFoundHoweverTheyArrive(t *testing.T) {
	for _, tt := range splits {
		framing.Found(t, tt.name, Protocol{MaxMessage: tt.max}, tt.in, tt.want, tt.rest, tt.err)
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
		p := Protocol{MaxMessage: maxMessage}
		whole, wholeRest, wholeErr := framing.Same(t, p, in, step)
		if wholeErr == nil && len(wholeRest) > p.limit()+headerSize {
			t.Fatalf("%d bytes are kept, limit %d", len(wholeRest), p.limit())
		}
		again := framing.Encoded(t, p, whole)
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
			framing.Scan(b, Protocol{}, in)
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
