package http1

import (
	"net/http"
	"net/textproto"
	"net/url"
	"strings"
)

// Fill sets in r and u what http.ReadRequest would have set for this head, but
// for Body: Method, URL (which becomes u), RequestURI, Proto and its numbers,
// Header without Host, Host, ContentLength, TransferEncoding, Trailer and
// Close. Nothing of it aliases h. A Header that r has already is emptied and
// used, and so is room, which may be nil; both are the last request's then. It
// fails if net/url does not take the target, which the parser has checked
// before.
func (h *Head) Fill(r *http.Request, u *url.URL, room *Room) error {
	text := h.text()
	r.Method = commonMethod(h.Method)
	r.RequestURI = text[:len(h.Target)]
	r.ProtoMajor, r.ProtoMinor = 1, h.Minor
	if h.Minor == 1 {
		r.Proto = "HTTP/1.1"
	} else {
		r.Proto = "HTTP/1.0"
	}
	r.Close = h.Close
	r.ContentLength = h.ContentLength
	if err := h.fillURL(r, u); err != nil {
		return err
	}
	host := h.fillHeader(r, text[len(h.Target):], room)
	r.Host = u.Host
	if r.Host == "" {
		r.Host = host
	}
	if h.Chunked {
		r.TransferEncoding = []string{"chunked"}
		h.fillTrailer(r)
	}
	return nil
}

// text returns what is kept of a head as one string: the target, and the
// values of the fields behind one another.
func (h *Head) text() string {
	n := len(h.Target)
	for _, f := range h.Fields {
		n += len(f.Value)
	}
	var b strings.Builder
	b.Grow(n)
	b.Write(h.Target)
	for _, f := range h.Fields {
		b.Write(f.Value)
	}
	return b.String()
}

func commonMethod(m []byte) string {
	switch string(m) {
	case http.MethodGet:
		return http.MethodGet
	case http.MethodPost:
		return http.MethodPost
	}
	return string(m)
}

func (h *Head) fillURL(r *http.Request, u *url.URL) error {
	r.URL = u
	if h.PlainPath {
		u.Path = r.RequestURI
		if h.Query >= 0 {
			u.Path, u.RawQuery = r.RequestURI[:h.Query], r.RequestURI[h.Query+1:]
		}
		return nil
	}
	target := r.RequestURI
	connect := r.Method == http.MethodConnect && target[0] != '/'
	if connect {
		target = "http://" + target
	}
	parsed, err := url.ParseRequestURI(target)
	if err != nil {
		return errBadTarget
	}
	*u = *parsed
	if connect {
		u.Scheme = ""
	}
	return nil
}

// Room is what Fill may use again for the next request.
type Room struct {
	keys   []string // of the fields of the last head, if each was there once
	values []string // theirs, of which the map's are parts
}

// fillHeader makes the map, of text's part behind the target, and returns the
// value of Host.
func (h *Head) fillHeader(r *http.Request, text string, room *Room) (host string) {
	var own Room
	if room == nil {
		room = &own
	}
	if host, ok := h.refill(r.Header, text, room); ok {
		return host
	}
	header, n := r.Header, len(h.Fields)
	if header == nil {
		header = make(http.Header, n)
	} else if len(header) > 0 {
		clear(header)
	}
	if cap(room.values) < n {
		room.values = make([]string, n)
	}
	values := room.values[:n]
	room.values = values
	room.keys = room.keys[:0]
	for i, f := range h.Fields {
		key := commonName(f.Name)
		if key == "" {
			key = textproto.CanonicalMIMEHeaderKey(string(f.Name))
		}
		if room != &own {
			room.keys = append(room.keys, key)
		}
		value := text[:len(f.Value)]
		text = text[len(value):]
		if key == "Host" {
			host = value
		}
		if key == "Host" || h.Chunked && (key == "Transfer-Encoding" || key == "Trailer") {
			continue
		}
		values[i] = value
		if old := header[key]; old != nil {
			header[key] = append(old, values[i])
			room.keys = room.keys[:0]
		} else {
			header[key] = values[i : i+1 : i+1]
		}
	}
	r.Header = header
	// RFC 9111 5.4
	if pragma := header["Pragma"]; len(pragma) > 0 && pragma[0] == "no-cache" {
		if _, ok := header["Cache-Control"]; !ok {
			header["Cache-Control"] = []string{"no-cache"}
		}
	}
	return host
}

