package delimiter

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
	p    Protocol
	in   string
	want []string
	rest string
	err  error
}{
	{name: "nothing"},
	{name: "the default", in: "GET\r\n\r\nPUT\r\n\r\n", want: []string{"GET", "PUT"}},
	{name: "one byte", p: Protocol{Delimiter: ";"}, in: "a;b;;c", want: []string{"a", "b", ""}, rest: "c"},
	{name: "parts of a delimiter are no delimiter", in: "a\r\nb\n\r\n\r\n", want: []string{"a\r\nb\n"}},
	{name: "overlap: the first counts", p: Protocol{Delimiter: "aa"}, in: "baaa", want: []string{"b"}, rest: "a"},
	{name: "overlap within", p: Protocol{Delimiter: "aab"}, in: "aaab", want: []string{"a"}},
	{name: "kept", p: Protocol{Delimiter: "\x00\xff", Keep: true}, in: "a\x00\xff\x00\xff", want: []string{"a\x00\xff", "\x00\xff"}},
	{name: "unfinished", p: Protocol{Delimiter: "--"}, in: "a--b-", want: []string{"a"}, rest: "b-"},
	{name: "as long as allowed", p: Protocol{Delimiter: "--", MaxMessage: 3}, in: "abc--", want: []string{"abc"}},
	{name: "as long as allowed, half ended", p: Protocol{Delimiter: "--", MaxMessage: 3}, in: "abc-", rest: "abc-"},
	{name: "as long as allowed, with half a delimiter in it", p: Protocol{Delimiter: "--", MaxMessage: 3}, in: "ab-", rest: "ab-"},
	{name: "too long, not ended", p: Protocol{Delimiter: "--", MaxMessage: 3}, in: "abcd", rest: "abcd", err: wire.ErrTooLong},
	{name: "too long, half ended", p: Protocol{Delimiter: "--", MaxMessage: 3}, in: "abcd-", rest: "abcd-", err: wire.ErrTooLong},
	{name: "too long, ended", p: Protocol{Delimiter: "--", MaxMessage: 3}, in: "abcd--", rest: "abcd--", err: wire.ErrTooLong},
	{name: "too long behind a message", p: Protocol{Delimiter: "--", MaxMessage: 3}, in: "a--abcd", want: []string{"a"}, rest: "abcd", err: wire.ErrTooLong},
	{name: "too long although it looks like an end", p: Protocol{Delimiter: "aab", MaxMessage: 1}, in: "aaa", rest: "aaa"},
	{name: "as long as the default", p: Protocol{Delimiter: ";"}, in: strings.Repeat("x", DefaultMaxMessage) + ";", want: []string{strings.Repeat("x", DefaultMaxMessage)}},
	{name: "no limit", p: Protocol{Delimiter: ";", MaxMessage: -1}, in: strings.Repeat("x", DefaultMaxMessage+1) + ";", want: []string{strings.Repeat("x", DefaultMaxMessage+1)}},
	{name: "delimiter of the largest size", p: Protocol{Delimiter: "0123456789abcdef"}, in: "x0123456789abcdef", want: []string{"x"}},
	{name: "delimiter that is too long", p: Protocol{Delimiter: "0123456789abcdef0"}, in: "x", rest: "x", err: errAny},
}

func TestMessagesAreFoundHoweverTheyArrive(t *testing.T) {
	for _, tt := range splits {
		framing.Found(t, tt.name, tt.p, tt.in, tt.want, tt.rest, tt.err)
	}
}

