// Package journal is where a process's log lines go: by zap to journald's
// native protocol, where each field can be searched for, or to stderr as text
// or JSON.
//
// Invariants:
//   - Who logs never waits: a line goes into a bounded queue or is dropped and
//     counted. (Only a line above the level error waits, at most two seconds,
//     until it is written: a panic or the end of the process follows.)
//   - One goroutine takes lines out of the queue and writes them, in order.
//   - While journald is away, lines of level error and above go to stderr with
//     sd-daemon(3)'s "<3>" before them, others are dropped; nothing has to be
//     opened anew when it is back.
//   - A warning or error that comes again and again, of the same listener and
//     worker, is written five times in ten seconds; how often it came besides
//     is written at the end of that time, as "line repeated".
//   - When lines have been dropped, the next line that can be written is
//     followed by "log lines dropped" with their number so far.
//
// # What is written
//
// To journald, one entry a line:
//
//	MESSAGE             the line as the text format writes it, without time and level
//	EVENT               the message alone, without its fields, to search for
//	PRIORITY            debug 7, info 6, warn 4, error 3, above 2
//	SYSLOG_IDENTIFIER   Options.Identifier
//	LOGGER              the logger's name, if it has one
//	CODE_FILE, CODE_LINE, CODE_FUNC
//	STACKTRACE          if the logger adds one
//	WORKER, CONN, ...   every zap field under its name in upper case
//
// A field's name becomes a valid one: camelCase becomes CAMEL_CASE, whatever
// is no letter or digit becomes an underscore, namespaces and objects are put
// in front (peer.port is PEER_PORT), underscores at the front go, a digit
// there gets an X before it, and what is longer than 64 bytes is cut. Names
// that mean something else to journald (MESSAGE, PRIORITY, CODE_FILE and so
// on) get FIELD_ before them, save message_id: MESSAGE_ID is how a catalog
// knows an entry.
//
// Durations are decimal seconds to journald and in JSON ("0.25"), so that
// they compare, and Go's form in text ("250ms"). Times are RFC 3339. Arrays
// and reflected values are JSON.
//
// Text is for people: local time, level, logger, message, key=value, values
// of several lines indented below.
//
// Start reading at [Open] and (*Log).run; encode.go says how a line looks,
// socket.go how journald gets it.
package journal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/journal"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// socketPath is where journald takes native entries: systemd-journald(8).
const socketPath = "/run/systemd/journal/socket"

// DefaultQueue is how many lines wait when Options.Queue does not say.
const DefaultQueue = 8192

// maxQueueBytes bounds what waits in the queue whatever the number of lines.
const maxQueueBytes = 32 << 20

// closeTimeout bounds Close, and the wait for a line above the level error.
const closeTimeout = 2 * time.Second

// readTime is how long Close waits for journald to read what it was sent.
const readTime = 500 * time.Millisecond

// stderrTime is how long before the end of Close the journal is given up, so
// that the errors still in the queue get to stderr.
const stderrTime = 200 * time.Millisecond

// Options say where lines go and which. The zero value is ready for use.
type Options struct {
	// Format is "journal", "text", "json" or "auto"; empty: "auto". That is
	// "journal" if JOURNAL_STREAM names the process's stderr, else "text".
	Format string

	// Level is the least level that is written; it may be changed at any
	// time. nil: info.
	Level *zap.AtomicLevel

	// Identifier is SYSLOG_IDENTIFIER; empty: the name of the program.
	Identifier string

	// Fields are part of every line.
	Fields []zap.Field

	// Queue is how many lines wait at most (and 32 MiB); zero or less:
	// DefaultQueue.
	Queue int

	// Stderr takes text, JSON and what journald can not take. It stays the
	// caller's. nil: os.Stderr.
	Stderr *os.File
}

// Log writes log lines. Its methods may be called from any goroutine.
type Log struct {
	// Set once in Open.

	logger   *zap.Logger
	level    zap.AtomicLevel
	format   format
	native   *nativeSocket // nil: everything goes to stderr
	stderr   *os.File
	queue    chan line
	flushes  chan chan struct{}
	finished chan struct{} // closed when run has returned

	// Counters.

	dropped atomic.Uint64
	waiting atomic.Int64 // bytes in queue

	// Owned by run.

	reported uint64 // dropped lines told of

	repeats repeats

	mu     sync.Mutex // guards closed, and the close of queue
	closed bool
}

// line is one entry on its way.
type line struct {
	data     []byte // as journald or stderr takes it
	fallback []byte // for stderr if journald does not take data; nil: none
}

// Open returns a Log and starts its goroutine, which ends with [Log.Close].
// That journald is away is no error. An error is: an unknown format, or no
// socket to be had.
func Open(o Options) (*Log, error) { return open(o, socketPath) }

