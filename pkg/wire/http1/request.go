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
// used. It fails if net/url does not take the target,
// which the parser has checked before.
func (h *Head) Fill(r *http.Request, u *url.URL) error {
	// One string for all of the head; what is kept of it is a part of that.
	raw := string(h.Raw)
	method := len(h.Method)
	r.Method = commonMethod(raw[:method])
	r.RequestURI = raw[method+1 : method+1+len(h.Target)]
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
	h.fillHeader(r, raw)
	r.Host = u.Host
	if r.Host == "" && len(h.Host) > 0 {
		r.Host = string(h.Host)
	}
	if h.Chunked {
		r.TransferEncoding = []string{"chunked"}
		h.fillTrailer(r)
	}
	return nil
}

// in returns the part of raw, a copy of h.Raw, that part is of h.Raw. Both
// end where the input's capacity ends, which tells how far part is from the
// start.
func (h *Head) in(raw string, part []byte) string {
	at := cap(h.Raw) - cap(part)
	return raw[at : at+len(part)]
}

func commonMethod(m string) string {
	switch m {
	case http.MethodGet:
		return http.MethodGet
	case http.MethodPost:
		return http.MethodPost
	}
	return m
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

// fillHeader makes the map. raw is a copy of h.Raw.
func (h *Head) fillHeader(r *http.Request, raw string) {
	header := r.Header
	if header == nil {
		header = make(http.Header, len(h.Fields))
	} else {
		clear(header)
	}
	values := make([]string, len(h.Fields))
	for i, f := range h.Fields {
		name := h.in(raw, f.Name)
		key, known := commonNames[name]
		if !known {
			key = textproto.CanonicalMIMEHeaderKey(name)
		}
		if key == "Host" || h.Chunked && (key == "Transfer-Encoding" || key == "Trailer") {
			continue
		}
		values[i] = h.in(raw, f.Value)
		if old := header[key]; old != nil {
			header[key] = append(old, values[i])
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

// commonNames has the canonical form of the names that most requests are made
// of, as browsers, tools and proxies write them, so that it is not made anew.
var commonNames = func() map[string]string {
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
	return m
}()

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
