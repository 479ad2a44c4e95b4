package websocket

import (
	"bytes"
	"compress/flate"
)

// pack compresses as a peer does (RFC 7692 7.2.1).
func pack(payload string) []byte {
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, flate.DefaultCompression)
	if err != nil {
		panic(err)
	}
	if _, err := w.Write([]byte(payload)); err != nil {
		panic(err)
	}
	if err := w.Flush(); err != nil {
		panic(err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\x00\x00\xff\xff"))
}
