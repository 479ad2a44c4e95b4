package load

import (
	"bytes"
	"errors"
	"testing"
)

var shapes = []struct {
	name string
	mode Mode
	size int
}{
	{"smallest raw", Raw, MinRawSize},
	{"raw", Raw, 64},
	{"large raw", Raw, 5000},
	{"smallest text", Text, MinTextSize},
	{"text", Text, 64},
}

// stream returns the first n messages of connection id.
func stream(m *messages, id uint64, n int) []byte {
	b := make([]byte, n*m.size)
	return b[:m.fill(b, id, place{}, uint64(n))]
}

func TestAStreamIsRightInPiecesOfAnyLength(t *testing.T) {
	for _, s := range shapes {
		t.Run(s.name, func(t *testing.T) {
			m := newMessages(s.mode, s.size)
			b := stream(m, 7<<32, 5)
			for step := 1; step <= len(b); step += 1 + step/3 {
				var p place
				for i := 0; i < len(b); i += step {
					if err := m.check(b[i:min(i+step, len(b))], 7<<32, &p); err != nil {
						t.Fatalf("pieces of %d: %v", step, err)
					}
				}
				if p != (place{seq: 5}) {
					t.Fatalf("pieces of %d: ended at %+v, want message 5", step, p)
				}
			}
		})
	}
}

func TestAStreamFilledInPiecesIsTheSame(t *testing.T) {
	for _, s := range shapes {
		t.Run(s.name, func(t *testing.T) {
			m := newMessages(s.mode, s.size)
			want := stream(m, 3, 4)
			for step := 1; step <= len(want); step += 1 + step/3 {
				var p place
				var got []byte
				buf := make([]byte, step)
				for {
					n := m.fill(buf, 3, p, 4)
					if n == 0 {
						break
					}
					got = append(got, buf[:n]...)
					m.advance(&p, n)
				}
				if !bytes.Equal(got, want) {
					t.Fatalf("pieces of %d differ from the whole", step)
				}
			}
		})
	}
}

func TestEveryWrongByteIsFoundWhereItIs(t *testing.T) {
	for _, s := range shapes {
		t.Run(s.name, func(t *testing.T) {
			m := newMessages(s.mode, s.size)
			b := stream(m, 9, 3)
			for i := range b {
				want := b[i]
				b[i] ^= 1
				var p place
				wrong, ok := errors.AsType[*WrongByteError](m.check(b, 9, &p))
				if !ok || *wrong != (WrongByteError{Conn: 9, Seq: uint64(i / s.size), Offset: i % s.size, Got: b[i], Want: want}) {
					t.Fatalf("byte %d: got %+v", i, wrong)
				}
				b[i] = want
			}
		})
	}
}

func TestWhatBelongsElsewhereIsWrong(t *testing.T) {
	for _, s := range shapes {
		m := newMessages(s.mode, s.size)
		b := stream(m, 1, 4)
		for _, c := range []struct {
			name string
			in   []byte
		}{
			{"another connection's message", stream(m, 2, 1)},
			{"a message again", append(bytes.Clone(b[:s.size]), b[:s.size]...)},
			{"a message left out", append(bytes.Clone(b[:s.size]), b[2*s.size:]...)},
			{"a byte left out", append(bytes.Clone(b[:s.size-1]), b[s.size:]...)},
			{"a byte twice", append(bytes.Clone(b[:s.size]), b[s.size-1:]...)},
		} {
			t.Run(s.name+"/"+c.name, func(t *testing.T) {
				var p place
				if err := m.check(c.in, 1, &p); err == nil {
					t.Error("got no error, want a wrong byte")
				}
			})
		}
	}
}

func TestATextMessageIsOnePrintableLine(t *testing.T) {
	m := newMessages(Text, 300)
	for i, line := range bytes.SplitAfter(stream(m, 1<<40, 600), newline)[:600] {
		if len(line) != 300 {
			t.Fatalf("line %d has %d bytes, want 300", i, len(line))
		}
		for _, b := range line[:299] {
			if b <= ' ' || b > '~' {
				t.Fatalf("line %d has byte 0x%02x, want printable ones only", i, b)
			}
		}
	}
}

func FuzzCheckTakesTheRightStreamOnlyHoweverItIsCut(f *testing.F) {
	for _, s := range shapes {
		f.Add(s.mode == Text, uint16(s.size), uint16(1), []byte(nil))
		f.Add(s.mode == Text, uint16(s.size), uint16(s.size), stream(newMessages(s.mode, s.size), 5, 2))
	}
	f.Fuzz(func(t *testing.T, text bool, size, cut uint16, in []byte) {
		mode, least := Raw, MinRawSize
		if text {
			mode, least = Text, MinTextSize
		}
		m := newMessages(mode, max(int(size), least))
		want := make([]byte, len(in))
		m.fill(want, 5, place{}, uint64(len(in)/m.size+1))
		same := bytes.Equal(in, want)

		var whole, pieces place
		errWhole := m.check(in, 5, &whole)
		if (errWhole == nil) != same {
			t.Fatalf("check says %v, comparing with the stream says %v", errWhole, same)
		}
		at := int(cut) % (len(in) + 1)
		errPieces := m.check(in[:at], 5, &pieces)
		if errPieces == nil {
			errPieces = m.check(in[at:], 5, &pieces)
		}
		if (errPieces == nil) != same || same && pieces != whole {
			t.Fatalf("cut at %d: %v at %+v, want %v at %+v", at, errPieces, pieces, errWhole, whole)
		}
	})
}
