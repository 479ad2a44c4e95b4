package journal

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"go.uber.org/zap/zapcore"
)

// format makes lines. It never changes: with returns another one.
type format interface {
	with(fields []zapcore.Field) format
	line(entry zapcore.Entry, fields []zapcore.Field) line
}

// jsonFormat is zap's own JSON.
type jsonFormat struct{ encoder zapcore.Encoder }

var jsonConfig = zapcore.EncoderConfig{
	TimeKey: "time", LevelKey: "level", NameKey: "logger", CallerKey: "caller", MessageKey: "message", StacktraceKey: "stacktrace",
	EncodeTime:     zapcore.RFC3339NanoTimeEncoder,
	EncodeLevel:    zapcore.LowercaseLevelEncoder,
	EncodeDuration: zapcore.SecondsDurationEncoder,
	EncodeCaller:   zapcore.ShortCallerEncoder,
}

func newJSONFormat() format { return jsonFormat{zapcore.NewJSONEncoder(jsonConfig)} }

func (f jsonFormat) with(fields []zapcore.Field) format {
	encoder := f.encoder.Clone()
	for _, field := range fields {
		field.AddTo(encoder)
	}
	return jsonFormat{encoder}
}

func (f jsonFormat) line(entry zapcore.Entry, fields []zapcore.Field) line {
	out, err := f.encoder.EncodeEntry(entry, fields)
	if err != nil {
		return line{data: fmt.Appendf(nil, "{\"message\":%q,\"error\":%q}\n", entry.Message, err)}
	}
	defer out.Free()
	return line{data: slices.Clone(out.Bytes())}
}

// fieldFormat is journald's native protocol and text for people: the second is
// MESSAGE in the first.
type fieldFormat struct {
	identifier string
	native     bool
	context    fieldEncoder // the fields of the logger
}

func (f fieldFormat) with(fields []zapcore.Field) format {
	f.context = f.context.clone(f.native)
	for _, field := range fields {
		field.AddTo(&f.context)
	}
	return f
}

func (f fieldFormat) line(entry zapcore.Entry, fields []zapcore.Field) line {
	e := f.context.clone(f.native)
	for _, field := range fields {
		field.AddTo(&e)
	}
	if entry.Stack != "" {
		e.prefix = ""
		e.AddString("stacktrace", entry.Stack)
	}
	var text []byte
	if !f.native {
		text = entry.Time.Local().AppendFormat(text, "15:04:05.000")
		text = fmt.Appendf(text, " %-5s ", entry.Level.CapitalString())
	}
	text = appendText(text, entry, &e)
	if !f.native {
		return line{data: append(text, '\n')}
	}

	priority := priorityOf(entry.Level)
	data := make([]byte, 0, 256+len(text)+len(e.fields))
	data = appendField(data, "MESSAGE", text)
	data = appendField(data, "EVENT", entry.Message)
	data = appendField(data, "PRIORITY", strconv.Itoa(priority))
	data = appendField(data, "SYSLOG_IDENTIFIER", f.identifier)
	if entry.LoggerName != "" {
		data = appendField(data, "LOGGER", entry.LoggerName)
	}
	if entry.Caller.Defined {
		data = appendField(data, "CODE_FILE", entry.Caller.File)
		data = appendField(data, "CODE_LINE", strconv.Itoa(entry.Caller.Line))
		data = appendField(data, "CODE_FUNC", entry.Caller.Function)
	}
	data = append(data, e.fields...)

	ln := line{data: data}
	if priority <= priorityError {
		mark := fmt.Sprintf("<%d>", priority)
		ln.fallback = append([]byte(mark), bytes.ReplaceAll(text, []byte("\n"), []byte("\n"+mark))...)
		ln.fallback = append(ln.fallback, '\n')
	}
	return ln
}

// The priorities of syslog(3) that are used.
const (
	priorityCritical = 2
	priorityError    = 3
	priorityWarning  = 4
	priorityInfo     = 6
	priorityDebug    = 7
)

func priorityOf(level zapcore.Level) int {
	switch {
	case level < zapcore.InfoLevel:
		return priorityDebug
	case level < zapcore.WarnLevel:
		return priorityInfo
	case level < zapcore.ErrorLevel:
		return priorityWarning
	case level == zapcore.ErrorLevel:
		return priorityError
	}
	return priorityCritical
}

