package length

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
	{name: "as frame", in: "\x00\x00\x00\x09hello", want: []string{"\x00\x00\x00\x09hello"}},
	{name: "body alone, length of all", p: Protocol{Body: true}, in: "\x00\x00\x00\x09hello\x00\x00\x00\x04", want: []string{"hello", ""}},
	{name: "body alone, length of the body", p: Protocol{Body: true, BodyOffset: 4}, in: "\x00\x00\x00\x05hello\x00\x00\x00\x00", want: []string{"hello", ""}},
	{name: "one byte", p: Protocol{Size: 1, Body: true, BodyOffset: 1}, in: "\x05hello\x00", want: []string{"hello", ""}},
	{name: "two bytes, little endian", p: Protocol{Size: 2, LittleEndian: true, Body: true, BodyOffset: 2}, in: "\x05\x00hello", want: []string{"hello"}},
	{name: "three bytes, little endian", p: Protocol{Size: 3, LittleEndian: true, Body: true, BodyOffset: 3}, in: "\x05\x00\x00hello", want: []string{"hello"}},
	{name: "eight bytes", p: Protocol{Size: 8, Body: true, BodyOffset: 8}, in: "\x00\x00\x00\x00\x00\x00\x00\x05hello", want: []string{"hello"}},
	{name: "behind a type", p: Protocol{Size: 2, Offset: 1, BodyOffset: 3}, in: "T\x00\x05helloU\x00\x00", want: []string{"T\x00\x05hello", "U\x00\x00"}},
	{name: "in the midst of a header", p: Protocol{Size: 2, Offset: 2, BodyOffset: 8}, in: "..\x00\x02....hi", want: []string{"..\x00\x02....hi"}},
	{name: "that counts from its own place", p: Protocol{Size: 2, Offset: 2, BodyOffset: 2}, in: "..\x00\x04hi..\x00\x02", want: []string{"..\x00\x04hi", "..\x00\x02"}},
	{name: "part of a header", p: Protocol{Size: 2, Offset: 2}, in: "..\x00", rest: "..\x00"},
	{name: "unfinished", p: Protocol{Body: true}, in: "\x00\x00\x00\x05a\x00\x00\x00\x06b", want: []string{"a"}, rest: "\x00\x00\x00\x06b"},
	{name: "as long as allowed", p: Protocol{Body: true, MaxMessage: 3}, in: "\x00\x00\x00\x07abc", want: []string{"abc"}},
	{name: "the package as long as allowed", p: Protocol{MaxMessage: 7}, in: "\x00\x00\x00\x07abc", want: []string{"\x00\x00\x00\x07abc"}},

	{name: "length that ends before itself", in: "\x00\x00\x00\x03", rest: "\x00\x00\x00\x03", err: errAny},
	{name: "length zero", p: Protocol{Body: true}, in: "\x00\x00\x00\x00", rest: "\x00\x00\x00\x00", err: errAny},
	{name: "length that ends before itself, behind a type", p: Protocol{Size: 2, Offset: 2, BodyOffset: 2}, in: "..\x00\x01", rest: "..\x00\x01", err: errAny},
	{name: "too long is told by the length alone", p: Protocol{Body: true, MaxMessage: 3}, in: "\x00\x00\x00\x08", rest: "\x00\x00\x00\x08", err: wire.ErrTooLong},
	{name: "package too long", p: Protocol{MaxMessage: 7}, in: "\x00\x00\x00\x08", rest: "\x00\x00\x00\x08", err: wire.ErrTooLong},
	{name: "one over the default", p: Protocol{Body: true, BodyOffset: 4}, in: "\x00\x10\x00\x01", rest: "\x00\x10\x00\x01", err: wire.ErrTooLong},
	{name: "the default", p: Protocol{Body: true, BodyOffset: 4}, in: "\x00\x10\x00\x00", rest: "\x00\x10\x00\x00"},
	{name: "all that four bytes can say", p: Protocol{MaxMessage: -1}, in: "\xff\xff\xff\xff", rest: "\xff\xff\xff\xff", err: wire.ErrTooLong},
	{name: "all that eight bytes can say", p: Protocol{Size: 8, BodyOffset: 65536, MaxMessage: -1}, in: "\xff\xff\xff\xff\xff\xff\xff\xff", rest: "\xff\xff\xff\xff\xff\xff\xff\xff", err: wire.ErrTooLong},
	{name: "no negative lengths", p: Protocol{Size: 8, Body: true, MaxMessage: -1}, in: "\x80\x00\x00\x00\x00\x00\x00\x00", rest: "\x80\x00\x00\x00\x00\x00\x00\x00", err: wire.ErrTooLong},
	{name: "half of an int", p: Protocol{Body: true, MaxMessage: -1}, in: "\x7f\xff\xff\xfb", rest: "\x7f\xff\xff\xfb"},

	{name: "length of nine bytes", p: Protocol{Size: 9}, in: "x", rest: "x", err: errAny},
	{name: "length of less than none", p: Protocol{Size: -1}, in: "x", rest: "x", err: errAny},
	{name: "offset before the start", p: Protocol{Offset: -1}, in: "x", rest: "x", err: errAny},
	{name: "offset too far", p: Protocol{Offset: 65537}, in: "x", rest: "x", err: errAny},
	{name: "body before the start", p: Protocol{BodyOffset: -1}, in: "x", rest: "x", err: errAny},
	{name: "body too far", p: Protocol{BodyOffset: 65537}, in: "x", rest: "x", err: errAny},
	{name: "body behind lost bytes", p: Protocol{Offset: 1, Body: true}, in: "x", rest: "x", err: errAny},
}

