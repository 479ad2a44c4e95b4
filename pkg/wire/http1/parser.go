package http1

import "bytes"

// Limits bound what a peer may send. A zero field means its default.
type Limits struct {
	Head    int // bytes of a head, and of a trailer section; default 64 KiB
	Target  int // bytes of a target; default 16 KiB
	Fields  int // fields of a head, and of a trailer section; default 128
	Trailer int // bytes of a trailer section; default 8 KiB
}

// Defaults of Limits.
const (
	DefaultHead    = 64 << 10
	DefaultTarget  = 16 << 10
	DefaultFields  = 128
	DefaultTrailer = 8 << 10
)

// maxMethod is how long a method may be, with a target and a version as long
// as can be beside it, before a request line without an end is refused.
const maxMethod = 64

// What a chunked body may hold that is no data: framing of 16 bytes a chunk
// and twice the data is free, beyond that maxOverhead in all. One byte a chunk
// is legitimate, endless extensions are not.
const (
	maxChunkLine = 4 << 10
	freeOverhead = 16
	maxOverhead  = 16 << 10
)

// maxChunkDigits keeps the size of a chunk below 2^60.
const maxChunkDigits = 15

func value(set, otherwise int) int {
	if set > 0 {
		return set
	}
	return otherwise
}

func (l *Limits) head() int    { return value(l.Head, DefaultHead) }
func (l *Limits) target() int  { return value(l.Target, DefaultTarget) }
func (l *Limits) fields() int  { return value(l.Fields, DefaultFields) }
func (l *Limits) trailer() int { return value(l.Trailer, DefaultTrailer) }

// Kind is what Parser.Next has found.
type Kind uint8

const (
	// More means that nothing is complete: the bytes that Next has not
	// advanced over are to be given again with more behind them.
	More Kind = iota

	// RequestHead means that the head of a request is complete.
	RequestHead

	// BodyPart is a part of the body, as large as the input and the framing
	// allow.
	BodyPart

	// BodyEnd means that the body is complete.
	BodyEnd
)

// state is where in the stream a Parser stands.
type state uint8

const (
	inHead        state = iota
	inBody              // left bytes of it are to come
	inChunkSize         // at its first digit or behind; digits says which
	inChunkExt          // up to the carriage return
	inChunkSizeLF       // behind that
	inChunk             // left bytes of it are to come
	inChunkCR           // behind the data
	inChunkLF           //
	inTrailer           // the section is given as a whole
	refused             // for good
	numStates     = iota
)

// Parser is where the stream of one connection stands between two calls. The
// zero value is the start of a stream. It is used by one goroutine at a time.
type Parser struct {
	left     int64 // bytes to come of the body or chunk
	line     int32 // of an incomplete head or trailer section: where its last line starts,
	seen     int32 // and up to where that was searched for its end
	count    int32 // fields before it, the request line too
	overhead int32 // of a chunked body
	length   int32 // of the line of a chunk's size so far
	digits   uint8 // of a chunk's size so far
	state    state
}

// Between says whether the stream stands between two requests: no byte of the
// next one was looked at.
func (p *Parser) Between() bool { return p.state == inHead && p.seen == 0 }

// InHead says whether a head is awaited, or incomplete.
func (p *Parser) InHead() bool { return p.state == inHead }

// Next looks at the start of in, which begins where the last call has advanced
// to, for the next piece of the stream. It returns by how many bytes the
// caller is to advance, also with More.
//
// With RequestHead, h tells what the head says; data is nil. Unless
// h.HasBody, the next thing is the next head. With BodyPart, data is that part,
// never empty. With BodyEnd, data is the trailer section, which holds its lines
// without the empty one at the end, and most often is empty; Trailer reads it.
//
// An error is an *Error, comes again at each further call, and does not
// depend on how the stream was cut.
func (p *Parser) Next(l *Limits, h *Head, in []byte) (advance int, kind Kind, data []byte, err error) {
	switch p.state {
	case inHead:
		return p.nextHead(l, h, in)
	case inBody:
		return p.nextPart(in)
	case refused:
		return 0, More, nil, errOver
	default:
		return p.nextChunked(l, h, in)
	}
}