// refill puts the values into a map that holds the same keys, from the last
// request, and says whether it could: clients send the same fields again and
// again, and to look a key up costs half of what it costs to clear the map and
// to set it. Whatever was done to the map or to a list in it is seen here.
func (h *Head) refill(header http.Header, text string, room *Room) (host string, ok bool) {
	if len(room.keys) == 0 || len(room.keys) != len(h.Fields) || h.Chunked {
		return "", false
	}
	hosts := 0
	for i, f := range h.Fields {
		key := room.keys[i]
		if commonName(f.Name) != key {
			return "", false
		}
		if key == "Host" {
			hosts++
			continue
		}
		if at := header[key]; len(at) != 1 || &at[0] != &room.values[i] || key == "Pragma" {
			return "", false
		}
	}
	if len(header)+hosts != len(h.Fields) {
		return "", false
	}
	for i, f := range h.Fields {
		value := text[:len(f.Value)]
		text = text[len(value):]
		if room.keys[i] == "Host" {
			host = value
		} else {
			room.values[i] = value
		}
	}
	return host, true
}

// fillTrailer makes the map with what the request announces.
func (h *Head) fillTrailer(r *http.Request) {
	if !h.trailer {
		return
	}
	for _, f := range h.Fields {
		if !equalFold(f.Name, "trailer") {
			continue
		}
		for name := range strings.SplitSeq(string(f.Value), ",") {
			if name = textproto.TrimString(name); name == "" {
				continue
			}
			if r.Trailer == nil {
				r.Trailer = http.Header{}
			}
			r.Trailer[http.CanonicalHeaderKey(name)] = nil
		}
	}
}

// commonNames has the names that most requests are made of, as browsers,
// tools and proxies write them, and their canonical form, so that it is not made
// anew: those with the same nameHash stand together.
var commonNames = func() (table [256][][2]string) {
	m := make(map[string]string)
	for _, name := range []string{
		"Accept", "Accept-Charset", "Accept-Encoding", "Accept-Language", "Authorization", "Cache-Control", "Connection",
		"Content-Encoding", "Content-Length", "Content-Type", "Cookie", "Dnt", "Expect", "Forwarded", "From", "Host",
		"If-Match", "If-Modified-Since", "If-None-Match", "If-Range", "If-Unmodified-Since", "Last-Event-Id", "Origin",
		"Pragma", "Priority", "Range", "Referer", "Sec-Ch-Ua", "Sec-Ch-Ua-Mobile", "Sec-Ch-Ua-Platform", "Sec-Fetch-Dest",
		"Sec-Fetch-Mode", "Sec-Fetch-Site", "Sec-Fetch-User", "Sec-Websocket-Extensions", "Sec-Websocket-Key",
		"Sec-Websocket-Protocol", "Sec-Websocket-Version", "Te", "Traceparent", "Tracestate", "Trailer", "Transfer-Encoding",
		"Upgrade", "Upgrade-Insecure-Requests", "User-Agent", "Via", "X-Forwarded-For", "X-Forwarded-Host",
		"X-Forwarded-Proto", "X-Real-Ip", "X-Request-Id", "X-Requested-With",
	} {
		m[name] = name
		m[strings.ToLower(name)] = name
	}
	for _, name := range []string{"DNT", "Last-Event-ID", "Sec-WebSocket-Extensions", "Sec-WebSocket-Key", "Sec-WebSocket-Protocol", "Sec-WebSocket-Version", "TE", "X-Real-IP", "X-Request-ID"} {
		m[name] = http.CanonicalHeaderKey(name)
	}
	for name, canonical := range m {
		hash := nameHash([]byte(name))
		table[hash] = append(table[hash], [2]string{name, canonical})
	}
	return table
}()

// nameHash is for a name that is not empty.
func nameHash(name []byte) uint8 {
	n := len(name)
	return uint8(n)*5 + name[0]*3 + name[n-1]*7 + name[n/2]*11
}

// commonName returns the canonical form of a name, "" if that is none of
// commonNames.
func commonName(name []byte) string {
	for _, c := range commonNames[nameHash(name)] {
		if c[0] == string(name) {
			return c[1]
		}
	}
	return ""
}

// FillTrailer puts a trailer section, as Parser.Next returned it, into
// r.Trailer.
func FillTrailer(r *http.Request, section []byte) {
	if len(section) == 0 {
		return
	}
	if r.Trailer == nil {
		r.Trailer = http.Header{}
	}
	fields := Trailer(nil, section)
	seen := make(http.Header, len(fields))
	for _, f := range fields {
		seen.Add(string(f.Name), string(f.Value))
	}
	for key, values := range seen {
		r.Trailer[key] = values
	}
}