func TestPackagesAreFoundHoweverTheyArrive(t *testing.T) {
	for _, tt := range splits {
		framing.Found(t, tt.name, tt.p, tt.in, tt.want, tt.rest, tt.err)
	}
}

func TestLengthIsWrittenAsItIsRead(t *testing.T) {
	for _, tt := range []struct {
		name, msg, want string
		p               Protocol
		err             error
	}{
		{name: "as frame", msg: "????abc", want: ">\x00\x00\x00\x07abc"},
		{name: "body", p: Protocol{Body: true}, msg: "abc", want: ">\x00\x00\x00\x07abc"},
		{name: "empty body", p: Protocol{Body: true, BodyOffset: 4}, want: ">\x00\x00\x00\x00"},
		{name: "little endian", p: Protocol{Size: 2, LittleEndian: true, Body: true, BodyOffset: 2}, msg: "abc", want: ">\x03\x00abc"},
		{name: "behind a type", p: Protocol{Size: 2, Offset: 1, BodyOffset: 3}, msg: "T??abc", want: ">T\x00\x03abc"},
		{name: "in the midst of a header", p: Protocol{Size: 2, Offset: 1, BodyOffset: 5}, msg: "T??..abc", want: ">T\x00\x03..abc"},
		{name: "all that a byte can say", p: Protocol{Size: 1, Body: true, BodyOffset: 1}, msg: strings.Repeat("x", 255), want: ">\xff" + strings.Repeat("x", 255)},
		{name: "more than a byte can say", p: Protocol{Size: 1, Body: true, BodyOffset: 1}, msg: strings.Repeat("x", 256), want: ">", err: wire.ErrTooLong},
		{name: "with itself more than a byte can say", p: Protocol{Size: 1, Body: true}, msg: strings.Repeat("x", 255), want: ">", err: wire.ErrTooLong},
		{name: "too long", p: Protocol{Body: true, MaxMessage: 3}, msg: "abcd", want: ">", err: wire.ErrTooLong},
		{name: "no room for the length", msg: "abc", want: ">", err: errAny},
		{name: "no room for what never counts", p: Protocol{Size: 2, BodyOffset: 5}, msg: "????", want: ">", err: errAny},
		{name: "no protocol", p: Protocol{Size: 9}, msg: "abc", want: ">", err: errAny},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := strings.Clone(tt.msg)
			msg := []byte(tt.msg)
			got, err := tt.p.Append([]byte(">"), msg)
			if string(got) != tt.want || !framing.SameError(err, tt.err) {
				t.Errorf("got %q, %v, want %q, %v", got, err, tt.want, tt.err)
			}
			if string(msg) != before {
				t.Errorf("the message is changed to %q", msg)
			}
		})
	}
}

func FuzzSplitFindsTheSameWholeAndByteByByte(f *testing.F) {
	for _, tt := range splits {
		f.Add([]byte(tt.in), tt.p.Size, tt.p.LittleEndian, tt.p.Offset, tt.p.BodyOffset, tt.p.Body, tt.p.MaxMessage, 1)
	}
	f.Fuzz(func(t *testing.T, in []byte, size int, little bool, offset, bodyOffset int, body bool, limit, step int) {
		p := Protocol{Size: size, LittleEndian: little, Offset: offset, BodyOffset: bodyOffset, Body: body, MaxMessage: limit}
		whole, wholeRest, wholeErr := framing.Same(t, p, in, step)
		if p.Validate() != nil {
			if len(in) > 0 && wholeErr == nil {
				t.Fatal("settings that are refused are used")
			}
			return
		}
		if most := p.limit() + p.Offset + p.size(); wholeErr == nil && len(wholeRest) > most {
			t.Fatalf("%d bytes are kept, limit %d", len(wholeRest), most)
		}
		again := framing.Encoded(t, p, whole)
		// There is one encoding of a message only.
		if want := in[:len(in)-len(wholeRest)]; !bytes.Equal(again, want) {
			t.Fatalf("encoded again %q, want %q", again, want)
		}
	})
}

func BenchmarkSplit(b *testing.B) {
	one, err := Protocol{Body: true}.Append(nil, bytes.Repeat([]byte{'x'}, 60))
	if err != nil {
		b.Fatal(err)
	}
	framing.Scan(b, Protocol{Body: true}, bytes.Repeat(one, 1024))
}

func ExampleProtocol() {
	// A type, a length of what follows it, and that.
	p := Protocol{Size: 2, Offset: 1, BodyOffset: 3}
	out, _ := p.Append(nil, []byte("T\x00\x00hello"))
	advance, msg, ok, _ := p.Split(append(out, 'U'), false)
	fmt.Printf("%q %d %q %v\n", out, advance, msg, ok)
	// Output: "T\x00\x05hello" 8 "T\x00\x05hello" true
}
