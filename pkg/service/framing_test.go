package service

import (
	"io"
	"strings"
	"testing"

	"github.com/mainstay-go/mainstay/pkg/wire/delimiter"
	"github.com/mainstay-go/mainstay/pkg/wire/length"
)

func TestFramingsThatAreChosen(t *testing.T) {
	back := func(c *Conn[struct{}], m []byte) {
		if err := c.Send(m); err != nil {
			t.Errorf("Send: %v", err)
		}
	}
	for _, tt := range []struct {
		name     string
		protocol Protocol
		stream   string
	}{
		{"four bytes that count themselves", Length[struct{}]{OnMessage: back}, "\x00\x00\x00\x06hi\x00\x00\x00\x04"},
		{
			"two bytes, little endian, behind a type", Length[struct{}]{Format: length.Protocol{Size: 2, LittleEndian: true, Offset: 1, BodyOffset: 3}, OnMessage: back},
			"T\x02\x00hiU\x00\x00",
		},
		{"an empty line", Delimiter[struct{}]{OnMessage: back}, "hi\r\n\r\n\r\n\r\n"},
		{"a delimiter that is kept", Delimiter[struct{}]{Format: delimiter.Protocol{Delimiter: ";", Keep: true}, Inline: true, OnMessage: back, Limits: Limits{MaxMessage: 3}}, "hi;;"},
		{"the longest that is taken if nobody says", Delimiter[struct{}]{Format: delimiter.Protocol{Delimiter: ";", Keep: true}, Inline: true, OnMessage: back}, strings.Repeat("x", delimiter.DefaultMaxMessage) + ";"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := serve(t, tt.protocol)
			go io.WriteString(c, tt.stream)
			got := make([]byte, len(tt.stream))
			if _, err := io.ReadFull(c, got); err != nil || string(got) != tt.stream {
				t.Errorf("got %.100q, %v", got, err)
			}
		})
	}
}

func TestMessageBeyondTheFramingsLimitEndsTheConnection(t *testing.T) {
	for _, tt := range []struct {
		name     string
		protocol Protocol
		stream   string
	}{
		{"length", Length[struct{}]{Limits: Limits{MaxMessage: 5}}, "\x00\x00\x00\x06hi"},
		{"delimiter", Delimiter[struct{}]{Limits: Limits{MaxMessage: 5}}, strings.Repeat("x", 100)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := serve(t, tt.protocol)
			io.WriteString(c, tt.stream)
			if b, err := io.ReadAll(c); len(b) > 0 || err != nil {
				t.Errorf("got %q, %v, want the end", b, err)
			}
		})
	}
}

func TestFramingThatCannotBeIsRefused(t *testing.T) {
	for _, p := range []Protocol{
		Length[struct{}]{Format: length.Protocol{Size: 9}},
		Delimiter[struct{}]{Format: delimiter.Protocol{Delimiter: strings.Repeat("x", delimiter.MaxDelimiter+1)}},
	} {
		if _, err := p.listener("main", listenerConfig{}); err == nil {
			t.Errorf("%+v was taken", p)
		}
	}
}

// A connection must not be taken over by one that would cut it otherwise.
func TestProtocolsNameTellsWhatTheBytesMean(t *testing.T) {
	names := map[string]bool{}
	for _, p := range []Protocol{
		Raw[struct{}]{}, Text[struct{}]{}, Frame[struct{}]{}, Length[struct{}]{}, Length[struct{}]{Format: length.Protocol{Size: 2}},
		Delimiter[struct{}]{}, Delimiter[struct{}]{Format: delimiter.Protocol{Delimiter: ";"}}, Delimiter[struct{}]{Format: delimiter.Protocol{Delimiter: ";", Keep: true}},
	} {
		name := func(set listenerConfig) string {
			l, err := p.listener("main", set)
			if err != nil {
				t.Fatal(err)
			}
			return l.Conn.ProtocolName
		}
		own := name(listenerConfig{})
		if names[own] {
			t.Errorf("%q twice", own)
		}
		names[own] = true
		if other := name(listenerConfig{MaxMessage: 77}); other != own {
			t.Errorf("with another limit %q, want %q", other, own)
		}
	}
}
