package metrics

import (
	"strconv"
	"strings"
)

// ContentType is that of what Append writes.
const ContentType = "text/plain; version=0.0.4; charset=utf-8"

var (
	escapeHelp  = strings.NewReplacer(`\`, `\\`, "\n", `\n`)
	escapeValue = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
)

// Append appends families in Prometheus' text format
// (prometheus.io/docs/instrumenting/exposition_formats, version 0.0.4) to
// dst. A family without series is left out. Bytes that are not UTF-8 become
// U+FFFD.
func Append(dst []byte, families []Family) []byte {
	for i := range families {
		if len(families[i].Series) > 0 {
			dst = families[i].append(dst)
		}
	}
	return dst
}

func (f *Family) append(dst []byte) []byte {
	dst = append(dst, "# HELP "+f.Name+" "+escapeHelp.Replace(strings.ToValidUTF8(f.Help, "\uFFFD"))+"\n"...)
	dst = append(dst, "# TYPE "+f.Name+" "+string(f.Type)+"\n"...)
	for i := range f.Series {
		s := &f.Series[i]
		if f.Type != TypeHistogram {
			dst = f.line(dst, "", s.Values, "", formatNumber(float64(s.Value)))
			continue
		}
		var count uint64
		for b, n := range s.Buckets {
			count += n
			bound := "+Inf"
			if b < len(f.Bounds) {
				bound = formatNumber(float64(f.Bounds[b]))
			}
			dst = f.line(dst, "_bucket", s.Values, bound, strconv.FormatUint(count, 10))
		}
		dst = f.line(dst, "_sum", s.Values, "", formatNumber(float64(s.Value)))
		dst = f.line(dst, "_count", s.Values, "", strconv.FormatUint(count, 10))
	}
	return dst
}

// line appends one sample; le is the bound of a bucket, empty: none.
func (f *Family) line(dst []byte, suffix string, values []string, le, number string) []byte {
	dst = append(dst, f.Name...)
	dst = append(dst, suffix...)
	separator := byte('{')
	label := func(name, value string) {
		dst = append(dst, separator)
		separator = ','
		dst = append(dst, name...)
		dst = append(dst, `="`...)
		dst = append(dst, escapeValue.Replace(strings.ToValidUTF8(value, "\uFFFD"))...)
		dst = append(dst, '"')
	}
	for i, v := range values {
		label(f.Labels[i], v)
	}
	if le != "" {
		label("le", le)
	}
	if separator == ',' {
		dst = append(dst, '}')
	}
	dst = append(dst, ' ')
	dst = append(dst, number...)
	return append(dst, '\n')
}
