package websocket

import (
	"bytes"
	"errors"
	"testing"
)

func TestPreparedMessageIsWhatAppendWouldHaveSent(t *testing.T) {
	payload := []byte(repeat("prepared once ", 2000))
	for _, tt := range []struct {
		name       string
		flags      uint32
		compress   bool
		compressed bool // as sent by Append
		refused    bool
	}{
		{name: "plain", flags: flagOpen},
		{name: "plain, although compression is agreed on", flags: flagOpen | flagDeflate},
		{name: "compressed", flags: flagOpen | flagDeflate, compress: true, compressed: true},
		{name: "compressed for one who has not agreed on it", flags: flagOpen, compress: true, refused: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := NewServer(&Config{})
			s.flags.Store(tt.flags)
			got, err := s.Append(nil, Prepare(nil, Text, payload, tt.compress))
			if tt.refused {
				if err == nil {
					t.Error("it is sent")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			plain := Config{CompressAbove: -1}
			if tt.compressed {
				plain.CompressAbove = 0
			}
			other := NewServer(&plain)
			other.flags.Store(tt.flags)
			want, err := other.Append(nil, append([]byte{byte(Text)}, payload...))
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes, want %d, %v", len(got), len(want), err)
			}
		})
	}
}

func TestPreparedMessageIsForServersThatAreOpen(t *testing.T) {
	msg := Prepare(nil, Binary, []byte{1}, false)
	s := NewServer(&Config{})
	if _, err := s.Append(nil, msg); !errors.Is(err, ErrNotOpen) {
		t.Errorf("before the handshake: %v", err)
	}
	s.flags.Store(flagOpen)
	if _, err := s.Append(nil, msg[:1]); err == nil {
		t.Error("an empty one is sent")
	}
	if _, err := s.Append(nil, AppendClose(nil, Normal, "")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Append(nil, msg); !errors.Is(err, ErrClosing) {
		t.Errorf("after a close: %v", err)
	}
	client := NewClient(&Config{})
	client.flags.Store(flagAsked | flagOpen)
	if _, err := client.Append(nil, msg); err == nil {
		t.Error("a client sends it")
	}
}