// appendText appends the line for people, without its end.
func appendText(dst []byte, entry zapcore.Entry, e *fieldEncoder) []byte {
	if entry.LoggerName != "" {
		dst = append(dst, entry.LoggerName...)
		dst = append(dst, ": "...)
	}
	first, rest, more := strings.Cut(entry.Message, "\n")
	dst = append(dst, printable(first)...)
	dst = append(dst, e.pairs...)
	if more {
		dst = appendIndented(dst, "\n    ", rest)
	}
	return append(dst, e.blocks...)
}

// fieldEncoder is the zapcore.ObjectEncoder of both forms.
type fieldEncoder struct {
	native bool
	fields []byte // native: the fields, encoded
	pairs  []byte // text: " key=value"
	blocks []byte // text: values of several lines
	prefix string // open namespaces and objects, each with a dot behind
}

// clone returns a copy whose buffers are its own.
func (e fieldEncoder) clone(native bool) fieldEncoder {
	e.native = native
	e.fields = slices.Clip(e.fields)
	e.pairs = slices.Clip(e.pairs)
	e.blocks = slices.Clip(e.blocks)
	return e
}

// add adds a field with its value in the journal and in text.
func (e *fieldEncoder) add(key, native, text string) {
	key = e.prefix + key
	if e.native {
		e.fields = appendField(e.fields, fieldName(key), native)
	}
	switch {
	case key == "message_id": // for machines
	case strings.Contains(text, "\n"):
		e.blocks = append(e.blocks, "\n    "...)
		e.blocks = append(e.blocks, printable(key)...)
		e.blocks = append(e.blocks, ':')
		e.blocks = appendIndented(e.blocks, "\n      ", strings.TrimSuffix(text, "\n"))
	default:
		e.pairs = append(e.pairs, ' ')
		e.pairs = append(e.pairs, printable(key)...)
		e.pairs = append(e.pairs, '=')
		if needsQuotes(text) {
			e.pairs = strconv.AppendQuote(e.pairs, text)
		} else {
			e.pairs = append(e.pairs, text...)
		}
	}
}

func needsQuotes(s string) bool {
	return s == "" || !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool {
		return r == ' ' || r == '"' || r == '=' || !unicode.IsPrint(r)
	})
}

// printable replaces what could move a terminal's cursor or change its colours:
// peers have a say in what is logged.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r != '\t' && !unicode.IsPrint(r) {
			return utf8.RuneError
		}
		return r
	}, s)
}

func appendIndented(dst []byte, indent, lines string) []byte {
	for text := range strings.SplitSeq(lines, "\n") {
		dst = append(dst, indent...)
		dst = append(dst, printable(text)...)
	}
	return dst
}

// appendField appends a field in the native protocol: NAME=value and a line
// end, or, if the value has one,
//
//	NAME, line end
//	8 bytes, little endian: the length of the value
//	value, line end
func appendField[V string | []byte](dst []byte, name string, value V) []byte {
	dst = append(dst, name...)
	if bytes.IndexByte([]byte(value), '\n') < 0 {
		dst = append(dst, '=')
	} else {
		dst = append(dst, '\n')
		dst = binary.LittleEndian.AppendUint64(dst, uint64(len(value)))
	}
	dst = append(dst, value...)
	return append(dst, '\n')
}

// maxFieldName is the longest name that journald takes.
const maxFieldName = 64

// fieldName is key as the name of a journal field: upper-case letters, digits
// and underscores, no underscore or digit in front.
func fieldName(key string) string {
	name := make([]byte, 0, maxFieldName)
	var last byte
	for i := 0; i < len(key) && len(name) < maxFieldName; i++ {
		c := key[i]
		switch {
		case 'a' <= c && c <= 'z':
			name = append(name, c-'a'+'A')
		case 'A' <= c && c <= 'Z':
			if 'a' <= last && last <= 'z' || '0' <= last && last <= '9' {
				name = append(name, '_')
			}
			name = append(name, c)
		case '0' <= c && c <= '9':
			if len(name) == 0 {
				name = append(name, 'X')
			}
			name = append(name, c)
		case len(name) > 0:
			name = append(name, '_')
		}
		last = c
	}
	name = name[:min(len(name), maxFieldName)]
	switch string(name) {
	case "":
		return "FIELD"
	case "MESSAGE", "PRIORITY", "CODE_FILE", "CODE_LINE", "CODE_FUNC", "SYSLOG_IDENTIFIER", "SYSLOG_FACILITY",
		"SYSLOG_PID", "SYSLOG_TIMESTAMP", "SYSLOG_RAW", "OBJECT_PID", "COREDUMP_UNIT", "COREDUMP_USER_UNIT":
		return "FIELD_" + string(name)
	}
	return string(name)
}

