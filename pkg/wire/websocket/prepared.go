package websocket

// Prepare appends to dst a Prepared, which is a message of that kind, Text or
// Binary, encoded once for any number of servers' sessions; so a message to
// all of a room is compressed once. With compress it is compressed, if that
// makes it shorter, and only sessions that have agreed on compression send it:
// Session.Compressed. The text of a Text has to be UTF-8.
func Prepare(dst []byte, kind Kind, payload []byte, compress bool) []byte {
	dst = append(dst, byte(Prepared))
	var server Session
	if compress {
		return server.appendCompressed(dst, kind, payload)
	}
	return server.appendFrame(dst, kind, payload)
}
