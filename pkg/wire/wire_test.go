package wire

import (
	"bytes"
	"testing"
)

func TestRawTakesEverythingAsOneMessage(t *testing.T) {
	for _, in := range []string{"", "x", "a\nb"} {
		advance, msg, ok, err := Raw{}.Split([]byte(in), false)
		if advance != len(in) || string(msg) != in || ok != (in != "") || err != nil {
			t.Errorf("Split(%q) = %d, %q, %v, %v", in, advance, msg, ok, err)
		}
		out, err := Raw{}.Append([]byte(">"), []byte(in))
		if !bytes.Equal(out, []byte(">"+in)) || err != nil {
			t.Errorf("Append(%q) = %q, %v", in, out, err)
		}
	}
}
