package text

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/mainstay-go/mainstay/pkg/wire"
	"github.com/mainstay-go/mainstay/test/framing"
)

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
	{name: "one line", in: "hello\n", want: []string{"hello"}},
	{name: "carriage return", in: "hello\r\n", want: []string{"hello"}},
	{name: "one of two carriage returns", in: "hello\r\r\n", want: []string{"hello\r"}},
	{name: "carriage return inside", in: "a\rb\n", want: []string{"a\rb"}},
	{name: "empty lines", in: "\n\r\n\n", want: []string{"", "", ""}},
	{name: "unfinished", in: "a\nrest", want: []string{"a"}, rest: "rest"},
	{name: "any bytes", in: "\x00\xff\n", want: []string{"\x00\xff"}},
	{name: "as long as allowed", max: 3, in: "abc\nabc\r\n", want: []string{"abc", "abc"}},
	{name: "unfinished and as long as allowed", max: 3, in: "abc\r", rest: "abc\r"},
	{name: "too long", max: 3, in: "a\nabcd\n", want: []string{"a"}, rest: "abcd\n", err: wire.ErrTooLong},
	{name: "unfinished and too long", max: 3, in: "abcd", rest: "abcd", err: wire.ErrTooLong},
	{name: "too long by a carriage return", max: 3, in: "abc\r\r\n", rest: "abc\r\r\n", err: wire.ErrTooLong},
	{name: "default limit", in: strings.Repeat("x", DefaultMaxLine+1), rest: strings.Repeat("x", DefaultMaxLine+1), err: wire.ErrTooLong},
	{name: "no limit", max: -1, in: strings.Repeat("x", DefaultMaxLine+1) + "\n", want: []string{strings.Repeat("x", DefaultMaxLine+1)}},
}

func TestLinesAreFoundHoweverTheyArrive(t *testing.T) {
	for _, tt := range splits {
		framing.Found(t, tt.name, Protocol{MaxLine: tt.max}, tt.in, tt.want, tt.rest, tt.err)
	}
}

func TestUnencodableMessageIsRefused(t *testing.T) {
	p := Protocol{MaxLine: 3}
	for _, tt := range []struct {
		name, msg, want string
		fails           bool
	}{
		{name: "line", msg: "abc", want: ">abc\n"},
		{name: "empty", msg: "", want: ">\n"},
		{name: "newline inside", msg: "a\nb", want: ">", fails: true},
		{name: "too long", msg: "abcd", want: ">", fails: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := p.Append([]byte(">"), []byte(tt.msg))
			if string(got) != tt.want || (err != nil) != tt.fails {
				t.Errorf("got %q, %v, want %q, failure %v", got, err, tt.want, tt.fails)
			}
		})
	}
	if _, err := p.Append(nil, []byte("abcd")); !errors.Is(err, wire.ErrTooLong) {
		t.Errorf("error %v, want wire.ErrTooLong", err)
	}
}

func FuzzSplitFindsTheSameWholeAndByteByByte(f *testing.F) {
	for _, tt := range splits {
		if len(tt.in) < 1000 {
			f.Add([]byte(tt.in), tt.max, 1)
		}
	}
	f.Fuzz(func(t *testing.T, in []byte, maxLine, step int) {
		p := Protocol{MaxLine: maxLine}
		whole, wholeRest, wholeErr := framing.Same(t, p, in, step)
		if p.limit() >= 0 && wholeErr == nil && len(wholeRest) > p.limit()+1 {
			t.Fatalf("%d bytes are kept, limit %d", len(wholeRest), p.limit())
		}
		for _, m := range whole {
			encoded, err := p.Append(nil, []byte(m))
			if err != nil {
				t.Fatalf("Append(%q): %v", m, err)
			}
			if strings.HasSuffix(m, "\r") {
				continue // taken for a part of the ending
			}
			advance, back, ok, err := p.Split(encoded, false)
			if advance != len(encoded) || string(back) != m || !ok || err != nil {
				t.Fatalf("Split(%q) = %d, %q, %v, %v", encoded, advance, back, ok, err)
			}
		}
	})
}

func BenchmarkSplit(b *testing.B) {
	for _, size := range []int{16, 64, 1024} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			in := bytes.Repeat(append(bytes.Repeat([]byte{'x'}, size-1), '\n'), 64<<10/size)
			b.SetBytes(int64(size))
			framing.Scan(b, Protocol{}, in)
		})
	}
}

func ExampleProtocol() {
	var p Protocol
	out, _ := p.Append(nil, []byte("hello"))
	advance, msg, ok, _ := p.Split(append(out, "unfin"...), false)
	fmt.Printf("%q %d %q %v\n", out, advance, msg, ok)
	// Output: "hello\n" 6 "hello" true
}
