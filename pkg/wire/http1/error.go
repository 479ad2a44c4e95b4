package http1

import "fmt"

// Error says why a stream is refused. Whoever gets it answers with the status
// and closes: what follows in the stream means nothing.
type Error struct {
	Status int    // of the reply: 400, 413, 414, 431, 501 or 505
	Reason string // what was wrong, for people
}

// Error tells the reason.
func (e *Error) Error() string { return fmt.Sprintf("http1: %s (%d)", e.Reason, e.Status) }

// The errors of the parser. They hold nothing of the input, so a peer that is
// refused costs no memory.
var (
	errTarget      = &Error{414, "target is too long"}
	errHeadSize    = &Error{431, "head is too long"}
	errFields      = &Error{431, "too many fields"}
	errVersion     = &Error{505, "version is neither HTTP/1.0 nor HTTP/1.1"}
	errNoVersion   = &Error{400, "request line without a version"}
	errStart       = &Error{400, "stream does not begin with a method"}
	errMethod      = &Error{400, "method is no token"}
	errRequestLine = &Error{400, "request line is malformed"}
	errBadTarget   = &Error{400, "target is malformed"}
	errBareLF      = &Error{400, "line ends without a carriage return"}
	errFold        = &Error{400, "field is folded"}
	errName        = &Error{400, "name of a field is no token"}
	errValue       = &Error{400, "control character in a field"}
	errNoHost      = &Error{400, "no Host"}
	errHosts       = &Error{400, "several Hosts"}
	errHost        = &Error{400, "Host is malformed"}
	errLength      = &Error{400, "Content-Length is malformed"}
	errLengths     = &Error{400, "several Content-Lengths"}
	errBoth        = &Error{400, "both Content-Length and Transfer-Encoding"}
	errOldCoding   = &Error{400, "Transfer-Encoding in HTTP/1.0"}
	errCoding      = &Error{501, "Transfer-Encoding other than chunked"}
	errChunk       = &Error{400, "chunk is malformed"}
	errChunkSize   = &Error{413, "chunk is too long"}
	errOverhead    = &Error{400, "too much in a chunked body that is no data"}
	errTrailerSize = &Error{431, "trailer section is too long"}
	errTrailer     = &Error{400, "trailer that must not be one"}
	errTrailerList = &Error{400, "Trailer announces what must not be one"}
	errOver        = &Error{400, "stream was refused before"}
)