func (p *Parser) refuse(err *Error) (int, Kind, []byte, error) {
	*p = Parser{state: refused}
	return 0, More, nil, err
}

// nextHead reads a head. Its lines are checked as they are complete, so that
// a peer which speaks something else learns it at once; a head that did not
// come in one piece is read once more when it is complete.
func (p *Parser) nextHead(l *Limits, h *Head, in []byte) (int, Kind, []byte, error) {
	if len(in) == 0 {
		return 0, More, nil, nil
	}
	again := p.line > 0
	end, err := p.lines(l, h, in)
	if err != nil {
		return p.refuse(err)
	}
	if end == 0 {
		return 0, More, nil, nil
	}
	if again {
		if end, err = p.lines(l, h, in); err != nil {
			return p.refuse(err)
		}
	}
	h.Raw = in[:end]
	if err := h.complete(); err != nil {
		return p.refuse(err)
	}
	switch {
	case h.Chunked:
		*p = Parser{state: inChunkSize}
	case h.ContentLength > 0:
		*p = Parser{state: inBody, left: h.ContentLength}
	}
	return end, RequestHead, nil, nil
}

// lines reads the lines of a head from where the last call has stopped. It
// returns the length of the head, or 0 if it is incomplete.
func (p *Parser) lines(l *Limits, h *Head, in []byte) (end int, err *Error) {
	if p.line == 0 {
		if class[in[0]]&isToken == 0 {
			return 0, errStart // TLS to a port without, most often
		}
		h.reset()
	}
	for {
		limit, tooLong := l.head(), errHeadSize
		if first := l.line(); p.count == 0 && first < limit {
			limit, tooLong = first, errTarget
		}
		line, err := p.nextLine(in, limit, tooLong)
		if err != nil || line == nil {
			return 0, err
		}
		switch {
		case p.count == 0:
			err = h.requestLine(line, l)
		case len(line) == 0:
			end = int(p.line)
			p.line, p.seen, p.count = 0, 0, 0
			return end, nil
		case int(p.count) > l.fields():
			err = errFields
		default:
			err = h.fieldLine(line)
		}
		if err != nil {
			return 0, err
		}
		p.count++
	}
}

// line is how long a request line may be, its end included.
func (l *Limits) line() int { return maxMethod + 1 + l.target() + len(" HTTP/1.1\r\n") }

// nextLine returns the next line of in without its end and moves on behind it;
// nil if it is incomplete. limit is for all lines together.
func (p *Parser) nextLine(in []byte, limit int, tooLong *Error) ([]byte, *Error) {
	n := bytes.IndexByte(in[p.seen:], '\n')
	if n < 0 {
		p.seen = int32(len(in))
		if len(in) > limit {
			return nil, tooLong
		}
		return nil, nil
	}
	n += int(p.seen)
	line := in[p.line:n]
	if n+1 > limit {
		return nil, tooLong
	}
	if len(line) == 0 || line[len(line)-1] != '\r' {
		return nil, errBareLF
	}
	p.line, p.seen = int32(n+1), int32(n+1)
	return line[:len(line)-1], nil
}

// nextPart reads a body of known length.
func (p *Parser) nextPart(in []byte) (int, Kind, []byte, error) {
	if p.left == 0 {
		*p = Parser{}
		return 0, BodyEnd, nil, nil
	}
	if len(in) == 0 {
		return 0, More, nil, nil
	}
	n := int(min(p.left, int64(len(in))))
	p.left -= int64(n)
	return n, BodyPart, in[:n], nil
}

