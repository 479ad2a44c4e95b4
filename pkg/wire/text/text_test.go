package text

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/mainstay-go/mainstay/pkg/wire"
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

func TestLinesAreFoundHoweverTheyArrive(t *testing.T) {
	for _, tt := range splits {
		for _, step := range []int{1, 2, 3, 1 << 20} {
			if step < 1<<20 && len(tt.in) > 1000 {
				continue // quadratic, and the small ones show it
			}
			t.Run(fmt.Sprintf("%s/%d", tt.name, step), func(t *testing.T) {
				got, rest, err := feed(Protocol{MaxLine: tt.max}, []byte(tt.in), step)
				if !slices.Equal(got, tt.want) {
					t.Errorf("messages %q, want %q", got, tt.want)
				}
				if string(rest) != tt.rest {
					t.Errorf("rest %q, want %q", rest, tt.rest)
				}
				if !errors.Is(err, tt.err) {
					t.Errorf("error %v, want %v", err, tt.err)
				}
			})
		}
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
		if len(in) > 4096 {
			return // quadratic
		}
		p := Protocol{MaxLine: maxLine}
		step = max(1, step%64)
		whole, wholeRest, wholeErr := feed(p, in, max(1, len(in)))
		parts, partsRest, partsErr := feed(p, in, step)
		if !slices.Equal(whole, parts) || !bytes.Equal(wholeRest, partsRest) {
			t.Fatalf("whole %q rest %q, in steps of %d %q rest %q", whole, wholeRest, step, parts, partsRest)
		}
		if (wholeErr == nil) != (partsErr == nil) {
			t.Fatalf("whole %v, in steps of %d %v", wholeErr, step, partsErr)
		}
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
			b.ReportAllocs()
			var p wire.Protocol = Protocol{}
			rest := in
			for b.Loop() {
				advance, _, ok, _ := p.Split(rest, false)
				if !ok {
					b.Fatal("no line")
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
	advance, msg, ok, _ := p.Split(append(out, "unfin"...), false)
	fmt.Printf("%q %d %q %v\n", out, advance, msg, ok)
	// Output: "hello\n" 6 "hello" true
}