func open(o Options, socket string) (*Log, error) {
	if o.Level == nil {
		level := zap.NewAtomicLevel()
		o.Level = &level
	}
	if o.Identifier == "" {
		o.Identifier = filepath.Base(os.Args[0])
	}
	if o.Queue <= 0 {
		o.Queue = DefaultQueue
	}
	if o.Stderr == nil {
		o.Stderr = os.Stderr
	}
	l := &Log{
		level:    *o.Level,
		stderr:   o.Stderr,
		queue:    make(chan line, o.Queue),
		flushes:  make(chan chan struct{}),
		finished: make(chan struct{}),
	}
	kind := o.Format
	if kind == "" || kind == "auto" {
		kind = "text"
		// A JOURNAL_STREAM that can not be read does not name our stderr.
		if ok, err := journal.StderrIsJournalStream(); ok && err == nil {
			kind = "journal"
		}
	}
	switch kind {
	case "journal":
		native, err := newNativeSocket(socket)
		if err != nil {
			return nil, err
		}
		l.native = native
		l.format = fieldFormat{identifier: o.Identifier, native: true}
	case "text":
		l.format = fieldFormat{}
	case "json":
		l.format = newJSONFormat()
	default:
		return nil, fmt.Errorf("journal: format %q: want auto, journal, text or json", o.Format)
	}
	l.format = l.format.with(o.Fields)
	l.repeats = repeats{report: l.reportRepeats, seen: make(map[repeatKey]*repeated)}
	l.logger = zap.New(&core{log: l, format: l.format, key: repeatKey{}.with(o.Fields)}, zap.AddCaller(), zap.ErrorOutput(zapcore.Lock(o.Stderr)))
	go l.run()
	return l, nil
}

// Logger returns the logger that writes here. It stays valid after Close; what
// it is given then is dropped.
func (l *Log) Logger() *zap.Logger { return l.logger }

// Dropped returns how many lines got neither to the journal nor to stderr: the
// queue was full, journald was away and the line below error, or the Log was
// closed. It never goes back.
func (l *Log) Dropped() uint64 { return l.dropped.Load() }

// Close writes what waits in the queue, for at most two seconds, and ends the
// goroutine. An error says how many lines were not written in that time; a
// goroutine that hangs in a write to stderr then ends with that write. Further
// calls do nothing and return nil.
func (l *Log) Close() error {
	l.repeats.close()
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	close(l.queue)
	l.mu.Unlock()

	before := l.dropped.Load()
	if l.native != nil {
		l.native.setDeadline(time.Now().Add(closeTimeout - stderrTime))
	}
	timer := time.NewTimer(closeTimeout)
	defer timer.Stop()
	select {
	case <-l.finished:
	case <-timer.C:
		return fmt.Errorf("journal: close: %d lines or more not written within %v", len(l.queue)+1, closeTimeout)
	}
	if n := l.dropped.Load() - before; n > 0 {
		return fmt.Errorf("journal: close: %d lines not written", n)
	}
	return nil
}

// enqueue takes a line or drops it.
func (l *Log) enqueue(ln line) {
	size := int64(len(ln.data) + len(ln.fallback))
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.waiting.Load()+size > maxQueueBytes {
		l.dropped.Add(1)
		return
	}
	l.waiting.Add(size)
	select {
	case l.queue <- ln:
	default:
		l.waiting.Add(-size)
		l.dropped.Add(1)
	}
}

// run writes the lines until Close.
func (l *Log) run() {
	defer close(l.finished)
	if l.native != nil {
		defer l.native.close(readTime)
	}
	for {
		select {
		case ln, ok := <-l.queue:
			if !ok {
				return
			}
			l.write(ln)
		case reply := <-l.flushes:
			for range len(l.queue) {
				l.write(<-l.queue)
			}
			close(reply)
		}
	}
}

// write writes one line, or drops it.
func (l *Log) write(ln line) {
	l.waiting.Add(-int64(len(ln.data) + len(ln.fallback)))
	if err := l.emit(ln); err != nil {
		l.dropped.Add(1)
		return
	}
	// One report for a whole burst: when the queue is empty again.
	if dropped := l.dropped.Load(); dropped != l.reported && len(l.queue) == 0 {
		report := zapcore.Entry{Level: zap.WarnLevel, Time: time.Now(), Message: "log lines dropped"}
		if l.emit(l.format.line(report, []zap.Field{ID(LinesDropped), zap.Uint64("dropped", dropped)})) == nil {
			l.reported = dropped
		}
	}
}

// emit hands one line to journald or stderr. An error means that nobody has
// it.
func (l *Log) emit(ln line) error {
	if l.native == nil {
		return l.writeStderr(ln.data)
	}
	err := l.native.send(ln.data)
	if err == nil || ln.fallback == nil {
		return err
	}
	return l.writeStderr(ln.fallback)
}

// flush waits until what was logged before is written, at most two seconds.
func (l *Log) flush() error {
	timer := time.NewTimer(closeTimeout)
	defer timer.Stop()
	reply := make(chan struct{})
	select {
	case l.flushes <- reply:
	case <-l.finished:
		return nil
	case <-timer.C:
		return errors.New("journal: sync: not written in time")
	}
	select {
	case <-reply:
	case <-timer.C:
		return errors.New("journal: sync: not written in time")
	}
	return nil
}

// core is the zapcore.Core of a logger.
type core struct {
	log    *Log
	format format
	key    repeatKey // the logger's part of it
}

func (c *core) Enabled(level zapcore.Level) bool { return c.log.level.Enabled(level) }

func (c *core) With(fields []zapcore.Field) zapcore.Core {
	return &core{log: c.log, format: c.format.with(fields), key: c.key.with(fields)}
}

func (c *core) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(entry.Level) {
		return checked.AddCore(entry, c)
	}
	return checked
}

func (c *core) Write(entry zapcore.Entry, fields []zapcore.Field) error {
	if entry.Level == zapcore.WarnLevel || entry.Level == zapcore.ErrorLevel {
		key := c.key.with(fields)
		key.level, key.logger, key.message = entry.Level, entry.LoggerName, entry.Message
		if c.log.repeats.hold(key, c, entry.Time) {
			return nil
		}
	}
	c.log.enqueue(c.format.line(entry, fields))
	if entry.Level > zapcore.ErrorLevel {
		return c.log.flush()
	}
	return nil
}

func (c *core) Sync() error { return c.log.flush() }