func (e *fieldEncoder) both(key, value string) { e.add(key, value, value) }

// json adds a value as JSON. put gives it to zap's encoder under the key "v".
func (e *fieldEncoder) json(key string, put func(zapcore.ObjectEncoder) error) error {
	encoder := jsonValues.Clone()
	if err := put(encoder); err != nil {
		return err
	}
	out, err := encoder.EncodeEntry(zapcore.Entry{}, nil)
	if err != nil {
		return err
	}
	defer out.Free()
	e.both(key, strings.TrimSuffix(strings.TrimPrefix(out.String(), `{"v":`), "}"))
	return nil
}

// jsonValues encodes an entry's fields and nothing else.
var jsonValues = zapcore.NewJSONEncoder(zapcore.EncoderConfig{
	EncodeTime:     jsonConfig.EncodeTime,
	EncodeDuration: jsonConfig.EncodeDuration,
	SkipLineEnding: true,
})

func (e *fieldEncoder) OpenNamespace(key string) { e.prefix += key + "." }

func (e *fieldEncoder) AddObject(key string, v zapcore.ObjectMarshaler) error {
	outer := e.prefix
	e.OpenNamespace(key)
	err := v.MarshalLogObject(e)
	e.prefix = outer
	return err
}

func (e *fieldEncoder) AddArray(key string, v zapcore.ArrayMarshaler) error {
	return e.json(key, func(json zapcore.ObjectEncoder) error { return json.AddArray("v", v) })
}

func (e *fieldEncoder) AddReflected(key string, v any) error {
	return e.json(key, func(json zapcore.ObjectEncoder) error { return json.AddReflected("v", v) })
}

func (e *fieldEncoder) AddDuration(key string, v time.Duration) {
	e.add(key, strconv.FormatFloat(v.Seconds(), 'f', -1, 64), v.String())
}

func (e *fieldEncoder) AddTime(key string, v time.Time) { e.both(key, v.Format(time.RFC3339Nano)) }
func (e *fieldEncoder) AddString(key, v string)         { e.both(key, v) }
func (e *fieldEncoder) AddByteString(key string, v []byte) {
	e.both(key, string(v))
}
func (e *fieldEncoder) AddBinary(key string, v []byte) { e.both(key, string(v)) }
func (e *fieldEncoder) AddBool(key string, v bool)     { e.both(key, strconv.FormatBool(v)) }
func (e *fieldEncoder) AddComplex128(key string, v complex128) {
	e.both(key, strconv.FormatComplex(v, 'g', -1, 128))
}
func (e *fieldEncoder) AddComplex64(key string, v complex64) {
	e.both(key, strconv.FormatComplex(complex128(v), 'g', -1, 64))
}
func (e *fieldEncoder) AddFloat64(key string, v float64) {
	e.both(key, strconv.FormatFloat(v, 'f', -1, 64))
}
func (e *fieldEncoder) AddFloat32(key string, v float32) {
	e.both(key, strconv.FormatFloat(float64(v), 'f', -1, 32))
}
func (e *fieldEncoder) AddInt(key string, v int)         { e.AddInt64(key, int64(v)) }
func (e *fieldEncoder) AddInt64(key string, v int64)     { e.both(key, strconv.FormatInt(v, 10)) }
func (e *fieldEncoder) AddInt32(key string, v int32)     { e.AddInt64(key, int64(v)) }
func (e *fieldEncoder) AddInt16(key string, v int16)     { e.AddInt64(key, int64(v)) }
func (e *fieldEncoder) AddInt8(key string, v int8)       { e.AddInt64(key, int64(v)) }
func (e *fieldEncoder) AddUint(key string, v uint)       { e.AddUint64(key, uint64(v)) }
func (e *fieldEncoder) AddUint64(key string, v uint64)   { e.both(key, strconv.FormatUint(v, 10)) }
func (e *fieldEncoder) AddUint32(key string, v uint32)   { e.AddUint64(key, uint64(v)) }
func (e *fieldEncoder) AddUint16(key string, v uint16)   { e.AddUint64(key, uint64(v)) }
func (e *fieldEncoder) AddUint8(key string, v uint8)     { e.AddUint64(key, uint64(v)) }
func (e *fieldEncoder) AddUintptr(key string, v uintptr) { e.AddUint64(key, uint64(v)) }