// nextChunked reads a chunked body (RFC 9112 7.1). The line of a chunk's size
// is consumed as it comes, so that nothing has to be kept of it.
func (p *Parser) nextChunked(l *Limits, h *Head, in []byte) (int, Kind, []byte, error) {
	i := 0
	for ; i < len(in); i++ {
		c := in[i]
		switch p.state {
		case inChunkSize:
			switch {
			case class[c]&isHex != 0:
				if p.digits++; p.digits > maxChunkDigits {
					return p.refuse(errChunkSize)
				}
				p.left = p.left<<4 | int64(nibble(c))
			case p.digits == 0:
				return p.refuse(errChunk)
			case c == ';':
				p.state = inChunkExt
			case c == '\r':
				p.state = inChunkSizeLF
			default:
				return p.refuse(errChunk)
			}
			p.length++
		case inChunkExt:
			switch {
			case c == '\r':
				p.state = inChunkSizeLF
			case class[c]&isValue == 0:
				return p.refuse(errChunk)
			}
			if p.length++; p.length > maxChunkLine-2 {
				return p.refuse(errOverhead)
			}
		case inChunkSizeLF:
			if c != '\n' {
				return p.refuse(errChunk)
			}
			if !p.weigh() {
				return p.refuse(errOverhead)
			}
			p.state = inChunk
			if p.left == 0 {
				*p = Parser{state: inTrailer}
				return p.nextTrailer(l, h, in, i+1)
			}
		case inChunk:
			n := int(min(p.left, int64(len(in)-i)))
			if p.left -= int64(n); p.left == 0 {
				p.state = inChunkCR
			}
			return i + n, BodyPart, in[i : i+n], nil
		case inChunkCR:
			if c != '\r' {
				return p.refuse(errChunk)
			}
			p.state = inChunkLF
		case inChunkLF:
			if c != '\n' {
				return p.refuse(errChunk)
			}
			p.state, p.digits, p.length = inChunkSize, 0, 0
		case inTrailer:
			return p.nextTrailer(l, h, in, i)
		}
	}
	return i, More, nil, nil
}

func nibble(c byte) byte {
	if c <= '9' {
		return c - '0'
	}
	return c&^0x20 - 'A' + 10
}

// weigh says whether a chunk of left bytes, behind its line, leaves the
// overhead of the body within its bound.
func (p *Parser) weigh() bool {
	over := int64(p.overhead) + int64(p.length) + 2 - freeOverhead
	if p.left > maxOverhead { // more than makes up for all there can be
		over = 0
	} else {
		over -= 2 * p.left
	}
	p.overhead = int32(max(over, 0))
	return p.overhead <= maxOverhead
}

// nextTrailer reads the trailer section, which begins at in[from:]. It is
// needed in one piece, as a head is.
func (p *Parser) nextTrailer(l *Limits, h *Head, in []byte, from int) (int, Kind, []byte, error) {
	section := in[from:]
	if p.line == 0 {
		h.Fields = h.Fields[:0]
	}
	for {
		line, err := p.nextLine(section, l.trailer(), errTrailerSize)
		if err != nil {
			return p.refuse(err)
		}
		if line == nil {
			return from, More, nil, nil
		}
		if len(line) == 0 {
			end := int(p.line)
			*p = Parser{}
			return from + end, BodyEnd, section[:end-2], nil
		}
		if int(p.count) >= l.fields() {
			return p.refuse(errFields)
		}
		h.Fields = h.Fields[:0]
		if err := h.fieldLine(line); err != nil {
			return p.refuse(err)
		}
		if forbidden(h.Fields[0].Name) {
			return p.refuse(errTrailer)
		}
		p.count++
	}
}

// Trailer appends the fields of a trailer section, as Next returned it, to
// fields. They lie in section.
func Trailer(fields []Field, section []byte) []Field {
	h := Head{Fields: fields}
	for len(section) > 0 {
		end := bytes.IndexByte(section, '\n')
		if end < 1 || h.fieldLine(section[:end-1]) != nil {
			break // it is none of Next's
		}
		section = section[end+1:]
	}
	return h.Fields
}
