package http1

// What a byte may be part of.
const (
	isToken  byte = 1 << iota // RFC 9110 5.6.2
	isValue                   // of a field, RFC 9110 5.5: visible, space, tab, obs-text
	isTarget                  // visible or obs-text, but for what begins a fragment
	isHost                    // as net/http has it: what a host may be, and brackets and escapes
	isHex
	isPlain // in a path: stands for itself, and is written as itself
)

var class [256]byte

func init() {
	mark := func(chars string, bit byte) {
		for _, c := range []byte(chars) {
			class[c] |= bit
		}
	}
	const digits, letters = "0123456789", "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	mark(digits+letters+"!#$%&'*+-.^_`|~", isToken)
	mark(digits+letters+"!$%&'()*+,-.:;=[]_~", isHost)
	mark(digits+letters+"-_.~$&+,/:;=@", isPlain)
	mark(digits+"abcdefABCDEF", isHex)
	for c := 0x20; c < 0x100; c++ {
		if c == 0x7f {
			continue
		}
		class[c] |= isValue
		if c > 0x20 && c != '#' {
			class[c] |= isTarget
		}
	}
	mark("\t", isValue)
}

// all says whether each byte of b has the bit.
func all(b []byte, bit byte) bool {
	for _, c := range b {
		if class[c]&bit == 0 {
			return false
		}
	}
	return true
}

// equalFold says whether b is lower, whose letters are in lower case,
// whatever the case of b's.
func equalFold(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// trim takes spaces and tabs off both ends.
func trim(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}

// hasToken says whether a comma-separated list holds a word, which is in
// lower case.
func hasToken(list []byte, word string) bool {
	for len(list) > 0 {
		end := 0
		for end < len(list) && list[end] != ',' {
			end++
		}
		if equalFold(trim(list[:end]), word) {
			return true
		}
		if end == len(list) {
			break
		}
		list = list[end+1:]
	}
	return false
}