func TestMessageWithADelimiterIsRefused(t *testing.T) {
	for _, tt := range []struct {
		name, msg, want string
		p               Protocol
		err             error
	}{
		{name: "message", msg: "GET", want: ">GET\r\n\r\n"},
		{name: "empty", want: ">\r\n\r\n"},
		{name: "half a delimiter", msg: "a\r\nb", want: ">a\r\nb\r\n\r\n"},
		{name: "delimiter inside", msg: "a\r\n\r\nb", want: ">", err: errAny},
		{name: "delimiter at the end", msg: "a\r\n\r\n", want: ">", err: errAny},
		{name: "end that would come too early", p: Protocol{Delimiter: "aa"}, msg: "ba", want: ">", err: errAny},
		{name: "end that nearly comes too early", p: Protocol{Delimiter: "aab"}, msg: "a", want: ">aaab"},
		{name: "kept, not there", p: Protocol{Delimiter: ";", Keep: true}, msg: "a", want: ">a;"},
		{name: "kept, there", p: Protocol{Delimiter: ";", Keep: true}, msg: "a;", want: ">a;"},
		{name: "kept, there twice", p: Protocol{Delimiter: ";", Keep: true}, msg: "a;;", want: ">", err: errAny},
		{name: "kept, as long as allowed", p: Protocol{Delimiter: ";", Keep: true, MaxMessage: 1}, msg: "a;", want: ">a;"},
		{name: "too long", p: Protocol{MaxMessage: 3}, msg: "abcd", want: ">", err: wire.ErrTooLong},
		{name: "no protocol", p: Protocol{Delimiter: "0123456789abcdef0"}, msg: "abc", want: ">", err: errAny},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.p.Append([]byte(">"), []byte(tt.msg))
			if string(got) != tt.want || !framing.SameError(err, tt.err) {
				t.Errorf("got %q, %v, want %q, %v", got, err, tt.want, tt.err)
			}
		})
	}
}

func TestOneCallSearchesNoFurtherThanTheLimit(t *testing.T) {
	in := append(bytes.Repeat([]byte("x"), 5), "--"...)
	if _, _, ok, err := (Protocol{Delimiter: "--", MaxMessage: 4}).Split(in, false); ok || !errors.Is(err, wire.ErrTooLong) {
		t.Errorf("found %v, %v, want wire.ErrTooLong", ok, err)
	}
}

func FuzzSplitFindsTheSameWholeAndByteByByte(f *testing.F) {
	for _, tt := range splits {
		if len(tt.in) < 1000 {
			f.Add([]byte(tt.in), tt.p.Delimiter, tt.p.Keep, tt.p.MaxMessage, 1)
		}
	}
	f.Fuzz(func(t *testing.T, in []byte, delimiter string, keep bool, limit, step int) {
		p := Protocol{Delimiter: delimiter, Keep: keep, MaxMessage: limit}
		whole, wholeRest, wholeErr := framing.Same(t, p, in, step)
		if p.Validate() != nil {
			return
		}
		if p.limit() >= 0 && wholeErr == nil && len(wholeRest) >= p.limit()+len(p.delimiter()) {
			t.Fatalf("%d bytes are kept, limit %d", len(wholeRest), p.limit())
		}
		again := framing.Encoded(t, p, whole)
		if want := in[:len(in)-len(wholeRest)]; !bytes.Equal(again, want) {
			t.Fatalf("encoded again %q, want %q", again, want)
		}
		// And the reverse: what Append takes, Split gives back.
		if out, err := p.Append(nil, in); err == nil {
			want := string(in)
			if keep && !strings.HasSuffix(want, p.delimiter()) {
				want += p.delimiter()
			}
			advance, back, ok, err := p.Split(out, false)
			if advance != len(out) || string(back) != want || !ok || err != nil {
				t.Fatalf("Split(%q) = %d, %q, %v, %v", out, advance, back, ok, err)
			}
		}
	})
}

func BenchmarkSplit(b *testing.B) {
	for _, delimiter := range []string{"\n", Default} {
		b.Run(fmt.Sprintf("%q", delimiter), func(b *testing.B) {
			in := []byte(strings.Repeat(strings.Repeat("x", 60)+delimiter, 1000))
			framing.Scan(b, Protocol{Delimiter: delimiter}, in)
		})
	}
}

func BenchmarkSplitOfAnUnfinishedMessage(b *testing.B) {
	for _, fill := range []string{"x", "\r", "\r\n\r"} {
		b.Run(fmt.Sprintf("%q", fill), func(b *testing.B) {
			in := []byte(strings.Repeat(fill, DefaultMaxMessage)[:DefaultMaxMessage])
			b.ReportAllocs()
			for b.Loop() {
				if _, _, ok, err := (Protocol{}).Split(in, false); ok || err != nil {
					b.Fatal(ok, err)
				}
			}
		})
	}
}

func ExampleProtocol() {
	p := Protocol{Delimiter: "--"}
	out, _ := p.Append(nil, []byte("hello"))
	advance, msg, ok, _ := p.Split(append(out, "unfin"...), false)
	fmt.Printf("%q %d %q %v\n", out, advance, msg, ok)
	// Output: "hello--" 7 "hello" true
}
